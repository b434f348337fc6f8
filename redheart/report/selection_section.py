"""What is said of the choice of snapshots, in the report and in the terminal."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from redheart.evaluate.holdout_log import Opening
from redheart.evaluate.results import Crossover
from redheart.report.figures import draw_heatmaps, draw_lines
from redheart.report.tables import code, markdown_table
from redheart.select.maps import Maps
from redheart.select.statistics import Gain, level_text
from redheart.select.sweet_spot import SweetSpot

MISSING = "This phase has not run."
_SHOWN_SWAPS = 10


def sweet_spot_text(spot: SweetSpot, *, bests: str | None) -> str:
    """What was chosen, why, at what price, and what it is worth on the records of the choice.

    `bests` is from `best_epochs_text`.
    """
    rows = [[name, str(group.blend), group.reason] for name, group in spot.groups.items()]
    parts = [
        f"Strategy `{spot.strategy}` by {spot.level}; best single snapshot: epoch {spot.best_epoch}; "
        f"{spot.num_candidates} models compared; {work_text(spot)}.",
        *([f"B{bests[1:]}."] if bests else []),
        markdown_table(["group", "epoch", "why"], rows),
        _gains({"the choice": spot.selection.gain, **spot.baselines}, "on the select records"),
    ]
    if spot.selection.percent_out_of_bag is not None:
        parts.append(
            "Bootstrapped, the last choice among the models that the search had found on these records gains "
            f"{spot.selection.percent_out_of_bag:+.2f} % on the records that were left out and "
            f"{spot.selection.percent_in_bag:+.2f} % on those that it was made on; "
            "the search's own optimism is in both."
        )
    if spot.swaps:
        rows = []
        for swap in spot.swaps[:_SHOWN_SWAPS]:
            z = "–" if swap.z is None else f"{swap.z:.1f}"
            rows.append([swap.group, str(swap.blend), f"{swap.percent:+.2f} %", z, f"{swap.p_holm:.2g}"])
        header = ["swap tried", "epoch", "loss lower by", "z", f"p, Holm over {len(spot.swaps)}"]
        parts.append(markdown_table(header, rows))
    return "\n\n".join(parts)


def sweet_spot_section(out: Path, spot: SweetSpot | None, *, bests: str | None) -> str:
    """`sweet_spot_text`, and the scores by epoch as a picture."""
    if spot is None:
        return MISSING
    text = sweet_spot_text(spot, bests=bests)
    curves, chosen = {}, {}
    for name, group in spot.groups.items():
        single = [item for item in group.scores if len(item.blend.epochs) == 1]
        if len(single) > 1:
            curves[name] = ([float(item.blend.epochs[0]) for item in single], [item.score for item in single])
            if len(group.blend.epochs) == 1:
                chosen[name] = float(group.blend.epochs[0])
    if not curves:
        return text
    draw_lines(
        out / "figures" / "sweet_spot.png",
        curves,
        title="Score by the epoch of one group (lower is better); an epoch that was chosen is marked",
        xlabel="epoch of the group",
        ylabel="score",
        marks=chosen,
    )
    return f"{text}\n\n![sweet spot](figures/sweet_spot.png)"


def maps_section(out: Path, maps: Maps | None) -> str:
    """Transplants and interpolation lines as pictures."""
    if maps is None:
        return MISSING
    draw_heatmaps(
        out / "figures" / "transplants.png",
        {name: np.array(table) for name, table in maps.transplants.items()},
        labels=[str(epoch) for epoch in maps.epochs],
        title="Loss lower by, in percent: a group of one snapshot in another",
        xlabel="into snapshot",
        ylabel="group of epoch",
    )
    draw_lines(
        out / "figures" / "lines.png",
        {f"{line.epochs[0]} to {line.epochs[1]}": (line.shares, line.scores) for line in maps.lines},
        title="Score along the line between two snapshots",
        xlabel="share of the second one",
        ylabel="score",
    )
    rows = [[f"{line.epochs[0]} to {line.epochs[1]}", f"{line.barrier_percent:.2f} %"] for line in maps.lines]
    return "\n\n".join(
        [
            "![transplants](figures/transplants.png)",
            "![lines](figures/lines.png)",
            markdown_table(["between snapshots", "barrier"], rows),
            f"On the select records; {maps.evaluations:.1f} full-model evaluations.",
        ]
    )


def crossover_section(crossover: Crossover | None, spot: SweetSpot | None = None) -> str:
    """The verdict and the figures that it rests on; `spot` is the run's choice by now."""
    if crossover is None:
        return MISSING
    gains = {"select (the choice was made here)": crossover.gain_select, "confirm": crossover.gain_confirm}
    gains |= {f"confirm: {task}": gain for task, gain in crossover.tasks.items()}
    said = " ".join([f"{crossover.num_candidates} models were compared.", *_notes(crossover)])
    if spot and spot.modules != crossover.modules:
        said += " This is an earlier choice than that of the sweet spot: `redheart crossover RUN` judges that one."
    return "\n\n".join([_gains(gains, "over the best single snapshot"), said, crossover.verdict])


def openings_section(openings: Sequence[Opening]) -> str:
    """Every look at records that are kept for a verdict."""
    if not openings:
        return "No model was compared with another on the confirm records or the test split."
    rows = [
        [
            opening.part,
            str(opening.num_records),
            opening.time_utc,
            code(opening.command),
            ", ".join(f"{name} {digest[:12]}" for name, digest in opening.models.items()),
        ]
        for opening in openings
    ]
    return markdown_table(["part", "records", "opened (UTC)", "by", "models"], rows)


def _gains(gains: dict[str, Gain], what: str) -> str:
    rows = [
        [name, f"{gain.percent:+.2f} %", f"{gain.low:+.2f} %", f"{gain.high:+.2f} %", str(gain.num_records)]
        for name, gain in gains.items()
    ]
    return markdown_table([f"gain {what}", "loss lower by", "low", "high", "records"], rows)


def work_text(spot: SweetSpot) -> str:
    """What the search cost, beside the naive way."""
    if not spot.evaluations_naive:
        return f"from stored outputs; {spot.work.evaluations:.1f} full-model evaluations to show it beside others"
    share = spot.evaluations / spot.evaluations_naive
    reused = f", {spot.num_reused} known from before" if spot.num_reused else ""
    return (
        f"{spot.evaluations:.1f} full-model evaluations (by operations of matrix products), "
        f"{share:.1%} of the {spot.evaluations_naive:.0f} that whole models would take{reused}"
    )


def _notes(crossover: Crossover) -> list[str]:
    found = []
    # A share of what may be nothing is nothing to be said.
    if crossover.shrinkage is not None and crossover.gain_confirm.is_evidence and crossover.gain_select.is_evidence:
        found.append(f"{crossover.shrinkage:.0%} of the gain on the select records is there on the confirm records.")
    if crossover.num_judged > 1:
        found.append(
            f"This is choice {crossover.num_judged} of this run that the confirm records judge; "
            f"the intervals' level is {level_text(crossover.gain_confirm.level)} for that."
        )
    return found
