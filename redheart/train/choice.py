"""Which way to train: what is asked for, and what is left open chosen among all that fits a card."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from redheart.core.config import TrainConfig
from redheart.memory.cards import Card
from redheart.memory.ledger import StrategySizes
from redheart.memory.plan import COMFORT_SHARE, Plan, Planner
from redheart.memory.replay import Replay
from redheart.memory.step_time import CardClock, HostSpeed, StepTime
from redheart.train.strategy import all_strategies, check_switches, strategy_sizes


@dataclass(frozen=True)
class OnCard:
    """What a plan says of a card beside its memory."""

    card: str
    step: StepTime
    run_s: tuple[float, float, float] | None
    """Seconds of all steps of the run: simulated, and from least to most; None where nobody said how many there are."""
    is_host_measured: bool
    others: list[tuple[Plan, float]]
    """The next best configurations, with their seconds of a step."""
    note: str | None
    """What is wrong with the card."""


@dataclass(frozen=True)
class Choice:
    """A plan, the replay behind it, what it was made with, and the nearest plan that fits where it does not."""

    plan: Plan
    replay: Replay
    planner: Planner
    sizes: StrategySizes
    clock: CardClock | None
    """Of the card that was named."""
    checkpointing: bool | None
    """What was asked: with, without, or either."""
    nearest: Plan | None
    left_out: tuple[str, ...] = ()
    """Switches that were asked for and that the nearest plan is without."""
    on_card: OnCard | None = None
    """Times on the card that was asked for."""
    hint: str | None = None
    """What makes it fit where no configuration does, in words of its own."""


def choose(
    train: TrainConfig,
    planner_in: Callable[[torch.dtype], Planner],
    *,
    vram_bytes: int,
    ranks: int = 1,
    comfort_share: float = COMFORT_SHARE,
    can_checkpoint: bool = True,
    shares: bool = False,
    card: Card | None = None,
    host: HostSpeed | None = None,
) -> Choice:
    """The way to train that is asked for, or the fastest one that fits.

    Args:
        train: strategy (`auto` for the fastest that fits), micro-batch (0 for the fastest that fits), checkpointing
            (False leaves it open where the micro-batch is), and its switches.
        planner_in: of the workload in a type; it is asked several times.
        vram_bytes: of the card.
        ranks: devices, for the strategies that divide the work.
        comfort_share: of the card that is not exceeded if anything stays below it.
        can_checkpoint: whether the model can recompute its activations.
        shares: whether as much of the optimizer lies on the card as there is room for.
        card: whose times configurations are ranked by; without one the ranking is that of no card.
        host: what the card's host was measured to do.

    Raises:
        BadInput: an unknown strategy, or a switch that it does not have.
    """

    def clock_of(planner: Planner) -> CardClock | None:
        return CardClock(card, planner, host, has_dropout=train.dropout > 0) if card else None

    def fastest(planner: Planner, offered: list[StrategySizes]) -> Plan | None:
        clock = clock_of(planner)
        return planner.fastest(offered, checkpointing=recompute, cost=clock.cost if clock else None, **limits)

    def nearest_in(way: TrainConfig, own: list[StrategySizes]) -> Plan | None:
        others = [item for item in _offered(way, ranks=ranks) if item.kind is not sizes.kind]
        nearest = planner.fastest(own, checkpointing=either, **limits)
        return nearest or planner_in(torch.bfloat16).fastest(others, checkpointing=either, **limits)

    limits: dict[str, Any] = {"vram_bytes": vram_bytes, "comfort_share": comfort_share}
    either, micro = None if can_checkpoint else False, train.micro_batch
    # Either, unless it is asked for, or a micro-batch is.
    recompute = asked = train.checkpointing or (False if micro else either)
    name = train.strategy
    if name == "auto":
        found = fastest(planner_in(torch.bfloat16), _offered(train, ranks=ranks))
        name = found.strategy if found else TrainConfig().strategy
    sizes = strategy_sizes(name, train, ranks=ranks)
    switches = replace(train, card_share=1.0) if shares else train
    # A strategy that was not named need not be one whose optimizer can be divided.
    shares = shares and (train.strategy != "auto" or sizes.kind.takes_share)
    check_switches(sizes.kind, switches if shares else train, ranks=ranks)
    planner = planner_in(sizes.kind.card_dtype)
    clock = clock_of(planner)
    if shares:
        cost = clock.cost if clock else None
        found = planner.with_share(sizes, vram_bytes=vram_bytes, checkpointing=recompute, micro_batch=micro, cost=cost)
        if found:
            sizes = replace(sizes, card_share=found.card_share)
            micro, recompute = found.micro_batch, found.checkpointing
    if not micro:
        found = fastest(planner, [sizes])
        micro, recompute = (found.micro_batch, found.checkpointing) if found else (1, recompute is not False)
    plan, replay = planner.plan(sizes, micro_batch=micro, checkpointing=bool(recompute), vram_bytes=vram_bytes)
    nearest: Plan | None = None
    left_out: tuple[str, ...] = ()
    if not plan.fits:
        # A strategy that was not named need not take a share, and would be refused with one once it is.
        nearest = nearest_in(switches, [sizes] if shares or switches is train else [])
        if nearest is None and _asked(switches):
            bare, left_out = replace(train, card_share=0.0, pipeline=False, graphs=False), _asked(switches)
            nearest = nearest_in(bare, [strategy_sizes(name, bare, ranks=ranks)])
    return Choice(plan, replay, planner, sizes, clock, asked, nearest, left_out)


def _offered(train: TrainConfig, *, ranks: int) -> list[StrategySizes]:
    """What is chosen from with these switches."""
    # What is asked of the optimizer on the host is a question among those that have one.
    on_host = train.pipeline or train.card_share > 0
    kinds = [item for item in all_strategies() if item.is_offered and (item.takes_share or not on_host)]
    return [strategy_sizes(item.name, train, ranks=ranks) for item in kinds]


def _asked(train: TrainConfig) -> tuple[str, ...]:
    """The switches that are on."""
    switches = {"card-share": train.card_share > 0, "pipeline": train.pipeline, "graphs": train.graphs}
    return tuple(name for name, is_on in switches.items() if is_on)
