"""What the committed studies found, as tables: docs/study.md and the short table of the README.

Usage: python benchmarks/study_tables.py [--write]

Everything is read from `benchmarks/results/study/seed_N.json` and `benchmarks/results/baselines.json`.
"""

import argparse
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import msgspec
from record import RESULTS, ROOT

from redheart.core.config import RUNTIME_FIELDS
from redheart.core.recipes import MEASURED, defaults_of
from redheart.evaluate.evaluation import Evaluation
from redheart.evaluate.results import EvaluationResult
from redheart.report.limitations import better_baselines, names_by_task
from redheart.report.tables import estimate_text, markdown_table
from redheart.select.statistics import Gain

PAGE = ROOT / "docs" / "study.md"

COLUMNS = {
    "emotion KL": ("emotion", "kl"),
    "accuracy": ("emotion", "accuracy"),
    "with ties": ("emotion", "accuracy_tie"),
    "regret R2": ("regret", "r2.regret_factor"),
    "Bentham R2": ("bentham", "r2"),
    "SURD R2": ("surd", "r2"),
}
"""Heading, task and metric of each column."""
VALUE_TASKS = ("regret", "bentham", "surd")

Found = dict[str, Any]


def studies() -> dict[int, Found]:
    """Committed results by seed, each with the settings that it was made with."""
    found = {}
    for path in RESULTS.glob("study/seed_*.json"):
        record = json.loads(path.read_text())
        found[int(record["settings"]["seed"])] = record
    return dict(sorted(found.items()))


def evaluation_of(seed: int, study: Found) -> EvaluationResult:
    """Models and baselines on the test split of this seed, all the baselines that were refitted on its split."""
    evaluation = msgspec.convert(study["result"]["evaluation"], EvaluationResult)
    path = RESULTS / "baselines.json"
    if path.is_file():
        record = json.loads(path.read_text())
        if record["settings"]["seed"] == seed:
            refitted = msgspec.convert(record["result"], dict[str, Evaluation])
            evaluation = msgspec.structs.replace(evaluation, baselines=evaluation.baselines | refitted)
    return evaluation


def models_table(evaluations: Mapping[str, Evaluation]) -> str:
    """Models by name, one a row, with 95 % intervals."""
    rows = [
        [name, *[estimate_text(found.tasks.get(task, {}).get(metric)) for task, metric in COLUMNS.values()]]
        for name, found in evaluations.items()
    ]
    return markdown_table(["model", *COLUMNS], rows)


def test_table(seed: int, study: Found) -> str:
    """Both models, then the baselines."""
    evaluation = evaluation_of(seed, study)
    models = {f"**{name.replace('_', ' ')}**": found for name, found in evaluation.models.items()}
    return models_table(models | evaluation.baselines)


def sweep_table(study: Found) -> str:
    """Learning rates and their scores, the chosen one marked."""
    sweep = study["result"]["sweep"]
    rows = [
        [
            f"**{trial['rate']}**" if trial["rate"] == sweep["best_rate"] else f"{trial['rate']}",
            "–" if trial["score"] is None else f"{trial['score']:.5f}",
            trial["status"],
        ]
        for trial in sweep["trials"]
    ]
    return markdown_table(["learning rate", "validation loss", "status"], rows)


def epochs_table(study: Found) -> str:
    """The run's curve at its snapshots."""
    rows = [
        [
            f"{epoch['epoch']}",
            f"{epoch['learning_rate']:.2e}",
            f"{epoch['train_loss']:.4f}",
            f"{epoch['val_loss']:.4f}",
            *[f"{epoch['val_metrics'][name]:.3f}" for name in ("kl", "accuracy_tie")],
        ]
        for epoch in study["result"]["epochs"]
        if epoch["epoch"] % 6 == 0 or epoch["epoch"] == 2
    ]
    return markdown_table(["epoch", "rate at its end", "training loss", "validation loss", "KL", "with ties"], rows)


def modules_table(study: Found) -> str:
    """The epoch at which each module's own validation loss is least, among all epochs, and what the last one has."""
    epochs = study["result"]["epochs"]
    rows = []
    for name in epochs[-1]["val_module_loss"]:
        losses = [epoch["val_module_loss"][name] for epoch in epochs]
        best = min(range(len(losses)), key=losses.__getitem__)
        rows.append([name, f"{best + 1}", f"{losses[best]:.4f}", f"{losses[-1]:.4f}"])
    return markdown_table(["module", "best epoch", "its validation loss", "that of the last epoch"], rows)


