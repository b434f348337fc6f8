"""What is said of the choice of snapshots, in the report's sections and in the terminal."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from redheart.evaluate.holdout_log import Opening
from redheart.evaluate.results import Crossover
from redheart.report.figures import draw_heatmaps, draw_lines
from redheart.report.tables import code, markdown_table
from redheart.select.maps import Maps
from redheart.select.statistics import Gain, level_text
from redheart.select.sweet_spot import GroupSpot, SweetSpot

MISSING = "This phase has not run."
_SHOWN_SWAPS, _SHOWN_LINES = 10, 5
"""Swaps in the report and in the terminal."""


def sweet_spot_section(out: Path, spot: SweetSpot | None, *, bests: str | None) -> str:
    """What was chosen, why, at what price, and what it is worth on the records of the choice."""
    if spot is None:
        return MISSING
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
        rows = [
            [swap.group, str(swap.blend), f"{swap.percent:+.2f} %", _z(swap.z), f"{swap.p_holm:.2g}"]
            for swap in spot.swaps[:_SHOWN_SWAPS]
        ]
        header = ["swap tried", "epoch", "loss lower by", "z", f"p, Holm over {len(spot.swaps)}"]
        parts.append(markdown_table(header, rows))
    curves = {name: points for name, group in spot.groups.items() if len(points := _epoch_scores(group)[0]) > 1}
    if curves:
        blends = {name: spot.groups[name].blend for name in curves}
        chosen = {name: float(blend.epochs[0]) for name, blend in blends.items() if len(blend.epochs) == 1}
        draw_lines(
            out / "figures" / "sweet_spot.png",
            {name: _epoch_scores(spot.groups[name]) for name in curves},
            title="Score by the epoch of one group (lower is better); an epoch that was chosen is marked",
            xlabel="epoch of the group",
            ylabel="score",
            marks=chosen,
        )
        parts.append("![sweet spot](figures/sweet_spot.png)")
    return "\n\n".join(parts)


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


def crossover_section(crossover: Crossover | None, spot: SweetSpot | None) -> str:
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


def _epoch_scores(group: GroupSpot) -> tuple[list[float], list[float]]:
    """Scores of the single snapshots that were compared for a group."""
    single = [item for item in group.scores if len(item.blend.epochs) == 1]
    return [float(item.blend.epochs[0]) for item in single], [item.score for item in single]


def _z(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def sweet_spot_lines(spot: SweetSpot, *, bests: str | None) -> list[str]:
    """The choice, what it cost, and what it is worth where it was made; `bests` from `best_epochs_text`."""
    lines = [f"best single snapshot: epoch {spot.best_epoch} of {len(spot.epochs)} snapshots"]
    lines += [bests, ""] if bests else [""]
    width = max(len(name) for name in spot.groups)
    lines += [f"  {name:<{width}}  epoch {group.blend!s:<24}  {group.reason}" for name, group in spot.groups.items()]
    selection = spot.selection
    lines += ["", f"{spot.strategy} by {spot.level}: {spot.num_candidates} models compared; {work_text(spot)}"]
    lines.append(f"gain over the best single snapshot, on the records of the choice: {selection.gain}")
    if selection.percent_out_of_bag is not None:
        lines.append(f"the same with the last choice bootstrapped: {selection.percent_out_of_bag:+.2f} %")
    for swap in spot.swaps[:_SHOWN_LINES]:
        if swap.percent > 0:
            lines.append(
                f"  {swap.group} from epoch {swap.blend}: {swap.percent:+.2f} %, p = {swap.p_holm:.2g} "
                f"after {len(spot.swaps)} swaps (Holm)"
            )
    lines += [f"  {name:<12} {gain}" for name, gain in spot.baselines.items()]
    return [*lines, "", "What it is worth on records that it has not seen: `redheart crossover RUN`."]


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


def crossover_lines(crossover: Crossover) -> list[str]:
    """The verdict and the figures that it rests on."""
    lines = [
        f"select   {crossover.gain_select}  (the choice was made here, among {crossover.num_candidates})",
        f"confirm  {crossover.gain_confirm}",
    ]
    lines += [f"  {task:<8} {gain}" for task, gain in crossover.tasks.items()]
    return [
        *lines,
        *_notes(crossover),
        "",
        crossover.verdict,
        f"Final model: {crossover.recommended}, in `select/final`.",
    ]


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
