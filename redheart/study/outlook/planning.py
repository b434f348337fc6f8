"""The planner for this model: a study's configuration in, a verdict out; refusals name what fits."""

import dataclasses
import re
import shutil
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec
import torch

from redheart.core.config import FEATURE_WIDTH, StudyConfig, TrainConfig
from redheart.core.errors import BadInput, DoesNotFit
from redheart.core.units import GIB, MIB
from redheart.data.features import record_bytes
from redheart.data.loader import kept_channels
from redheart.data.split import expected_rows
from redheart.memory.cards import Card
from redheart.memory.kernels import CPU, Kernels
from redheart.memory.ledger import StrategySizes, model_sizes
from redheart.memory.plan import COMFORT_SHARE, Cost, Plan, Planner
from redheart.memory.step_time import CardClock
from redheart.memory.trace import Workload
from redheart.model.blocks import set_checkpointing, spelled_out_attention
from redheart.model.dims import preset
from redheart.model.losses import multitask_loss
from redheart.model.network import build
from redheart.study.outlook import timings
from redheart.train.choice import Choice, OnCard, choose
from redheart.train.device.compute_type import compute_type
from redheart.train.strategy import strategy_sizes
from redheart.train.zero.groups import parameter_groups

NUM_OTHERS = 2
"""Configurations that a plan with times names beside the chosen one."""
NUM_RECORDS = 8858
"""Records that disk and time are planned for where no data set is at hand: the size of the real one."""
EPOCH_EVENT_BYTES, STEP_EVENT_BYTES = 4096, 400
"""Of an epoch's line in the log and of a step's with its samples of memory: measured 2,047 and 260."""
NO_BF16 = (
    "no bf16 units before Ampere: torch emulates them, without the attention kernels that memory is planned with, and "
    "the time above takes products to be as fast as in float32"
)
TIMED = ("zero2_offload_adam8bit", "gpu_adam8bit")
"""Those whose steps were measured on a card; a plan for a card names what else they offer."""