def gain(found: Found) -> Gain:
    """A stored gain."""
    return msgspec.convert(found, Gain)


def crossover_table(found: dict[int, Found]) -> str:
    """What the selection chose and what became of it, one seed a row."""
    rows = []
    for seed, study in found.items():
        result = study["result"]
        crossover, spot = result["crossover"], result["sweet_spot"]
        blends = {json.dumps(blend, sort_keys=True) for blend in crossover["modules"].values()}
        out_of_bag = spot["selection"]["percent_out_of_bag"]
        rows.append(
            [
                f"{seed}",
                f"{crossover['best_epoch']}",
                f"{len(blends)}",
                str(gain(crossover["gain_select"])),
                "–" if out_of_bag is None else f"{out_of_bag:+.2f} %",
                str(gain(crossover["gain_confirm"])),
                str(gain(result["evaluation"]["gain_test"])),
                crossover["recommended"].replace("_", " "),
            ]
        )
    heading = ["seed", "best single epoch", "distinct windows", "gain where it was chosen", "out of bag"]
    return markdown_table([*heading, "gain on confirm", "gain on test", "used"], rows)


def strategies_table(study: Found) -> str:
    """What the other ways to combine snapshots would have given over the best single, on the select records."""
    rows = [
        [name.replace("_", " "), str(gain(value))] for name, value in study["result"]["sweet_spot"]["baselines"].items()
    ]
    return markdown_table(["instead", "gain over the best single, where both were chosen"], rows)


def verdict(found: dict[int, Found]) -> str:
    """The sentence over all seeds, from the intervals on the confirm records."""
    gains = {seed: gain(study["result"]["crossover"]["gain_confirm"]) for seed, study in found.items()}
    better = [seed for seed, value in gains.items() if value.is_evidence]
    each = ", ".join(f"{value.percent:+.2f} %" for value in gains.values())
    what = "of the crossover over the best single snapshot"
    if not better:
        return f"No evidence of gain {what} in any of {len(gains)} seeds (on unseen records {each})."
    return f"Evidence of gain {what} in {len(better)} of {len(gains)} seeds (on unseen records {each})."


def ends(found: dict[int, Found]) -> str:
    """The sentence on overfitting: how far validation losses had risen at the end since they were lowest."""
    losses = [[epoch["val_loss"] for epoch in study["result"]["epochs"]] for study in found.values()]
    rises = ", ".join(f"{100 * (curve[-1] / min(curve) - 1):.2f} %" for curve in losses)
    last = f"At the end of {len(losses[0])} epochs the validation loss is {rises} above its lowest"
    return f"{last} (seeds {min(found)} to {max(found)})."


def hours(study: Found) -> str:
    """How long sweep and training took by their own clocks."""
    result = study["result"]
    return f"sweep {result['sweep']['seconds'] / 60:.0f} min, training {result['events']['seconds'] / 60:.0f} min"


def cores_text(study: Found) -> str:
    """How many cores a study ran on."""
    cores = study["settings"]["train"]["num_threads"] or study["machine"]["cpu_usable_cores"]
    return f"{cores} CPU core{'s' if cores > 1 else ''}"


def options_text(settings: Mapping[str, Any]) -> str:
    """The options of a study that are not the defaults and decide its result."""
    defaults = dataclasses.asdict(defaults_of(MEASURED, settings["preset"]).train)
    chosen = {
        name: value
        for name, value in settings["train"].items()
        if name in defaults and value != defaults[name] and name not in (*RUNTIME_FIELDS, "learning_rate")
    }
    train = "".join(f" --train.{name.replace('_', '-')} {value:g}" for name, value in chosen.items())
    return f"--preset {settings['preset']} --epochs {settings['epochs']}{train}"


def run_text(settings: Mapping[str, Any]) -> str:
    """The command of a study, and whether its features are what they are now."""
    older = "" if settings["features"].get("words") else " (before the features held what words say)"
    return f"`redheart run {options_text(settings)}`{older}"


def split_text(study: Found) -> str:
    """How many records there were and what for."""
    records = study["result"]["records"]
    parts = {"train": "to train", "val_select": "to select", "val_confirm": "to confirm", "test": "to test"}
    shares = ", ".join(f"{records[name]:,} {purpose}" for name, purpose in parts.items())
    return f"{records['read']:,} real records: {shares}"


