"""What a person is told of a sweet spot and a crossover."""

from redheart.select.sweet_spot import SweetSpot
from redheart.study.crossover import Crossover

_SHOWN_SWAPS = 5


def sweet_spot_lines(spot: SweetSpot) -> list[str]:
    """The choice, what it cost, and what it is worth where it was made."""
    lines = [f"best single snapshot: epoch {spot.best_epoch} of {len(spot.epochs)} snapshots", ""]
    width = max(len(name) for name in spot.groups)
    lines += [f"  {name:<{width}}  epoch {group.blend!s:<24}  {group.reason}" for name, group in spot.groups.items()]
    selection = spot.selection
    lines += ["", f"{spot.strategy} by {spot.level}: {spot.num_candidates} models compared; {work_text(spot)}"]
    lines.append(f"gain over the best single snapshot, on the records of the choice: {selection.gain}")
    if selection.percent_out_of_bag is not None:
        lines.append(f"the same with the choice itself bootstrapped: {selection.percent_out_of_bag:+.2f} %")
    for swap in spot.swaps[:_SHOWN_SWAPS]:
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
        return "from stored outputs, no model was run"
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
    if crossover.shrinkage is not None:
        lines.append(f"shrinkage: {crossover.shrinkage:.0%} of the gain on the select records is there on the others")
    lines += [f"  {task:<8} {gain}" for task, gain in crossover.tasks.items()]
    if crossover.num_judged > 1:
        lines.append(
            f"The confirm records have judged {crossover.num_judged} choices of this run; the level counts them."
        )
    return [*lines, "", crossover.verdict, f"Final model: {crossover.recommended}, in `select/final`."]