def parse_bytes(text: str, *, least_bytes: float = 0.5 * GIB) -> int:
    """`8GiB`, `8GB`, `512MiB` or plain bytes.

    Raises:
        BadInput: anything else, or less than the least, or more than 1024 GiB.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(GiB|GB|MiB|MB|B)?\s*", text)
    units = {"GiB": GIB, "GB": 10**9, "MiB": MIB, "MB": 10**6, "B": 1, None: 1}
    # Of some hundred digits a float is infinite, which is no integer.
    size = float(match[1]) * units[match[2]] if match else 0.0
    if not match or not least_bytes <= size <= 1024 * GIB:
        least = f"{least_bytes / GIB:g}"
        raise BadInput(
            "not a size of device memory", got=text, expected=f"for example 8GiB, between {least} and 1024 GiB"
        )
    return int(size)


def answer(
    config: StudyConfig,
    *,
    vram_bytes: int,
    strategy: str | None = None,
    micro_batch: int | None = None,
    ranks: int = 1,
    card: Card | None = None,
    comfort_share: float = COMFORT_SHARE,
    shares: bool = False,
    num_records: int = NUM_RECORDS,
) -> Choice:
    """Plan a study: its strategy or `auto`, its micro-batch or the best that fits, with times where a card is named.

    `comfort_share` of the card is not exceeded if anything stays below it. With `shares` as much of the optimizer lies
    on the card as there is room for. Disk and time are those of so many records, before they are split.

    Raises:
        BadInput: an unknown strategy.
    """
    if ranks > 1:
        # What several devices tell each other was never timed.
        card = None
    found = choose(
        dataclasses.replace(config.train, strategy=strategy or config.train.strategy, micro_batch=micro_batch or 0),
        lambda dtype: planner_of(config, dtype=dtype, num_records=num_records),
        vram_bytes=vram_bytes,
        ranks=ranks,
        comfort_share=comfort_share,
        shares=shares,
        card=card,
        host=timings.recall_host(),
    )
    steps = _steps_of_epoch(config, num_records) * config.epochs
    found = dataclasses.replace(found, plan=_timed(config, found.plan, steps=steps, ranks=ranks, card=card))
    on_card = _on_card(config, found, found.clock, steps=steps) if found.clock else None
    return dataclasses.replace(found, on_card=on_card)


def _steps_of_epoch(config: StudyConfig, num_records: int) -> int:
    return -(-expected_rows(num_records)["train"] // config.train.effective_batch)


def _on_card(config: StudyConfig, found: Choice, clock: CardClock, *, steps: int) -> OnCard:
    """Times of a plan and of a run of so many steps, and what else there is."""
    plan, sizes, planner = found.plan, found.sizes, found.planner
    step = clock.time(sizes, plan.micro_batch, plan.checkpointing)
    is_float32 = sizes.weight_bytes == 4
    others: list[tuple[Plan, float]] = []
    limits: dict[str, Any] = {"checkpointing": found.checkpointing, "cost": clock.cost}
    if plan.fits and sizes.kind.takes_share and not plan.card_share and not sizes.ring_bytes:
        shared = planner.with_share(sizes, vram_bytes=plan.vram_bytes, **limits)
        if shared and shared.card_share:
            sharing = dataclasses.replace(sizes, card_share=shared.card_share)
            others.append((shared, clock.cost(sharing, shared.micro_batch, shared.checkpointing)))
    if plan.fits:
        alone = dataclasses.replace(config.train, card_share=0.0)
        offered = [sizes] if is_float32 else [strategy_sizes(name, alone) for name in TIMED]
        others += islice(_next_best(planner, plan, offered, **limits), NUM_OTHERS - len(others))
        others.sort(key=itemgetter(1))
    note = None
    if clock.card.bf16_tflops is None and not is_float32:
        bare = dataclasses.replace(config.train, card_share=0.0, pipeline=False, graphs=False)
        asked = dataclasses.replace(config, train=bare)
        in_float32 = answer(asked, vram_bytes=plan.vram_bytes, strategy="fp32_adamw", micro_batch=1).plan
        verdict = "fits" if in_float32.fits else f"takes {in_float32.upper_bytes / GIB:.1f} GiB; --preset small fits"
        note = f"{NO_BF16}; in float32 throughout (--strategy fp32_adamw) `{config.preset}` {verdict}"
    elif sizes.kind.name not in TIMED:
        note = "no step of this strategy has been measured on a card: its time is a guess"
    run_s = (steps * step.step_s, steps * step.low_s, steps * step.high_s)
    return OnCard(clock.card.name, step, run_s, clock.host is not None, others, note)


def _next_best(
    planner: Planner, chosen: Plan, strategies: Sequence[StrategySizes], *, cost: Cost, checkpointing: bool | None
) -> Iterator[tuple[Plan, float]]:
    """The other configurations that fit, with their seconds of a step by `cost`, the fastest first."""
    for step_s, strategy, size, recompute in planner.by_time(strategies, cost, checkpointing):
        plan, _ = planner.plan(
            strategy, micro_batch=size, checkpointing=recompute, vram_bytes=chosen.vram_bytes, is_search=True
        )
        if plan.fits and plan.setting_text() != chosen.setting_text():
            yield plan, step_s


def step_alone(clock: CardClock, plan: Plan, sizes: StrategySizes) -> OnCard:
    """The time of a plan's step for a model of somebody's, of whose run nothing is known."""
    note = "the constants are those of our full model; no step of this one has been measured"
    if clock.card.bf16_tflops is None and sizes.weight_bytes < 4:
        note = NO_BF16
    step = clock.time(sizes, plan.micro_batch, plan.checkpointing)
    return OnCard(clock.card.name, step, None, clock.host is not None, [], note)


def _timed(config: StudyConfig, plan: Plan, *, steps: int, ranks: int, card: Card | None) -> Plan:
    """The plan with its times, where this machine, or the card that is asked for, has taken such steps before."""
    effective_batch, length = config.train.effective_batch, config.features.seq_len_tokens
    train = dataclasses.replace(
        config.train, strategy=plan.strategy, checkpointing=plan.checkpointing, micro_batch=plan.micro_batch
    )
    measured = timings.recall(dataclasses.replace(config, train=train), ranks=ranks, card=card)
    if measured is None:
        unknown = "steps of several ranks were never timed; a training measures them" if ranks > 1 else None
        return msgspec.structs.replace(plan, time_basis=unknown)
    step_s = measured.step_s(effective_batch=effective_batch, seq_len_tokens=length)
    basis = f"steps of {measured.micro_batch} x {measured.seq_len_tokens} tokens on {measured.device}"
    return msgspec.structs.replace(plan, step_s=step_s, run_s=step_s * steps, time_basis=basis)


def refuse_unless_fits(found: Choice, *, prefix: str = "--train.") -> None:
    """Turn a verdict against a run into a `DoesNotFit` with the nearest configuration that fits; see `nearest_text`."""
    plan = found.plan
    if not plan.fits:
        raise DoesNotFit(
            "the run does not fit into device memory",
            where=f"strategy {plan.strategy}, micro-batch {plan.micro_batch}, at {plan.peak_moment}",
            got=f"predicted {plan.peak_bytes / GIB:.2f} GiB, upper bound {plan.upper_bytes / GIB:.2f} GiB",
            expected=f"at most {plan.vram_bytes / GIB:.2f} GiB",
            hint=nearest_text(found, prefix=prefix),
        )


def nearest_text(found: Choice, *, prefix: str) -> str:
    """The change that makes a refused run fit, as options that begin with `--train.`, or as `plan` has them."""
    nearest = found.nearest
    if nearest is None:
        return found.hint or "no strategy fits this card; take a smaller --preset"
    recompute = f" {prefix}checkpointing" + (" True" if prefix == "--train." else "") if nearest.checkpointing else ""
    without = " without " + ", ".join(prefix + name for name in found.left_out) if found.left_out else ""
    return (
        f"this fits{without}: {prefix}strategy {nearest.strategy} {prefix}micro-batch {nearest.micro_batch}{recompute} "
        f"({nearest.peak_bytes / GIB:.2f} GiB, at most {nearest.upper_bytes / GIB:.2f} GiB)"
    )


def planner_of(config: StudyConfig, *, dtype: torch.dtype = torch.bfloat16, num_records: int = NUM_RECORDS) -> Planner:
    """A planner of the study's workload, with the traces of earlier questions about it: one takes a second or more."""
    asked = TrainConfig(effective_batch=config.train.effective_batch, snapshot_every=config.train.snapshot_every)
    known = StudyConfig(preset=config.preset, epochs=config.epochs, features=config.features, train=asked)
    return _planner(known, dtype, num_records)


