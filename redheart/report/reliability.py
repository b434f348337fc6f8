"""Reliability diagram: what confidence is worth, with how many records stand behind every point."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from redheart.evaluate.reliability import Bin
from redheart.report.figures import save_png


def draw_reliability(path: Path, bins: Mapping[str, Sequence[Bin]], *, num_records: int) -> None:
    """Draw mean confidence against the labels' mean share, and below it the number of records of every bin."""
    figure = Figure(figsize=(5.2, 6.0), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--", label="calibrated")
    for offset, (name, found) in enumerate(bins.items()):
        label = "without calibration" if name == "none" else name
        upper.plot(
            [item.confidence for item in found], [item.share for item in found], "o-", label=label, linewidth=1.4
        )
        width = 0.8 * (found[0].high - found[0].low) / len(bins) if found else 0
        left = [item.low + 0.1 * (item.high - item.low) + offset * width for item in found]
        lower.bar(left, [item.num_records for item in found], width=width, align="edge")
    upper.set(title=f"Reliability on {num_records} confirm records", ylabel="labels' share of it")
    upper.set(xlim=(0, 1), ylim=(0, 1))
    lower.set(xlabel="confidence in the predicted class", ylabel="records")
    upper.legend(fontsize=8)
    for axes in (upper, lower):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    save_png(figure, path)
