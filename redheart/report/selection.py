"""The report's sections on the choice of snapshots: sweet spot, maps, crossover, and who has looked at what."""

from pathlib import Path
from typing import Any

import numpy as np

from redheart.report.figures import draw_heatmaps, draw_lines
from redheart.report.tables import code, markdown_table
from redheart.select.maps import Maps
from redheart.select.statistics import Gain
from redheart.select.sweet_spot import GroupSpot, SweetSpot

MISSING = "This phase has not run."
_SHOWN_SWAPS = 10


def sweet_spot_section(out: Path, spot: SweetSpot | None) -> str:
    """What was chosen, why, at what price, and what it is worth on the records of the choice."""
    if spot is None:
        return MISSING
    rows = [[name, str(group.blend), group.reason] for name, group in spot.groups.items()]
    naive = f", {spot.evaluations / spot.evaluations_naive:.1%} of {spot.evaluations_naive:.0f} with whole models"
    parts = [
        f"Strategy `{spot.strategy}` by {spot.level}; best single snapshot: epoch {spot.best_epoch}; "
        f"{spot.num_candidates} models compared for {spot.evaluations:.1f} full-model evaluations"
        f"{naive if spot.evaluations_naive else ''}.",
        markdown_table(["group", "epoch", "why"], rows),
        _gains({"the choice": spot.selection.gain, **spot.baselines}, "on the select records"),
    ]
    if spot.selection.percent_out_of_bag is not None:
        parts.append(
            f"The choice itself bootstrapped, its gain is {spot.selection.percent_out_of_bag:+.2f} % on the records "
            f"that were left out and {spot.selection.percent_in_bag:+.2f} % on those that it was made on."
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
        chosen = {name: float(spot.groups[name].blend.epochs[0]) for name in curves}
        draw_lines(
            out / "figures" / "sweet_spot.png",
            {name: _epoch_scores(spot.groups[name]) for name in curves},
            title="Score by the epoch of one group (lower is better), chosen epoch marked",
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


def crossover_section(crossover: Any) -> str:
    """The verdict and the figures that it rests on."""
    if crossover is None:
        return MISSING
    gains = {"select (the choice was made here)": crossover.gain_select, "confirm": crossover.gain_confirm}
    gains |= {f"confirm: {task}": gain for task, gain in crossover.tasks.items()}
    parts = [_gains(gains, "over the best single snapshot"), f"{crossover.num_candidates} models were compared."]
    if crossover.shrinkage is not None:
        parts[-1] += f" {crossover.shrinkage:.0%} of the gain on the select records is there on the confirm records."
    if crossover.num_judged > 1:
        parts[-1] += (
            f" The confirm records have judged {crossover.num_judged} choices of this run; "
            f"the interval's level is {crossover.gain_confirm.level:.1%} for that."
        )
    return "\n\n".join([*parts, crossover.verdict])


def openings_section(openings: list[Any]) -> str:
    """Every look at records that are kept for a verdict."""
    if not openings:
        return "Neither the confirm records nor the test split have been looked at."
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