@lru_cache(maxsize=2)
def _planner(config: StudyConfig, dtype: torch.dtype, num_records: int) -> Planner:
    return Planner(workload(config, dtype=dtype, num_records=num_records))


def forget_traces() -> None:
    """Let go of what `planner_of` keeps, 76 MiB for the full model: a training has a better use for it."""
    _planner.cache_clear()


def cpu_workload(config: StudyConfig, *, num_records: int = NUM_RECORDS) -> Workload:
    """As `workload`, in the type that this CPU computes in, with the attention that it takes in that type."""
    dtype = compute_type(config.train)
    kernels = CPU if dtype == torch.float32 else Kernels(spelled_out_attention)
    return dataclasses.replace(workload(config, dtype=dtype, num_records=num_records), kernels=kernels)


def cpu_sizes(config: StudyConfig, *, ranks: int = 1) -> StrategySizes:
    """The study's strategy in the type that this CPU computes in."""
    weight_bytes = compute_type(config.train).itemsize
    return dataclasses.replace(
        strategy_sizes(config.train.strategy, config.train, ranks=ranks), weight_bytes=weight_bytes, graph_shapes=0
    )


def workload(
    config: StudyConfig, *, dtype: torch.dtype = torch.bfloat16, device: str = "meta", num_records: int = NUM_RECORDS
) -> Workload:
    """The study's model with its batch and loss on `meta`, and what so many records leave on the disk."""
    dims = preset(config.preset, dropout=config.train.dropout)
    module = build(dims, seed=0, device=device).to(dtype)
    length, targets = config.features.seq_len_tokens, sum(dims.outputs)
    step_counts_K = torch.empty(len(dims.outputs), device=device)

    def batch(size: int) -> tuple[torch.Tensor, ...]:
        return (
            torch.empty(size, length, FEATURE_WIDTH, dtype=dtype, device=device),
            torch.ones(size, length, dtype=torch.bool, device=device),
            torch.empty(size, targets, device=device),
            torch.ones(size, targets, dtype=torch.bool, device=device),
        )

    def loss(network: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> torch.Tensor:
        features_BSD, mask_BS, targets_BT, present_BT = given
        if config.train.feature_dropout:
            features_BSD = features_BSD * kept_channels(
                len(features_BSD), config.train.feature_dropout, like=features_BSD
            )
        predictions = network(features_BSD, mask_BS)
        terms = multitask_loss(predictions, targets_BT, present_BT, outputs=dims.outputs, step_counts_K=step_counts_K)
        return terms.total

    groups = parameter_groups(module, weight_decay=0.01)
    every = config.train.snapshot_every
    predictors = 2 + 3 * len(dims.outputs) + 2
    rows = expected_rows(num_records)
    return Workload(
        module,
        model_sizes(module, groups),
        batch,
        loss,
        set_checkpointing,
        config.train.effective_batch,
        snapshots=-(-config.epochs // every),
        snapshot_output_bytes=4 * (rows["val_select"] + rows["val_confirm"]) * predictors * max(dims.outputs),
        feature_bytes=num_records * record_bytes(config.features),
        log_bytes=config.epochs * (EPOCH_EVENT_BYTES + _steps_of_epoch(config, num_records) * STEP_EVENT_BYTES),
    )


def free_disk_bytes(path: Path) -> int:
    """Bytes free on the file system that a path lies on, or will."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
