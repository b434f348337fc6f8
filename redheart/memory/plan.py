"""Does a run fit, before anything is allocated: device memory by moment, host memory, disk, time, and what would fit.

Knows nothing of the model: a module on `meta`, a function from a batch size to an example batch, and its loss.
"""

import dataclasses
import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from heapq import merge
from operator import itemgetter
from typing import Any

import msgspec
from torch import Tensor
from torch.utils._pytree import tree_iter

from redheart.core.units import MIB
from redheart.memory.host_disk import disk_parts, host_parts
from redheart.memory.ledger import StrategySizes, ledger
from redheart.memory.replay import Moment, Replay, replay_step
from redheart.memory.trace import Trace, Workload, at_batch, trace_pass
from redheart.pipeline.clock import PassWork

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
"""Share of the card that a chosen configuration's upper bound takes, if one as fast does: a desktop needs room, and WSL
spills into host memory before a card is full."""
COMFORT_COST = 1.1
"""That room is worth this many times the time of the fastest that fits, so that a larger card is hardly ever slower."""
MICRO_BATCHES = (64, 32, 16, 8, 4, 2, 1)
PREDICTED = "predicted"
NEVER_RAN = "predicted, and not measured: no pipeline and no graphs have run on a card"
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
    compressed_disk_bytes: int
    """Disk with compressed snapshots."""
    step_cost: float
    """Seconds of a step on a small card by the simulated pipeline: configurations are ranked by it."""
    step_s: float | None = None
    """Seconds a step on this machine, from steps that were measured on it; null where there are none."""
    run_s: float | None = None
    """Seconds of all steps of the run; validation and saving are not in it."""
    time_basis: str | None = None
    """What the times were measured on, or why there are none."""
    basis: str = PREDICTED

    def setting_text(self, *, before_size: str = "") -> str:
        """The configuration in a few words."""
        share = f", {self.card_share:g} of the optimizer on the card" if self.card_share else ""
        recompute = ", checkpointing" if self.checkpointing else ""
        return f"{self.strategy}, {before_size}{self.micro_batch} x {self.accumulation_steps}{recompute}{share}"


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
        steps = self.steps(strategy, micro_batch)
        entries = ledger(work.sizes, strategy, accumulates=steps > 1)
        # A rank has no more records than its share of the effective batch; validation takes whole micro-batches.
        records = self._records(strategy, micro_batch)
        training = self._training(strategy, records, checkpointing)
        validation = None if is_search else self._trace(micro_batch, checkpointing, "validation")
        batch_bytes = _tensor_bytes(work.batch(records)), _tensor_bytes(work.batch(micro_batch))
        replay = replay_step(
            training, validation, batch_bytes, model=work.sizes, strategy=strategy, entries=entries, micro_batches=steps
        )
        moments = replay.moments
        # What the allocator holds it keeps; it was needed where most of it is in use.
        worst = max(moments, key=lambda name: (moments[name].reserved_bytes, moments[name].allocated_bytes))
        reserved, parts = moments[worst].reserved_bytes, moments[worst].parts
        fluid = max(
            moment.parts.get("activations", 0) + moment.parts.get("gradients and temporaries", 0)
            for moment in moments.values()
        )
        upper = reserved * (1 + FRAGMENTATION_SHARE) + fluid * ACTIVATION_SHARE
        upper_bytes = int(upper + CONTEXT_UPPER_BYTES + WORKSPACE_UPPER_BYTES)
        parts = parts | {
            "cached by the allocator": reserved - sum(parts.values()),
            "CUDA context": CONTEXT_BYTES,
            "cuBLAS workspaces": WORKSPACE_BYTES,
        }
        host = host_parts(work, entries)
        disk = disk_parts(work, strategy, entries)
        plan = Plan(
            fits=upper_bytes <= vram_bytes,
            strategy=strategy.kind.name,
            micro_batch=micro_batch,
            accumulation_steps=steps,
            checkpointing=checkpointing,
            card_share=strategy.card_share,
            vram_bytes=vram_bytes,
            peak_bytes=sum(parts.values()),
            upper_bytes=upper_bytes,
            peak_moment=worst,
            parts=parts,
            besides_context_bytes=reserved + WORKSPACE_BYTES,
            moments=moments,
            host_bytes=sum(host.values()),
            host_parts=host,
            disk_bytes=sum(disk.values()),
            disk_parts=disk,
            compressed_disk_bytes=sum(disk_parts(work, strategy, entries, compressed=True).values()),
            step_cost=self._step_s(strategy, micro_batch, checkpointing),
            basis=NEVER_RAN if strategy.ring_bytes or strategy.graph_shapes else PREDICTED,
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
        """The fastest configuration that fits a card by its upper bound, or one as fast with more room.

        Checkpointing is on, off, or None for either. Without the card's own `cost` the ranking is that of no card.
        `comfort_share` of the card is not exceeded if anything stays below it within `COMFORT_COST`.
        """
        # What cannot fit at any micro-batch is not simulated: 64 micro-batches of 7B parameters take seconds.
        strategies = [strategy for strategy in strategies if self._fixed_bytes(strategy) <= vram_bytes]
        comfort_bytes, fits, least_cost = int(comfort_share * vram_bytes), None, 0.0
        for step_cost, strategy, size, recompute in self.by_time(strategies, cost, checkpointing):
            if fits and step_cost > COMFORT_COST * least_cost:
                break
            limit_bytes = comfort_bytes if fits else vram_bytes
            if not self._may_fit(strategy, size, recompute, limit_bytes):
                continue
            asked = partial(self.plan, strategy, micro_batch=size, checkpointing=recompute, vram_bytes=vram_bytes)
            if asked(is_search=True)[0].upper_bytes <= limit_bytes:
                plan, _ = asked()
                if plan.upper_bytes <= comfort_bytes:
                    return plan
                if fits is None and plan.fits:
                    fits, least_cost = plan, step_cost
        return fits

    def by_time(
        self,
        strategies: Sequence[StrategySizes],
        cost: Cost | None,
        checkpointing: bool | None,
        *,
        micro_batch: int = 0,
    ) -> Iterator[tuple[float, StrategySizes, int, bool]]:
        """Seconds of a step of every configuration, the fastest first: of strategy, micro-batch and checkpointing.

        As in `fastest`; `micro_batch` is one that is asked for.
        """
        cost_s = cost or self._step_s

        def of_sizes(strategy: StrategySizes, recompute: bool) -> Iterator[tuple[float, StrategySizes, int, bool]]:
            # The more micro-batches the slower: what is not asked for is not simulated.
            for size in (micro_batch,) if micro_batch else MICRO_BATCHES:
                if size in (micro_batch, self._records(strategy, size)):
                    yield cost_s(strategy, size, recompute), strategy, size, recompute

        recomputes = (False, True) if checkpointing is None else (checkpointing,)
        return merge(*(of_sizes(item, recompute) for item in strategies for recompute in recomputes), key=itemgetter(0))

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

        As in `fastest`; the strategy is one that takes a share, and a micro-batch of 0 takes any.
        """
        cost = cost or self._step_s
        best, best_s = None, math.inf
        whole = dataclasses.replace(strategy, card_share=1.0)
        # A last micro-batch that is not whole counts as one: with it more of them may take less.
        ways = sorted(self.by_time([whole], cost, checkpointing, micro_batch=micro_batch), key=itemgetter(0, 2, 3))
        for least_s, _, size, recompute in ways:
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

        @cache
        def planned(twentieths: int) -> Plan:
            sizes = dataclasses.replace(strategy, card_share=twentieths / 20)
            return self.plan(sizes, micro_batch=micro_batch, checkpointing=checkpointing, vram_bytes=vram_bytes)[0]

        if not self._may_fit(strategy, micro_batch, checkpointing, vram_bytes):
            return None
        fitting = bisect_left(range(21), True, key=lambda twentieths: not planned(twentieths).fits)
        return planned(fitting - 1) if fitting else None

    def steps(self, strategy: StrategySizes, micro_batch: int) -> int:
        """Micro-batches of a step."""
        return -(-self.workload.effective_batch // (micro_batch * strategy.ranks))

    def pass_work(self, micro_batch: int, *, checkpointing: bool) -> PassWork:
        """What a pass launches, computes and moves."""
        found, once = (self._trace(micro_batch, recompute, "release") for recompute in (checkpointing, False))
        return PassWork(found.forward, found.backward, found.backward.operators - once.backward.operators)

    def _step_s(self, strategy: StrategySizes, micro_batch: int, checkpointing: bool) -> float:
        # What is updated on the card is behind the pass: tens of milliseconds for all of the full model.
        on_host = round(self.workload.sizes.trained * (1 - strategy.card_share)) // strategy.ranks
        return strategy.kind.cost(on_host, self.steps(strategy, micro_batch), checkpointing)

    def _may_fit(self, strategy: StrategySizes, micro_batch: int, checkpointing: bool, limit_bytes: int) -> bool:
        """Whether what is always there and the pass's own peak are within a limit: no replay is needed to say no."""
        room_bytes = limit_bytes - self._fixed_bytes(strategy)
        if room_bytes < 0:
            return False
        return self._training(strategy, self._records(strategy, micro_batch), checkpointing).peak_bytes <= room_bytes

    def _records(self, strategy: StrategySizes, micro_batch: int) -> int:
        """Of a pass in training."""
        return min(micro_batch, -(-self.workload.effective_batch // strategy.ranks))

    def _fixed_bytes(self, strategy: StrategySizes) -> int:
        """What is always there."""
        entries = ledger(self.workload.sizes, strategy, accumulates=False)
        return CONTEXT_BYTES + sum(
            entry.total_bytes for entry in entries if entry.where == "device" and entry.life == "always"
        )

    def pass_bytes(self, micro_batch: int, *, checkpointing: bool) -> int:
        """Peak of live storages in forward and backward of one micro-batch, gradients leaving as they are complete."""
        return self._trace(micro_batch, checkpointing, "release").peak_bytes

    def _training(self, strategy: StrategySizes, records: int, checkpointing: bool) -> Trace:
        return self._trace(records, checkpointing, "release" if strategy.kind.is_zero else "keep")

    def _trace(self, micro_batch: int, checkpointing: bool, kind: str) -> Trace:
        key = (micro_batch, checkpointing, kind)
        if key not in self._traces:
            from_two = micro_batch > 3 and kind != "validation"
            self._traces[key] = self._from_two(key) if from_two else self._traced(key)
        return self._traces[key]

    def _from_two(self, key: tuple[int, bool, str]) -> Trace:
        micro_batch, checkpointing, kind = key
        known = {batch: self._trace(batch, checkpointing, kind) for batch in (2, 3)}
        # A module whose operators or sizes depend otherwise on the batch is traced at the batch itself.
        if not self.workload.is_affine:
            five, expected = (5, checkpointing, kind), at_batch(known, 5)
            self._traces[five] = self._traces.get(five) or self._traced(five)
            if expected is None or expected.events != self._traces[five].events:
                return self._traced(key)
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


def _tensor_bytes(batch: Any) -> int:
    return sum(item.untyped_storage().nbytes() for item in tree_iter(batch) if isinstance(item, Tensor))
