"""What a reader must know before trusting a run's figures: sentences that follow from its files."""

from collections.abc import Mapping

from redheart.data.scripts import unread_text
from redheart.evaluate.evaluation import Evaluation
from redheart.evaluate.results import EvaluationResult
from redheart.report.facts import RunFacts

_FEW_TEST_RECORDS = 1000
"""Below, a share near one half has a standard error above 1.5 points."""

_COMPARED = {"kl": -1, "r2": 1}
"""The metric by which a task's models are told apart, which depends on the kind of the task; -1: less is better."""


def limitations(facts: RunFacts) -> str:
    """The limitations of a run as a Markdown list, a sentence each."""
    manifest, crossover, evaluation = facts.manifest, facts.crossover, facts.evaluation
    records = manifest.num_records
    found = [f"{records:,} records after cleaning; {manifest.train:,} of them trained on, {manifest.test:,} tested on."]
    if manifest.test < _FEW_TEST_RECORDS:
        found.append("The test split is small: look at the intervals, not at the third digit.")
    if manifest.best_reachable is not None:
        found.append("The records are generated: the figures say that the machinery works, not how good it is.")
    if unread := unread_text(facts.unread or {}, records, encoder=facts.config["features"]["encoder"]):
        found.append(f"{unread}.")
    if manifest.schema == "distribution":
        found.append(
            "Who made the labels is not known here. If a language model did, and nobody has checked them against "
            "people, the figures say how well it is repeated, not how people felt."
        )
    if manifest.schema == "goemotions":
        found.append("Only emotions are labelled; what has no label was not trained and is not predicted.")
    if manifest.invalid:
        found.append(f"{manifest.invalid:,} malformed records were dropped.")
    if crossover and not crossover.gain_confirm.is_evidence:
        found.append("The recombination of modules shows no evidence of gain on this run.")
    if crossover is None:
        found.append("No comparison on unseen records has been made yet.")
    if evaluation and (better := better_text(evaluation)):
        found.append(better)
    if facts.calibration is None:
        found.append("Whether the confidence means what it says has not been examined.")
    if facts.calibration and facts.calibration.calibration is None:
        found.append("No calibration was shown to be better than none: confidence is the model's own.")
    found.append("Predictions are about how a text reads. They are no diagnosis and no basis for decisions on people.")
    return "\n".join(f"- {sentence}" for sentence in found)


def better_text(evaluation: EvaluationResult) -> str | None:
    """What there is to say where a baseline has better values than the recommended model."""
    better = better_baselines(evaluation.models[evaluation.recommended], evaluation.baselines)
    if not better:
        return None
    return (
        f"On the test split these have better values than the recommended model: {names_by_task(better)}; whether by "
        "more than chance was not examined."
    )


def better_baselines(model: Evaluation, baselines: Mapping[str, Evaluation]) -> dict[str, list[str]]:
    """The baselines with a better value than the model's, by task; a task that the model leads is left out."""
    found = {}
    for task, estimates in model.tasks.items():
        for metric in estimates.keys() & _COMPARED:
            least = _COMPARED[metric] * estimates[metric].value
            values = {name: other.tasks.get(task, {}).get(metric) for name, other in baselines.items()}
            names = [name for name, value in values.items() if value and _COMPARED[metric] * value.value > least]
            if names:
                found[task] = names
    return found


def names_by_task(names: Mapping[str, list[str]]) -> str:
    """What `better_baselines` found, in words; names in code marks, for some have a comma in them."""
    parts = [f"{task}: {', '.join(f'`{name}`' for name in found)}" for task, found in names.items()]
    return "; ".join(parts)
