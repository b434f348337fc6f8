"""The plan of a card that need not be here: its fastest configuration, how long a run takes, and what comes next."""

from collections.abc import Sequence
from dataclasses import dataclass

from redheart.core.units import GIB
from redheart.memory.ledger import StrategySizes
from redheart.memory.plan import Cost, Plan, Planner
from redheart.memory.step_time import CardClock, StepTime

LANES = {
    "card": "the card's computing",
    "launches": "launching operators",
    "gradients": "the host's taking gradients in",
    "host": "the optimizer on the host",
    "bus": "the bus",
    "order": "one lane's waiting for another",
    "rest": "DeepSpeed and the loop",
}
NO_BF16 = (
    "no bf16 units before Ampere: torch emulates them, without the attention kernels that memory is planned with, and "
    "the time above takes products to be as fast as in float32"
)


@dataclass(frozen=True)
class OnCard:
    """What a plan says of a card beside its memory."""

    plan: Plan
    card: str
    step: StepTime
    run_s: tuple[float, float, float] | None
    """Seconds of all steps of the run: simulated, and from least to most; None where nobody said how many there are."""
    is_host_measured: bool
    others: list[tuple[Plan, float]]
    """The next best configurations, with their seconds of a step."""
    note: str | None
    """What is wrong with the card."""


def step_alone(clock: CardClock, plan: Plan, sizes: StrategySizes) -> OnCard:
    """The time of a plan's step for a model of somebody's, of whose run nothing is known."""
    note = "the constants are those of our full model; no step of this one has been measured"
    if clock.card.bf16_tflops is None and sizes.weight_bytes < 4:
        note = NO_BF16
    step = clock.time(sizes, plan.micro_batch, plan.checkpointing)
    return OnCard(plan, clock.card.name, step, None, clock.host is not None, [], note)


def next_best(
    planner: Planner,
    chosen: Plan,
    strategies: Sequence[StrategySizes],
    cost: Cost,
    *,
    checkpointing: bool | None,
    count: int,
) -> list[tuple[Plan, float]]:
    """The fastest other configurations that fit, with their seconds of a step.

    Args:
        planner: of the workload.
        chosen: what is left out.
        strategies: what to choose from.
        cost: of the card.
        checkpointing: with, without, or either.
        count: how many.
    """
    found: list[tuple[Plan, float]] = []
    for step_s, strategy, size, recompute in planner.by_time(strategies, cost, checkpointing):
        setting = {"micro_batch": size, "checkpointing": recompute, "vram_bytes": chosen.vram_bytes}
        plan, _ = planner.plan(strategy, **setting, is_search=True)  # type: ignore[arg-type]
        if plan.fits and setting_text(plan) != setting_text(chosen):
            found.append((plan, step_s))
        if len(found) == count:
            break
    return found


def card_lines(found: OnCard) -> list[str]:
    """For people: the time, what it waits for, and the next configurations."""
    step, plan = found.step, found.plan
    if plan.step_s is not None and plan.run_s is not None:
        time = f"{plan.step_s:.2f} s a step, {plan.run_s / 3600:.1f} hours of steps (measured: {plan.time_basis})"
    else:
        time = f"{step.step_s:.2f} s a step ({step.low_s:.2f} to {step.high_s:.2f}), "
        if found.run_s:
            hours, fewest, most = (seconds / 3600 for seconds in found.run_s)
            time += f"{hours:.1f} hours of steps ({fewest:.1f} to {most:.1f}), "
        time += f"simulated, {found.card}"
    lines = [f"{'time':<14} {time}"]
    waits = sorted(step.waits_s.items(), key=lambda item: -item[1])
    shares = ", ".join(f"{LANES[name]} ({seconds:.2f} s)" for name, seconds in waits if seconds)
    lines.append(f"{'bound by':<14} {shares}")
    lines += [f"{'also fits':<14} {other_line(plan, step.step_s, *other)}" for other in found.others]
    if not found.is_host_measured:
        lines.append(f"{'host':<14} not measured: `redheart doctor --measure` narrows the time")
    return [*lines, *([f"{'note':<14} {found.note}"] if found.note else [])]


def setting_text(plan: Plan, *, before_size: str = "") -> str:
    """A configuration in a few words."""
    share = f", {plan.card_share:g} of the optimizer on the card" if plan.card_share else ""
    recompute = ", checkpointing" if plan.checkpointing else ""
    return f"{plan.strategy}, {before_size}{plan.micro_batch} x {plan.accumulation_steps}{recompute}{share}"


def other_line(chosen: Plan, chosen_s: float, other: Plan, other_s: float) -> str:
    """What another configuration would save or cost beside the chosen one."""
    seconds, size = other_s - chosen_s, (other.peak_bytes - chosen.peak_bytes) / GIB
    time = "as fast" if abs(seconds) < 0.005 else f"{abs(seconds):.2f} s a step {'slower' if seconds > 0 else 'faster'}"
    return f"{setting_text(other)}: {time}, {abs(size):.2f} GiB {'more' if size > 0 else 'less'}"
