"""What a reader must know before trusting a run's figures: sentences that follow from its files."""

from collections.abc import Mapping

from redheart.data.prepare import Manifest
from redheart.evaluate.evaluation import Evaluation

_FEW_TEST_RECORDS = 1000
"""Below, a share near one half has a standard error above 1.5 points."""

_LESS_IS_BETTER = {"kl"}
_COMPARED = ("kl", "r2")
"""The metric by which a task's models are told apart; which of them it is depends on the kind of the task."""


def limitations(
    manifest: Manifest,
    *,
    is_gain_shown: bool | None,
    is_calibrated: bool | None = None,
    better_baselines: Mapping[str, list[str]] | None = None,
) -> list[str]:
    """The limitations of a run, a sentence each.

    Args:
        manifest: of the prepared data.
        is_gain_shown: whether the recombined model was shown to be better; None where that has not been tried.
        is_calibrated: whether a calibration was shown to be better than none; None where that has not been tried.
        better_baselines: by task, the baselines that did better on the test split.
    """
    records = manifest.train + manifest.val_select + manifest.val_confirm + manifest.test
    found = [f"{records:,} records after cleaning; {manifest.train:,} of them trained on, {manifest.test:,} tested on."]
    if manifest.test < _FEW_TEST_RECORDS:
        found.append("The test split is small: look at the intervals, not at the third digit.")
    if manifest.best_reachable is not None:
        found.append("The records are generated: the figures say that the machinery works, not how good it is.")
    if manifest.schema == "distribution":
        found.append(
            "The labels were made by a language model and nobody has checked them against people: the figures say how "
            "well it is repeated, not how people felt."
        )
    if manifest.schema == "goemotions":
        found.append("Only emotions are labelled; what has no label was not trained and is not predicted.")
    if manifest.invalid:
        found.append(f"{manifest.invalid:,} malformed records were dropped.")
    if is_gain_shown is False:
        found.append("The recombination of modules shows no evidence of gain on this run.")
    if is_gain_shown is None:
        found.append("No comparison on unseen records has been made yet.")
    if better_baselines:
        found.append(
            f"On the test split these do better than the recommended model: {names_by_task(better_baselines)}."
        )
    if is_calibrated is None:
        found.append("Whether the confidence means what it says has not been examined.")
    if is_calibrated is False:
        found.append("No calibration was shown to be better than none: confidence is the model's own.")
    found.append("Predictions are about how a text reads. They are no diagnosis and no basis for decisions on people.")
    return found


def better_baselines(model: Evaluation, baselines: Mapping[str, Evaluation]) -> dict[str, list[str]]:
    """The baselines with a better value than the model's, by task; a task that the model leads is left out."""
    found = {}
    for task, estimates in model.tasks.items():
        for metric in _COMPARED:
            if metric not in estimates:
                continue
            sign = -1 if metric in _LESS_IS_BETTER else 1
            names = [
                name
                for name, baseline in baselines.items()
                if metric in baseline.tasks.get(task, {})
                and sign * baseline.tasks[task][metric].value > sign * estimates[metric].value
            ]
            if names:
                found[task] = names
    return found


def names_by_task(names: Mapping[str, list[str]]) -> str:
    """What `better_baselines` found, in words; names in code marks, for some have a comma in them."""
    parts = [f"{task}: {', '.join(f'`{name}`' for name in found)}" for task, found in names.items()]
    return "; ".join(parts)