def not_reached(seed: int, study: Found) -> str:
    """Which baselines did better than the model that the run recommends."""
    evaluation = evaluation_of(seed, study)
    better = better_baselines(evaluation.models[evaluation.recommended], evaluation.baselines)
    if not better:
        return "No baseline does better in any of the tasks."
    return f"Better than the recommended model: {names_by_task(better)}."


def trials_table(found: dict[int, Found]) -> str:
    """Runs of other settings beside the study of the same seed, by validation."""
    rows = []
    for path in sorted(RESULTS.glob("study/trials/*.json")):
        trial = json.loads(path.read_text())
        seed, curves = trial["settings"]["seed"], trial["result"]
        beside = {epoch["epoch"]: epoch for epoch in found[seed]["result"]["epochs"]}
        cycle = found[seed]["settings"]["train"]["cycle_epochs"]
        # The ends of its first and its last whole cycle: in between a restart has just undone something.
        for epoch in (curves[end - 1] for end in sorted({cycle, len(curves) // cycle * cycle})):
            other = beside[epoch["epoch"]]
            pairs = [(epoch["val_metrics"]["kl"], other["val_metrics"]["kl"])]
            pairs += [(epoch["val_task_loss"][task], other["val_task_loss"][task]) for task in VALUE_TASKS]
            changes = [f"{100 * (mine / others - 1):+.1f} %" for mine, others in pairs]
            rise = epoch["val_loss"] / min(item["val_loss"] for item in curves[: epoch["epoch"]]) - 1
            rows.append([run_text(trial["settings"]), f"{seed}", f"{epoch['epoch']}", *changes, f"{100 * rise:+.2f} %"])
    heading = ["run", "seed", "epoch", "emotion KL", *(f"{task} loss" for task in VALUE_TASKS)]
    return markdown_table([*heading, "loss above its best"], rows)


def page() -> str:
    """docs/study.md."""
    found = studies()
    first_seed, first = next(iter(found.items()))
    settings = first["settings"]
    figures = sorted((RESULTS / "study" / f"seed_{first_seed}_report").rglob("*.png"))
    parts = [
        "# What our own study found",
        "Written by `benchmarks/study_tables.py --write` from `benchmarks/results/study`; "
        "`benchmarks/study.py RUN --write` puts the results of a finished run there. Intervals are 95 %.",
        f"{run_text(settings)} on {cores_text(first)}: {hours(first)}. {split_text(first)}.",
        "Regularisation and cycle were chosen on the validation records of seed 0, the weight of the values and words "
        "in the features on those of seeds 0 and 1; these overlap with the test records of other seeds. The rate that "
        "seed 0's sweep found was given to the others.",
        "## The sweep",
        sweep_table(first),
        "## Training",
        epochs_table(first),
        ends(found),
        "## Modules",
        "Every module predicts on its own, so that it has a validation loss and a best epoch of its own. "
        f"Seed {first_seed}:",
        modules_table(first),
        "## Crossover",
        verdict(found),
        crossover_table(found),
        f"Seed {first_seed}, the other ways to make one model of the snapshots:",
        strategies_table(first),
        "## On the test split",
        "A seed decides the split too, so every seed has test records and refitted baselines of its own.",
    ]
    for seed, study in found.items():
        parts += [f"Seed {seed}:", test_table(seed, study), not_reached(seed, study)]
    parts += [
        "## Beside it",
        "Runs of other settings, not all of them to their end. Losses on all validation records over those of the "
        "study of the same seed at the same epoch; behind them how far the validation loss of the run itself had risen "
        "since it was lowest.",
        trials_table(found),
    ]
    if figures:
        parts.append("## Figures")
        parts += [f"![{path.stem.replace('_', ' ')}]({'../' + str(path.relative_to(ROOT))})" for path in figures]
    return "\n\n".join(parts) + "\n"


def short() -> str:
    """What the README shows: the first seed's test table and the verdict over all."""
    found = studies()
    first_seed, first = next(iter(found.items()))
    made = f"{run_text(first['settings'])} on {cores_text(first)} ({hours(first)})"
    heading = f"{made}, {split_text(first)}. The test split of seed {first_seed}, 95 % intervals:"
    closing = f"{not_reached(first_seed, first)} {ends(found)} {verdict(found)} [All of it](docs/study.md)."
    return "\n\n".join([heading, test_table(first_seed, first), closing])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write docs/study.md, else print it")
    if parser.parse_args().write:
        PAGE.write_text(page())
    else:
        print(page())


if __name__ == "__main__":
    main()
