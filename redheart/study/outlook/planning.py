"""The planner for this model: a study's configuration in, a verdict out; refusals name what fits."""

import dataclasses
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import msgspec
import torch

from redheart.core.config import StudyConfig, TrainConfig, resolved
from redheart.core.errors import BadInput, DoesNotFit
from redheart.core.ranks import launched
from redheart.data.features import record_bytes
from redheart.memory.kernels import CPU, Kernels
from redheart.memory.ledger import StrategySizes
from redheart.memory.plan import GIB, Plan, Planner, Workload, model_sizes
from redheart.memory.replay import Replay
from redheart.model.blocks import set_checkpointing, spelled_out_attention
from redheart.model.dims import FEATURE_WIDTH, preset
from redheart.model.losses import multitask_loss
from redheart.model.network import build
from redheart.study.outlook import timings
from redheart.train.compute_type import compute_type
from redheart.train.groups import parameter_groups
from redheart.train.strategy import all_strategies, strategy_sizes

NUM_VALIDATION, NUM_TRAINING, NUM_RECORDS = 984, 7086, 8858
"""Records that disk and time are planned for where no data set is at hand: the size of the real one."""


@dataclass(frozen=True)
class Answer:
    """A plan, the replay behind it, and the nearest configuration that fits where the plan does not."""

    plan: Plan
    replay: Replay
    nearest: Plan | None


def parse_bytes(text: str) -> int:
    """`8GiB`, `8GB`, `512MiB` or plain bytes.

    Raises:
        BadInput: anything else, or outside 1 to 1024 GiB.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(GiB|GB|MiB|MB|B)?\s*", text)
    units = {"GiB": GIB, "GB": 10**9, "MiB": 1 << 20, "MB": 10**6, "B": 1, None: 1}
    size = int(float(match[1]) * units[match[2]]) if match else 0
    if not 0.5 * GIB <= size <= 1024 * GIB:
        raise BadInput("not a size of device memory", got=text, expected="for example 8GiB, between 0.5 and 1024 GiB")
    return size


def answer(
    config: StudyConfig, *, vram_bytes: int, strategy: str | None = None, micro_batch: int | None = None, ranks: int = 1
) -> Answer:
    """Plan a study: its strategy or `auto`, its micro-batch or the best that fits.

    Raises:
        BadInput: an unknown strategy, or a micro-batch or length out of range.
    """
    name = strategy or config.train.strategy
    length, micro = config.features.seq_len_tokens, micro_batch or 0
    if not 1 <= length <= 4096 or not 0 <= micro <= 1024:
        raise BadInput(
            "out of range", got=f"length {length}, micro-batch {micro}", expected="length 1-4096, micro 0-1024"
        )
    # Either, unless it is asked for, or a micro-batch is.
    recompute = config.train.checkpointing or (False if micro else None)
    if name == "auto":
        offered = _offered(ranks=ranks)
        chosen = planner_of(config).fastest(offered, checkpointing=recompute, vram_bytes=vram_bytes)
        name = chosen.strategy if chosen else TrainConfig().strategy
    sizes = strategy_sizes(name, ranks=ranks)
    planner = planner_of(config, dtype=sizes.kind.card_dtype)
    if not micro:
        found = planner.fastest([sizes], checkpointing=recompute, vram_bytes=vram_bytes)
        micro, recompute = (found.micro_batch, found.checkpointing) if found else (1, True)
    plan, replay = planner.plan(sizes, micro_batch=micro, checkpointing=bool(recompute), vram_bytes=vram_bytes)
    nearest = None if plan.fits else _nearest(config, planner, sizes, vram_bytes=vram_bytes, ranks=ranks)
    return Answer(_timed(config, plan, ranks=ranks), replay, nearest)


def on_this_card(config: StudyConfig) -> StudyConfig:
    """The study with the fastest micro-batch that fits the card, where there is one and none is asked for.

    Smaller presets take a step's records at once, and several ranks what they are told.
    """
    is_open = config.preset == "full" and not config.train.micro_batch and launched().world_size == 1
    if not is_open or not torch.cuda.is_available():
        return config
    plan = answer(resolved(config), vram_bytes=torch.cuda.get_device_properties(0).total_memory).plan
    train = dataclasses.replace(config.train, micro_batch=plan.micro_batch, checkpointing=plan.checkpointing)
    return dataclasses.replace(config, train=train) if plan.fits else config


def _timed(config: StudyConfig, plan: Plan, *, ranks: int) -> Plan:
    """The plan with its times, where this machine has taken such steps before."""
    effective_batch, length = config.train.effective_batch, config.features.seq_len_tokens
    train = dataclasses.replace(
        config.train, strategy=plan.strategy, checkpointing=plan.checkpointing, micro_batch=plan.micro_batch
    )
    known = timings.recall(dataclasses.replace(config, train=train), ranks=ranks)
    if known is None:
        return plan
    step_s = known.step_s(effective_batch=effective_batch, seq_len_tokens=length)
    steps = -(-NUM_TRAINING // effective_batch) * config.epochs
    basis = f"steps of {known.micro_batch} x {known.seq_len_tokens} tokens on {known.device}"
    return msgspec.structs.replace(plan, step_s=step_s, run_s=step_s * steps, time_basis=basis)


def refuse_unless_fits(found: Answer) -> None:
    """Turn a verdict against a run into its error.

    Raises:
        DoesNotFit: with the nearest configuration that fits.
    """
    plan = found.plan
    if not plan.fits:
        raise DoesNotFit(
            "the run does not fit into device memory",
            where=f"strategy {plan.strategy}, micro-batch {plan.micro_batch}, at {plan.peak_moment}",
            got=f"predicted {plan.peak_bytes / GIB:.2f} GiB, upper bound {plan.upper_bytes / GIB:.2f} GiB",
            expected=f"at most {plan.vram_bytes / GIB:.2f} GiB",
            hint=nearest_text(found.nearest),
        )


def nearest_text(nearest: Plan | None) -> str:
    """The change that makes a refused run fit, as options."""
    if nearest is None:
        return "no strategy fits this card at this length; take a smaller --features.seq-len-tokens or a smaller preset"
    recompute = " --train.checkpointing True" if nearest.checkpointing else ""
    return (
        f"this fits: --train.strategy {nearest.strategy} --train.micro-batch {nearest.micro_batch}{recompute} "
        f"({nearest.peak_bytes / GIB:.2f} GiB, at most {nearest.upper_bytes / GIB:.2f} GiB)"
    )


def _offered(*, ranks: int, besides: str = "") -> list[StrategySizes]:
    """What `auto` chooses from, and a refusal of one of them."""
    names = [strategy.name for strategy in all_strategies() if strategy.is_offered and strategy.name != besides]
    return [strategy_sizes(name, ranks=ranks) for name in names]


def planner_of(config: StudyConfig, *, dtype: torch.dtype = torch.bfloat16) -> Planner:
    """A planner of the study's workload, with the traces of earlier questions about it: one takes a second or more."""
    asked = TrainConfig(effective_batch=config.train.effective_batch, snapshot_every=config.train.snapshot_every)
    known = StudyConfig(preset=config.preset, epochs=config.epochs, features=config.features, train=asked)
    return _planner(known, dtype)


