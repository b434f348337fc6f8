"""Does a run fit, before anything is allocated: device memory by moment, host memory, disk, time, and what would fit.

Knows nothing of the model: a module on `meta`, a function from a batch size to an example batch, and its loss.
"""

import dataclasses
import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import merge
from typing import Any

import msgspec
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_iter

from redheart.memory.kernels import CUDA, Kernels
from redheart.memory.ledger import SLOTS, Entry, ModelSizes, StrategySizes, held_bytes, ledger
from redheart.memory.replay import Moment, Replay, replay_step
from redheart.memory.trace import Loss, Trace, at_batch, trace_pass
from redheart.pipeline.in_turn import PassWork

MIB = 1 << 20
GIB = 1 << 30

CONTEXT_BYTES, CONTEXT_UPPER_BYTES = 832 * MIB, 896 * MIB
"""CUDA context with loaded kernels, as measured on an H100 with torch 2.11 (612 MiB before the first pass); cards with
fewer multiprocessors are reported at 0.25 to 0.6 GB."""
WORKSPACE_BYTES, WORKSPACE_UPPER_BYTES = 32 * MIB, 64 * MIB
"""cuBLAS: what `CUBLAS_WORKSPACE_CONFIG=:4096:8` asks for; cuBLASLt up to the same again."""
FRAGMENTATION_SHARE = 0.05
"""Added to what is reserved for the upper bound: real streams and library temporaries are not in the trace."""
ACTIVATION_SHARE = 0.10
"""Added to activations and temporaries for the upper bound: torch's own tracker is tested to 10 %."""
COMFORT_SHARE = 0.6
"""Share of the card that a chosen configuration's upper bound takes, if any does: a desktop needs room, and WSL spills
into host memory before a card is full."""
MICRO_BATCHES = (64, 32, 16, 8, 4, 2, 1)
Cost = Callable[[StrategySizes, int, bool], float]
"""Seconds of a step by strategy, micro-batch and checkpointing."""


class Plan(msgspec.Struct, frozen=True):
    """The verdict on one configuration. All device figures are predicted."""

    fits: bool
    strategy: str
    micro_batch: int
    accumulation_steps: int
    checkpointing: bool
    card_share: float
    """Of the optimizer that lies on the card."""
    vram_bytes: int
    peak_bytes: int
    """Whole process: reserved by the allocator, context, workspaces."""
    upper_bytes: int
    peak_moment: str
    parts: dict[str, int]
    """What the peak is made of; sums to `peak_bytes`."""
    besides_context_bytes: int
    moments: dict[str, Moment]
    host_bytes: int
    host_parts: dict[str, int]
    disk_bytes: int
    disk_parts: dict[str, int]
    step_cost: float
    """Seconds of a step on a small card by the simulated pipeline: configurations are ranked by it."""
    step_s: float | None = None
    """Seconds a step on this machine, from steps that were measured on it; null where there are none."""
    run_s: float | None = None
    """Seconds of all steps of the run; validation and saving are not in it."""
    time_basis: str | None = None
    """What the times were measured on, or why there are none."""
    basis: str = "predicted"


@dataclass(frozen=True)
class Workload:
    """A model with its batch and loss, and everything about it that does not depend on the strategy."""

    module: nn.Module
    """On `meta`, in the type that it is trained in."""
    sizes: ModelSizes
    batch: Callable[[int], Any]
    loss: Loss
    set_checkpointing: Callable[[nn.Module, bool], None]
    effective_batch: int
    snapshots: int
    snapshot_output_bytes: int
    feature_bytes: int
    kernels: Kernels = CUDA


