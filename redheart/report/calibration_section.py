"""What is said of a calibration, in the report and in the terminal, and its reliability diagram."""

from pathlib import Path

from matplotlib.figure import Figure

from redheart.evaluate.results import CalibrationResult
from redheart.report.figures import save_png
from redheart.report.tables import markdown_table


def calibration_text(calibration: CalibrationResult) -> str:
    """What was tried, on which records, and the verdict."""
    rows = []
    for name, found in calibration.methods.items():
        scores = found.confirm
        figures = (scores.cross_entropy, scores.kl, scores.brier, scores.ece, scores.ece_noise_floor)
        rows.append([name, *[f"{value:.4f}" for value in (found.select_cross_entropy, *figures)]])
    return (
        f"Fitted on {calibration.num_select} select records, compared there on folds that the fit had not seen, and "
        f"judged on {calibration.num_confirm} confirm records. Confidence is held against the share that the labels "
        "give the predicted class.\n\n"
        + markdown_table(["method", "select: loss", "confirm: loss", "KL", "Brier", "ECE", "noise floor"], rows)
        + f"\n\n{calibration.verdict}"
    )


def calibration_section(out: Path, calibration: CalibrationResult | None) -> str:
    """`calibration_text`, and the reliability diagram; `redheart calibrate` has made the figures."""
    if calibration is None:
        return "Not examined yet: `redheart calibrate RUN`."
    draw_reliability(out / "figures" / "reliability.png", calibration)
    return f"{calibration_text(calibration)}\n\n![reliability](figures/reliability.png)"


def draw_reliability(path: Path, calibration: CalibrationResult) -> None:
    """Draw mean confidence against the labels' mean share, and below it the number of records of every bin."""
    bins = {name: calibration.methods[name].reliability for name in dict.fromkeys(("none", calibration.candidate))}
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
    upper.set(title=f"Reliability on {calibration.num_confirm} confirm records", ylabel="labels' share of it")
    upper.set(xlim=(0, 1), ylim=(0, 1))
    lower.set(xlabel="confidence in the predicted class", ylabel="records")
    upper.legend(fontsize=8)
    for axes in (upper, lower):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    save_png(figure, path)