@lru_cache(maxsize=2)
def _planner(config: StudyConfig, dtype: torch.dtype) -> Planner:
    return Planner(workload(config, dtype=dtype))


def forget_traces() -> None:
    """Let go of what `planner_of` keeps, 76 MiB for the full model: a training has a better use for it."""
    _planner.cache_clear()


def cpu_workload(config: StudyConfig) -> Workload:
    """As `workload`, in the type that this CPU computes in, with the attention that it takes in that type."""
    dtype = compute_type(config.train)
    kernels = CPU if dtype == torch.float32 else Kernels(spelled_out_attention)
    return dataclasses.replace(workload(config, dtype=dtype), kernels=kernels)


def cpu_sizes(config: StudyConfig) -> StrategySizes:
    """The study's strategy in the type that this CPU computes in."""
    weight_bytes = compute_type(config.train).itemsize
    return dataclasses.replace(strategy_sizes(config.train.strategy), weight_bytes=weight_bytes)


def workload(config: StudyConfig, *, dtype: torch.dtype = torch.bfloat16, device: str = "meta") -> Workload:
    """The study's model with its batch and loss on `meta`."""
    dims = preset(config.preset)
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
        predictions = network(features_BSD, mask_BS)
        terms = multitask_loss(predictions, targets_BT, present_BT, outputs=dims.outputs, step_counts_K=step_counts_K)
        return terms.total

    groups = parameter_groups(module, weight_decay=0.01)
    every = config.train.snapshot_every
    predictors = 2 + 3 * len(dims.outputs) + 2
    return Workload(
        module,
        model_sizes(module, groups),
        batch,
        loss,
        set_checkpointing,
        config.train.effective_batch,
        snapshots=-(-config.epochs // every),
        snapshot_output_bytes=4 * NUM_VALIDATION * predictors * max(dims.outputs),
        feature_bytes=NUM_RECORDS * record_bytes(config.features),
    )


def _nearest(
    config: StudyConfig, planner: Planner, sizes: StrategySizes, *, vram_bytes: int, ranks: int
) -> Plan | None:
    """The same strategy with a smaller micro-batch or checkpointing, else the cheapest other one."""
    others = _offered(ranks=ranks, besides=sizes.kind.name)
    return planner.fastest([sizes], vram_bytes=vram_bytes) or planner_of(config).fastest(others, vram_bytes=vram_bytes)


def free_disk_bytes(path: Path) -> int:
    """Bytes free on the file system that a path lies on, or will."""
    import shutil

    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
