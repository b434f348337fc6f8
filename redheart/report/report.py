"""The report of a run in Markdown, with figures. Every number in it stands in a file of the run."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from redheart.core.files import write_bytes
from redheart.core.recipes import followed, recipe_of
from redheart.core.units import GIB
from redheart.data.prepare import Manifest
from redheart.data.split import TEST
from redheart.evaluate.results import Trial
from redheart.model.dims import preset
from redheart.model.ledger import count
from redheart.model.network import build
from redheart.report.best_epochs import best_epochs_text
from redheart.report.calibration_section import calibration_section
from redheart.report.facts import RunFacts, before_calibration, read_facts
from redheart.report.figures import draw_lines
from redheart.report.html import render
from redheart.report.latex import write_tables
from redheart.report.limitations import better_text, limitations
from redheart.report.selection_section import (
    MISSING,
    crossover_section,
    maps_section,
    openings_section,
    sweet_spot_section,
)
from redheart.report.tables import RECORDS, comparison_table, markdown_table, plain


def make_report(root: Path) -> Path:
    """Write the report from the files of a run, whatever phases have run: Markdown, HTML, tables for a paper.

    Its path; raises as `read_facts`.
    """
    facts, out = read_facts(root), root / "report"
    outputs, evaluation = facts.manifest.inventory.outputs, facts.evaluation
    modules = count(build(preset(facts.config["preset"], outputs=outputs), seed=0, device="meta")).modules
    ledger_rows = [*modules.items(), ("total", sum(modules.values()))]
    sections = [
        f"# {plain(f'Red Heart: {facts.name}')}",
        _summary(facts),
        "## Data",
        _data(facts.manifest),
        "## Model",
        markdown_table(["module", "parameters"], [[name, f"{number:,}"] for name, number in ledger_rows]),
        "## Learning-rate sweep",
        _sweep(out, facts.sweep.trials if facts.sweep else []),
        "## Training",
        _training(out, facts),
        "## Sweet spot",
        sweet_spot_section(out, facts.spot, bests=best_epochs_text(root)),
        "## Transplants and lines between snapshots",
        maps_section(out, facts.maps),
        "## Crossover",
        crossover_section(facts.crossover, facts.spot),
        "## Test split",
        _test(facts),
        "## Calibration",
        calibration_section(out, facts.calibration),
        "## Records that were opened",
        openings_section(facts.openings),
        "## Limitations",
        limitations(facts),
    ]
    path, text = out / "report.md", "\n\n".join(sections) + "\n"
    write_bytes(path, text.encode())
    write_tables(
        out / "tables",
        manifest=facts.manifest,
        ledger_rows=ledger_rows,
        evaluations={**evaluation.models, **evaluation.baselines} if evaluation else None,
    )
    write_bytes(path.with_suffix(".html"), render(text, folder=out).encode())
    return path


def _summary(facts: RunFacts) -> str:
    if facts.crossover is None or facts.evaluation is None:
        return "The run is not complete; what has run is below."
    better = better_text(facts.evaluation)
    return f"**{facts.crossover.verdict}**" + (f"\n\n{better}" if better else "")


def _data(manifest: Manifest) -> str:
    rows = [[name, str(getattr(manifest, name))] for name in ("schema", *RECORDS)]
    text = markdown_table(["", "records"], rows)
    tasks = [[task.name, task.kind, ", ".join(map(plain, task.targets))] for task in manifest.inventory.tasks]
    text += "\n\nTargets of the schema; those that no training record has are not trained and not predicted.\n\n"
    text += markdown_table(["task", "kind", "targets"], tasks)
    if manifest.best_reachable is not None:
        text += (
            "\n\nThe records are generated; no model can reach an emotion cross-entropy below "
            f"{manifest.best_reachable:.4f} nats on average."
        )
    return text


def _sweep(out: Path, trials: list[Trial]) -> str:
    if not trials:
        return MISSING
    rows = [[f"{trial.rate:g}", "–" if trial.score is None else f"{trial.score:.5f}", trial.status] for trial in trials]
    scored = sorted((trial.rate, trial.score) for trial in trials if trial.score is not None)
    draw_lines(
        out / "figures" / "sweep.png",
        {"score": ([rate for rate, _ in scored], [score for _, score in scored])},
        title="Learning-rate sweep",
        xlabel="learning rate",
        ylabel="validation loss",
        log_x=True,
    )
    return markdown_table(["rate", "score", "status"], rows) + "\n\n![sweep](figures/sweep.png)"


def _training(out: Path, facts: RunFacts) -> str:
    events = facts.events
    epochs = [event for event in events if event["event"] == "epoch"]
    if not epochs:
        return MISSING
    # Logs of old do not name it.
    compute_types = [event["compute_type"] for event in events if "compute_type" in event]
    x = [event["epoch"] for event in epochs]
    draw_lines(
        out / "figures" / "loss.png",
        {"training": (x, [e["train_loss"] for e in epochs]), "validation": (x, [e["val_loss"] for e in epochs])},
        title="Loss",
        xlabel="epoch",
        ylabel="loss",
    )
    names = epochs[0]["val_module_loss"]
    predicting = [name for name in names if name.endswith("emotion") or name.startswith(("signal.", "phases."))]
    draw_lines(
        out / "figures" / "modules.png",
        {name: (x, [e["val_module_loss"][name] for e in epochs]) for name in predicting},
        title="Emotion loss of every module that predicts it",
        xlabel="epoch",
        ylabel="cross-entropy, nats",
    )
    # An epoch's own seconds are those since its last start, without the validation.
    steps_s = sum(event["step_s"] for event in events if event["event"] == "step")
    # Logs of old do not say how long a validation took.
    seconds = steps_s + sum(event.get("validation_s", 0.0) for event in epochs)
    last, best = epochs[-1], min(epochs, key=lambda event: event["val_loss"])
    rows = [
        ["epochs", str(len(epochs))],
        ["recipe", recipe_text(facts.config)],
        ["optimizer steps", str(last["step"])],
        ["computed in", computed_in(compute_types)],
        ["time of training, minutes", f"{seconds / 60:.1f}"],
        ["records a second, last epoch", f"{last['samples_per_s']:.1f}" if last["samples_per_s"] else "none"],
        ["peak host memory, GiB", f"{max(e['host_rss_peak_bytes'] for e in epochs) / GIB:.2f}"],
        *_planned(events),
        ["validation loss, best", f"{best['val_loss']:.4f} after epoch {best['epoch']}"],
        ["validation loss, last", f"{last['val_loss']:.4f}"],
    ]
    return markdown_table(["", ""], rows) + "\n\n![loss](figures/loss.png)\n\n![loss per module](figures/modules.png)"


def recipe_text(config: dict[str, Any]) -> str:
    """The recipe that a run followed, what it has otherwise, and what speaks for the recipe."""
    name, others = followed(config["train"], config["preset"])
    but = ", but " + ", ".join(f"{key} {value}" for key, value in others.items()) if others else ""
    return f"{name}{but} ({recipe_of(name, config['preset']).evidence})"


def _planned(events: Sequence[dict[str, Any]]) -> list[list[str]]:
    """What the planner said of the last start on a card, and how an estimate from before it was held by the clock."""
    rows = {}
    for event in events:
        if event["event"] == "chosen":
            rows["way to train"] = event["text"]
        elif event["event"] == "estimate_check":
            rows["seconds a step"] = (
                f"{event['step_s']:.2f}, expected {event['expected_step_s']:.2f} ({event['error_percent']:+.1f} %, "
                f"{event['basis']})"
            )
    return [[name, plain(text)] for name, text in rows.items()]


def computed_in(compute_types: list[str]) -> str:
    """The types of a run's starts one after the other; a dash where its log does not name them."""
    return ", then ".join(name for name, _ in groupby(compute_types)) or "–"


def _test(facts: RunFacts) -> str:
    evaluation = facts.evaluation
    judged = [opening.models for opening in facts.openings if opening.part == TEST]
    own = facts.crossover.digests if facts.crossover else None
    if evaluation is None:
        if own in judged:
            return "Opened for this choice, by a labelled file with records of it or an evaluation that was cut off."
        return "Opened for an earlier choice; the present one has not been evaluated." if judged else MISSING
    gain = evaluation.gain_test
    when = "before this split was opened"
    if any(models != own for models in judged):
        when = "after this split had been opened for another choice"
    return (
        f"Values with 95 % bootstrap intervals over records.{before_calibration(facts)}\n\n"
        + comparison_table({**evaluation.models, **evaluation.baselines})
        + f"\n\nGain of the crossover over the best single snapshot, of the loss: {gain.percent:+.2f} % "
        f"[{gain.low:+.2f}, {gain.high:+.2f}]. Recommended on the confirm half, {when}: `{evaluation.recommended}`."
    )
