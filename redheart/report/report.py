"""The report of a run in Markdown, with figures. Every number in it stands in a file of the run."""

from itertools import groupby
from pathlib import Path
from typing import Any

from redheart.core.files import write_bytes
from redheart.data.prepare import Manifest
from redheart.report.calibration import calibration_section
from redheart.report.facts import CalibrationFacts
from redheart.report.figures import draw_lines
from redheart.report.limitations import limitations
from redheart.report.selection import (
    MISSING,
    crossover_section,
    maps_section,
    openings_section,
    sweet_spot_section,
)
from redheart.report.tables import comparison_table, markdown_table, plain
from redheart.select.maps import Maps
from redheart.select.sweet_spot import SweetSpot


def write_report(
    out: Path,
    *,
    title: str,
    manifest: Manifest,
    ledger_rows: list[tuple[str, int]],
    trials: list[Any],
    epochs: list[dict[str, Any]],
    compute_types: list[str],
    spot: SweetSpot | None,
    maps: Maps | None,
    openings: list[Any],
    crossover: Any,
    evaluation: Any,
    calibration: CalibrationFacts | None = None,
) -> Path:
    """Write `report.md` and its figures below `out`; a phase that has not run (None, empty) is said to be missing.

    Args:
        out: folder of the report.
        title: what the run is called.
        manifest: of the prepared data.
        ledger_rows: module names and their numbers of parameters.
        trials: of the sweep.
        epochs: the epoch events of the main run.
        compute_types: what its starts computed in, in their order.
        spot: the sweet spot.
        maps: transplants and lines between snapshots.
        openings: of the confirm records and the test split.
        crossover: the crossover.
        evaluation: models and baselines on the test split.
        calibration: of the recommended model.
    """
    sections = [
        f"# {plain(title)}",
        _summary(crossover, evaluation),
        "## Data",
        _data(manifest),
        "## Model",
        _model(ledger_rows),
        "## Learning-rate sweep",
        _sweep(out, trials),
        "## Training",
        _training(out, epochs, compute_types),
        "## Sweet spot",
        sweet_spot_section(out, spot),
        "## Transplants and lines between snapshots",
        maps_section(out, maps),
        "## Crossover",
        crossover_section(crossover),
        "## Test split",
        _test(evaluation),
        "## Calibration",
        calibration_section(out, calibration),
        "## Records that were opened",
        openings_section(openings),
        "## Limitations",
        limitations(manifest, crossover, evaluation, calibration),
    ]
    path = out / "report.md"
    write_bytes(path, ("\n\n".join(sections) + "\n").encode())
    return path


def _summary(crossover: Any, evaluation: Any) -> str:
    if crossover is None or evaluation is None:
        return "The run is not complete; what has run is below."
    return f"**{crossover.verdict}**"


def _data(manifest: Manifest) -> str:
    names = ("schema", "read", "invalid", "duplicates", "train", "val_select", "val_confirm", "test")
    rows = [[name, str(getattr(manifest, name))] for name in names]
    text = markdown_table(["", "records"], rows)
    tasks = [[task.name, task.kind, ", ".join(map(plain, task.targets))] for task in manifest.inventory.tasks]
    text += "\n\n" + markdown_table(["task", "kind", "targets"], tasks)
    if manifest.best_reachable is not None:
        text += (
            "\n\nThe records are generated; no model can reach an emotion cross-entropy below "
            f"{manifest.best_reachable:.4f} nats on average."
        )
    return text


def _model(ledger_rows: list[tuple[str, int]]) -> str:
    total = sum(count for _, count in ledger_rows)
    return markdown_table(
        ["module", "parameters"], [[name, f"{count:,}"] for name, count in [*ledger_rows, ("total", total)]]
    )


def _sweep(out: Path, trials: list[Any]) -> str:
    if not trials:
        return MISSING
    rows = [[f"{trial.rate:g}", "–" if trial.score is None else f"{trial.score:.5f}", trial.status] for trial in trials]
    scored = [trial for trial in trials if trial.score is not None]
    draw_lines(
        out / "figures" / "sweep.png",
        {"score": ([trial.rate for trial in scored], [trial.score for trial in scored])},
        title="Learning-rate sweep",
        xlabel="learning rate",
        ylabel="validation loss",
        log_x=True,
    )
    return markdown_table(["rate", "score", "status"], rows) + "\n\n![sweep](figures/sweep.png)"


def _training(out: Path, epochs: list[dict[str, Any]], compute_types: list[str]) -> str:
    if not epochs:
        return MISSING
    x = [event["epoch"] for event in epochs]
    draw_lines(
        out / "figures" / "loss.png",
        {"training": (x, [e["train_loss"] for e in epochs]), "validation": (x, [e["val_loss"] for e in epochs])},
        title="Loss",
        xlabel="epoch",
        ylabel="loss",
    )
    draw_lines(
        out / "figures" / "modules.png",
        {name: (x, [e["val_module_loss"][name] for e in epochs]) for name in _emotion_modules(epochs)},
        title="Emotion loss of every module that predicts it",
        xlabel="epoch",
        ylabel="cross-entropy, nats",
    )
    seconds = sum(event["epoch_s"] for event in epochs)
    last, best = epochs[-1], min(epochs, key=lambda event: event["val_loss"])
    rows = [
        ["epochs", str(len(epochs))],
        ["optimizer steps", str(last["step"])],
        ["computed in", computed_in(compute_types)],
        ["time of training, minutes", f"{seconds / 60:.1f}"],
        ["records a second, last epoch", f"{last['samples_per_s']:.1f}"],
        ["peak host memory, GiB", f"{max(e['host_rss_peak_bytes'] for e in epochs) / 2**30:.2f}"],
        ["validation loss, best", f"{best['val_loss']:.4f} after epoch {best['epoch']}"],
        ["validation loss, last", f"{last['val_loss']:.4f}"],
    ]
    return markdown_table(["", ""], rows) + "\n\n![loss](figures/loss.png)\n\n![loss per module](figures/modules.png)"


def computed_in(compute_types: list[str]) -> str:
    """The types of a run's starts one after the other; a dash where its log does not name them."""
    return ", then ".join(name for name, _ in groupby(compute_types)) or "–"


def _emotion_modules(epochs: list[dict[str, Any]]) -> list[str]:
    names = epochs[0]["val_module_loss"]
    return [name for name in names if name.endswith("emotion") or name.startswith(("signal.", "phases."))]


def _test(evaluation: Any) -> str:
    if evaluation is None:
        return MISSING
    gain = evaluation.gain_test
    return (
        "Values with 95 % bootstrap intervals over records.\n\n"
        + comparison_table({**evaluation.models, **evaluation.baselines})
        + f"\n\nLoss of the crossover against the best single snapshot: lower by {gain.percent:+.2f} % "
        f"[{gain.low:+.2f}, {gain.high:+.2f}]. Recommended on the confirm half, before this split was opened: "
        f"`{evaluation.recommended}`."
    )