class Planner:
    """Traces a workload once per setting and answers for any strategy and micro-batch from these traces."""

    def __init__(self, workload: Workload):
        self.workload = workload
        self._traces: dict[tuple[int, bool, str], Trace] = {}

    def plan(
        self,
        strategy: StrategySizes,
        *,
        micro_batch: int,
        checkpointing: bool,
        vram_bytes: int,
        is_search: bool = False,
    ) -> tuple[Plan, Replay]:
        """The verdict on one configuration, and the replay behind it; a search leaves the validation out."""
        work = self.workload
        steps = -(-work.effective_batch // (micro_batch * strategy.ranks))
        entries = ledger(work.sizes, strategy, accumulates=steps > 1)
        kind = "release" if strategy.kind.is_zero else "keep"
        training = self._trace(micro_batch, checkpointing, kind)
        validation = None if is_search else self._trace(micro_batch, checkpointing, "validation")
        batch_bytes, model = _tensor_bytes(work.batch(micro_batch)), work.sizes
        replay = replay_step(
            training, validation, batch_bytes, model=model, strategy=strategy, entries=entries, micro_batches=steps
        )
        worst = max(replay.moments, key=lambda name: replay.moments[name].reserved_bytes)
        reserved = replay.moments[worst].reserved_bytes
        fluid = max(
            sum(size for name, size in moment.parts.items() if name in ("activations", "gradients and temporaries"))
            for moment in replay.moments.values()
        )
        peak = reserved + CONTEXT_BYTES + WORKSPACE_BYTES
        upper = int(
            reserved * (1 + FRAGMENTATION_SHARE)
            + fluid * ACTIVATION_SHARE
            + CONTEXT_UPPER_BYTES
            + WORKSPACE_UPPER_BYTES
        )
        parts = dict(replay.moments[worst].parts)
        parts["cached by the allocator"] = reserved - sum(parts.values())
        parts |= {"CUDA context": CONTEXT_BYTES, "cuBLAS workspaces": WORKSPACE_BYTES}
        host = host_parts(work, entries)
        disk = disk_parts(work, strategy, entries)
        plan = Plan(
            fits=upper <= vram_bytes,
            strategy=strategy.kind.name,
            micro_batch=micro_batch,
            accumulation_steps=steps,
            checkpointing=checkpointing,
            card_share=strategy.card_share,
            vram_bytes=vram_bytes,
            peak_bytes=peak,
            upper_bytes=upper,
            peak_moment=worst,
            parts=parts,
            besides_context_bytes=reserved + WORKSPACE_BYTES,
            moments=replay.moments,
            host_bytes=sum(host.values()),
            host_parts=host,
            disk_bytes=sum(disk.values()),
            disk_parts=disk,
            step_cost=self._step_s(strategy, micro_batch, checkpointing),
        )
        return plan, replay

    def fastest(
        self,
        strategies: Sequence[StrategySizes],
        *,
        vram_bytes: int,
        checkpointing: bool | None = None,
        cost: Cost | None = None,
        comfort_share: float = COMFORT_SHARE,
    ) -> Plan | None:
        """The fastest configuration by the simulated step whose upper bound leaves room on the card, else that fits.

        Args:
            vram_bytes: size of the card.
            checkpointing: with, without, or either.
            cost: of a card; without one the ranking is that of no card.
            comfort_share: of the card that is not exceeded if anything stays below it.
        """
        # What cannot fit at any micro-batch is not simulated: 64 micro-batches of 7B parameters take seconds.
        strategies = [strategy for strategy in strategies if self._fixed_bytes(strategy) <= vram_bytes]
        # The more micro-batches the slower: what is not asked for is not simulated.
        by_time = merge(
            *(
                self._of_size(strategy, number, recompute, cost or self._step_s)
                for number, strategy in enumerate(strategies)
                for recompute in ((False, True) if checkpointing is None else (checkpointing,))
            ),
            key=lambda item: item[:2],
        )
        comfort_bytes, fits = int(comfort_share * vram_bytes), None
        for _, _, strategy, micro_batch, recompute in by_time:
            limit_bytes = comfort_bytes if fits else vram_bytes
            if self._at_least_bytes(strategy, micro_batch, recompute, limit_bytes) > limit_bytes:
                continue
            setting = {"micro_batch": micro_batch, "checkpointing": recompute, "vram_bytes": vram_bytes}
            if self.plan(strategy, **setting, is_search=True)[0].upper_bytes <= limit_bytes:  # type: ignore[arg-type]
                plan, _ = self.plan(strategy, **setting)  # type: ignore[arg-type]
                if plan.upper_bytes <= comfort_bytes:
                    return plan
                fits = fits or (plan if plan.fits else None)
        return fits

    def with_share(
        self,
        strategy: StrategySizes,
        *,
        vram_bytes: int,
        checkpointing: bool | None = None,
        micro_batch: int = 0,
        cost: Cost | None = None,
    ) -> Plan | None:
        """The fastest configuration that fits with as much of the optimizer on the card as there is room for.

        Args:
            strategy: one that takes a share.
            vram_bytes: what the run may use.
            checkpointing: with, without, or either.
            micro_batch: 0 takes any.
            cost: of a card; without one the ranking is that of no card.
        """
        cost = cost or self._step_s
        best, best_s = None, math.inf
        whole = dataclasses.replace(strategy, card_share=1.0)
        ways = [
            (cost(whole, size, recompute), size, recompute)
            for recompute in ((False, True) if checkpointing is None else (checkpointing,))
            for size in ((micro_batch,) if micro_batch else MICRO_BATCHES)
            if size <= self.workload.effective_batch
        ]
        for least_s, size, recompute in sorted(ways):
            if best_s <= least_s:
                break
            found = self._largest_share(strategy, size, recompute, vram_bytes)
            if found:
                found_s = cost(dataclasses.replace(strategy, card_share=found.card_share), size, recompute)
                best, best_s = (found, found_s) if found_s < best_s else (best, best_s)
        return best

    def _largest_share(
        self, strategy: StrategySizes, micro_batch: int, checkpointing: bool, vram_bytes: int
    ) -> Plan | None:
        """The plan with the largest share that fits, in twentieths; None where not even none does."""

        def planned(twentieths: int) -> Plan:
            sizes = dataclasses.replace(strategy, card_share=twentieths / 20)
            setting = {"micro_batch": micro_batch, "checkpointing": checkpointing, "vram_bytes": vram_bytes}
            return self.plan(sizes, **setting)[0]  # type: ignore[arg-type]

        if self._at_least_bytes(strategy, micro_batch, checkpointing, vram_bytes) > vram_bytes:
            return None
        fitting = bisect_left(range(21), True, key=lambda twentieths: not planned(twentieths).fits)
        return planned(fitting - 1) if fitting else None

    def pass_work(self, micro_batch: int, *, checkpointing: bool) -> PassWork:
        """What a pass launches, computes and moves."""
        found, once = (self._trace(micro_batch, recompute, "release") for recompute in (checkpointing, False))
        return PassWork(found.forward, found.backward, found.backward.operators - once.backward.operators)

    def _of_size(
        self, strategy: StrategySizes, number: int, checkpointing: bool, cost: Cost
    ) -> Iterator[tuple[float, int, StrategySizes, int, bool]]:
        """Seconds of a step with every micro-batch, the fastest first, and what they are of."""
        for micro_batch in MICRO_BATCHES:
            if micro_batch <= self.workload.effective_batch:
                yield cost(strategy, micro_batch, checkpointing), number, strategy, micro_batch, checkpointing

    def _step_s(self, strategy: StrategySizes, micro_batch: int, checkpointing: bool) -> float:
        steps = -(-self.workload.effective_batch // (micro_batch * strategy.ranks))
        # What is updated on the card is behind the pass: tens of milliseconds for all of the full model.
        on_host = round(self.workload.sizes.trained * (1 - strategy.card_share)) // strategy.ranks
        return strategy.kind.cost(on_host, steps, checkpointing)

    def _at_least_bytes(self, strategy: StrategySizes, micro_batch: int, checkpointing: bool, vram_bytes: int) -> int:
        """A lower bound of the peak, without a replay: what is always there and the pass's own peak."""
        fixed = self._fixed_bytes(strategy)
        if fixed > vram_bytes:
            return fixed
        kind = "release" if strategy.kind.is_zero else "keep"
        return fixed + self._trace(micro_batch, checkpointing, kind).peak_bytes

    def _fixed_bytes(self, strategy: StrategySizes) -> int:
        """What is always there."""
        entries = ledger(self.workload.sizes, strategy, accumulates=False)
        return CONTEXT_BYTES + sum(
            entry.total_bytes for entry in entries if entry.where == "device" and entry.life == "always"
        )

    def pass_bytes(self, micro_batch: int, *, checkpointing: bool) -> int:
        """Peak of live storages in forward and backward of one micro-batch, gradients leaving as they are complete."""
        return self._trace(micro_batch, checkpointing, "release").peak_bytes

    def _trace(self, micro_batch: int, checkpointing: bool, kind: str) -> Trace:
        key = (micro_batch, checkpointing, kind)
        if key not in self._traces:
            from_two = micro_batch > 3 and kind != "validation"
            self._traces[key] = self._from_two(key) if from_two else self._traced(key)
        return self._traces[key]

    def _from_two(self, key: tuple[int, bool, str]) -> Trace:
        micro_batch, checkpointing, kind = key
        known = {batch: self._trace(batch, checkpointing, kind) for batch in (2, 3)}
        # A module whose operators depend on the batch is traced at the batch itself.
        return at_batch(known, micro_batch) or self._traced(key)

    def _traced(self, key: tuple[int, bool, str]) -> Trace:
        micro_batch, checkpointing, kind = key
        work = self.workload
        work.set_checkpointing(work.module, checkpointing)
        return trace_pass(
            work.module,
            work.batch(micro_batch),
            work.loss,
            kernels=work.kernels,
            backward=kind != "validation",
            release_gradients=kind == "release",
        )


HOST_BASE_BYTES = 630 * MIB
"""A process with torch, DeepSpeed, accelerate and bitsandbytes at work, CPU builds: measured 540 (0.3M parameters)
to 640 MiB (30M and 55M) beside the ledger's entries."""
HOST_BASE_FLOAT32_BYTES = 500 * MIB
"""The same in float32, for which oneDNN keeps no kernels of its own: measured 397 (0.3M) to 513 MiB (58M)."""
HOST_BASE_CUDA_BYTES = 2020 * MIB
"""The same with a CUDA device: measured on an H100's host with torch 2.11 for CUDA 13, the full model."""


def host_parts(work: Workload, entries: Sequence[Entry], *, has_device: bool = True) -> dict[str, int]:
    """Resident host memory of a rank by part, at the larger of initialisation and training."""
    return _larger(*_host_moments(work, entries, has_device=has_device))


def cpu_host_parts(
    planner: "Planner", entries: Sequence[Entry], *, micro_batch: int, checkpointing: bool
) -> dict[str, int]:
    """As `host_parts` where there is no card: weights, buffers and activations lie in host memory as well."""
    device = [entry for entry in entries if entry.where == "device"]
    buffers = {"weights and buffers": sum(entry.total_bytes for entry in device if entry.life == "always")}
    passing = planner.pass_bytes(micro_batch, checkpointing=checkpointing)
    bucket = sum(entry.total_bytes for entry in device if entry.life == "backward")
    initialisation, training = _host_moments(planner.workload, entries, has_device=False)
    # The pass is over when the optimizer's temporaries come.
    temporaries = training.pop("temporaries of the host optimizer", 0)
    largest = {"the larger of a pass and the update": max(passing + bucket, temporaries)}
    return _larger(initialisation | buffers, training | buffers | largest)


def _host_moments(
    work: Workload, entries: Sequence[Entry], *, has_device: bool
) -> tuple[dict[str, int], dict[str, int]]:
    """What the host holds when the engine is built, and while it steps."""
    host = [entry for entry in entries if entry.where == "host" and (has_device or entry.name != SLOTS)]
    is_float32 = next(work.module.parameters()).dtype == torch.float32
    on_cpu = HOST_BASE_FLOAT32_BYTES if is_float32 else HOST_BASE_BYTES
    process = {"process": HOST_BASE_CUDA_BYTES if has_device else on_cpu}
    kept = {entry.name: entry.total_bytes for entry in host if entry.life == "always" and entry.total_bytes}
    # The optimizer's states come with the first step.
    start = {entry.name: entry.total_bytes for entry in host if entry.life == "always" and entry.attribute != "state"}
    start |= {entry.name: entry.total_bytes for entry in host if entry.life == "init_all" and entry.total_bytes}
    # The float32 weights of the module are gone before the first master exists.
    start = _larger(start, {"weights at the start": 4 * work.sizes.total})
    step = {entry.name: max(entry.each_bytes, default=0) for entry in host if entry.life == "step"}
    return process | start, process | kept | step


def _larger(*moments: dict[str, int]) -> dict[str, int]:
    return max(moments, key=lambda parts: sum(parts.values()))


def disk_parts(work: Workload, strategy: StrategySizes, entries: Sequence[Entry]) -> dict[str, int]:
    """Disk of a run by part: two resume states and one being written, the module snapshots, the features."""
    named = held_bytes(entries)
    masters = strategy.ranks * named.get("single_partition_of_fp32_groups", 0) or 4 * work.sizes.trained
    state = masters + strategy.ranks * named.get("state", 0)
    return {
        "resume states": 3 * state,
        "module snapshots": work.snapshots * (2 * work.sizes.total + work.snapshot_output_bytes),
        "features": work.feature_bytes,
    }


def _tensor_bytes(batch: Any) -> int:
    return sum(item.untyped_storage().nbytes() for item in tree_iter(batch) if isinstance(item, Tensor))


def model_sizes(module: nn.Module, groups: Sequence[Mapping[str, Any]]) -> ModelSizes:
    """Names and sizes of the parameters that are trained and of their optimizer groups (`params`, `state_bits`)."""
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    names = {id(parameter): name for name, parameter in trained.items()}
    return ModelSizes(
        {name: parameter.numel() for name, parameter in trained.items()},
        tuple(tuple(names[id(parameter)] for parameter in group["params"]) for group in groups),
        tuple(int(group["state_bits"]) for group in groups),
        tuple(parameter.numel() for parameter in module.parameters() if not parameter.requires_grad),
    )
