"""The report's section on calibration."""

from pathlib import Path

from redheart.report.facts import CalibrationFacts
from redheart.report.reliability import draw_reliability
from redheart.report.tables import markdown_table


def calibration_section(out: Path, calibration: CalibrationFacts | None) -> str:
    """What was tried, on which records, and the reliability diagram; `redheart calibrate` has made the figures."""
    if calibration is None:
        return "Not examined yet: `redheart calibrate RUN`."
    rows = [
        [
            name,
            f"{found.select_cross_entropy:.4f}",
            *[f"{value:.4f}" for value in (found.confirm.cross_entropy, found.confirm.kl, found.confirm.brier)],
            f"{found.confirm.ece:.4f}",
            f"{found.confirm.ece_noise_floor:.4f}",
        ]
        for name, found in calibration.methods.items()
    ]
    shown = dict.fromkeys(("none", calibration.candidate))
    bins = {name: calibration.methods[name].reliability for name in shown}
    draw_reliability(out / "figures" / "reliability.png", bins, num_records=calibration.num_confirm)
    return (
        f"Fitted on {calibration.num_select} select records, compared there on folds that the fit had not seen, and "
        f"judged on {calibration.num_confirm} confirm records. Confidence is held against the share that the labels "
        "give the predicted class.\n\n"
        + markdown_table(["method", "select: loss", "confirm: loss", "KL", "Brier", "ECE", "noise floor"], rows)
        + f"\n\n{calibration.verdict}\n\n![reliability](figures/reliability.png)"
    )
