"""What a step with the optimizer on the host does to real memory: gradients of flats out, updates, weights in.

A training loop of one's own (`redheart.optim`) and DeepSpeed's (`redheart.train.zero.fused_step`) both stand on it.
"""

import math
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from redheart.optim.host_adamw8bit import HostAdamW8bit, clip_factor
from redheart.pipeline.bucket import Bucket
from redheart.pipeline.lanes import Event, InTurn, StreamLanes
from redheart.pipeline.step import OffloadStep

RING_BYTES = 256 << 20
"""Memory for gradients that wait for their norm; page-locked where there is a device."""


@dataclass
class Flat:
    """Parameters of one group side by side: the memory behind a bucket."""

    bucket: Bucket
    parameters: list[nn.Parameter]
    master: Tensor
    """(n,) float32 on the host."""
    weights: list[Tensor]
    """On the device, side by side (n,) elements: the parameters, or what they are views of."""
    padding: list[Tensor] = field(default_factory=list)
    """Zeros on the device: the gradient of what lies behind the parameters."""
    total: Tensor | None = None
    """Where gradients are summed on the host, (n,)."""
    arrived: dict[nn.Parameter, Tensor] = field(default_factory=dict)
    """Gradients on the device that wait for the others."""

    @property
    def dtype(self) -> torch.dtype:
        return self.parameters[0].dtype


class _WeightsWait:
    """Before a module's pass: its weights are there. A copy of the module waits for nothing."""

    def __init__(self, pipeline: OffloadStep | None = None, buckets: Sequence[Bucket] = ()):
        self._pipeline = weakref.ref(pipeline) if pipeline else None
        self._buckets = buckets

    def __call__(self, module: nn.Module, inputs: object) -> None:
        pipeline = self._pipeline() if self._pipeline else None
        if pipeline:
            pipeline.use(self._buckets)

    def __reduce__(self) -> tuple[type["_WeightsWait"], tuple[()]]:
        return _WeightsWait, ()


class Offloaded(OffloadStep):
    """Flats, the optimizer of their masters, and the pipeline between them.

    Args:
        flats: of parameters on one device and of masters that are parameters of `host`, one a group.
        host: the optimizer; its groups' settings are those of the moment in which a step is begun.
        max_grad_norm: the gradients' common norm is clipped to it; a norm that is NaN or Inf changes nothing.
        ring_bytes: memory for gradients on their way; `RING_BYTES` if not given.
        accumulates: whether a step is known to have several backward passes.
        overlap: a model on a CUDA device beside whose passes copies and updates go on; without it all is done in turn.
            The norm is then summed on the device where one backward pass is the whole step.

    Raises:
        ValueError: `overlap` without a CUDA device.
    """

    def __init__(
        self,
        flats: Sequence[Flat],
        host: HostAdamW8bit,
        *,
        max_grad_norm: float | None,
        ring_bytes: int | None = None,
        accumulates: bool = False,
        overlap: nn.Module | None = None,
    ):
        self.flats, self._host, self._max_grad_norm = list(flats), host, max_grad_norm
        self._overlaps = overlap is not None
        device = self.flats[0].parameters[0].device
        self._lanes: StreamLanes | InTurn = StreamLanes(device) if self._overlaps else InTurn()
        largest = max(flat.bucket.elements * flat.dtype.itemsize for flat in self.flats)
        largest_wire = max(flat.bucket.wire_bytes for flat in self.flats)
        super().__init__(
            [flat.bucket for flat in self.flats],
            self._lanes,
            # Its slots are of bf16; these of what the parameters are in.
            ring_bytes=(ring_bytes or RING_BYTES) * largest_wire // largest,
            accumulates=accumulates,
            norm_on_host=not self._overlaps,
        )
        pinned = device.type == "cuda"
        self._slots = [
            torch.empty(largest, dtype=torch.uint8, device="cpu", pin_memory=pinned) for _ in range(self.num_slots)
        ]
        self._flat_of = {parameter: flat for flat in self.flats for parameter in flat.parameters}
        self._settings: list[dict[str, Any]] = []
        self._normed: Event = None
        self._grad_norm, self._grad_scale, self._squares = math.nan, math.nan, 0.0
        if overlap is not None:
            host.leave_a_core()  # which launches the passes
            self._noted = torch.zeros(len(self.flats), dtype=torch.float64, device=device)
            self._squares_on_device = torch.zeros((), dtype=torch.float64, device=device)
            self._copied_squares = torch.zeros((), dtype=torch.float64, device="cpu", pin_memory=pinned)
            self._hold_back(overlap)

    @property
    def grad_norm(self) -> float:
        """The last step's norm before clipping; waits for it, but not for the updates."""
        if self._normed is not None:
            self._lanes.wait(self._normed)
        return self._grad_norm

    def arrived(self, parameter: nn.Parameter, grad: Tensor) -> None:
        """Take a parameter's gradient, which nobody writes to any more."""
        flat = self._flat_of[parameter]
        if self._overlaps and self.is_returning(flat.bucket):
            raise RuntimeError(
                "weights were used before they were there: a module that reads another one's parameters must be its "
                "parent, or be called through a module that is"
            )
        if parameter in flat.arrived:
            # Another pass, and the one before has not used all of this bucket.
            self._hand_over(flat)
        flat.arrived[parameter] = grad
        if len(flat.arrived) == len(flat.parameters):
            self._hand_over(flat)

    def _hand_over(self, flat: Flat) -> None:
        missing = [item for item in flat.parameters if item not in flat.arrived]
        flat.arrived |= {parameter: torch.zeros_like(parameter) for parameter in missing}
        gradient = [flat.arrived[parameter] for parameter in flat.parameters] + flat.padding
        flat.arrived.clear()
        self.gradient_ready(flat.bucket, gradient)

    @torch.no_grad()
    def step(self, settings: Any = None) -> Event:
        """One update with all gradients since the last; where no pass has used a parameter, its gradient is zero.

        The settings are by flat what of its group in `host` has changed.
        """
        for flat in self.flats:
            if flat.arrived or not self.has_gradient(flat.bucket):
                # Its update may still be under way where no pass has waited for it.
                self.use([flat.bucket])
                self._hand_over(flat)
        groups = [{**group, **changed} for group, changed in zip(self._host.param_groups, settings, strict=True)]
        try:
            self._normed = super().step(groups)
        except BaseException:
            # Of a step that has not come to its norm.
            self._squares = 0.0
            raise
        return self._normed

    def buffers(self) -> list[Tensor]:
        """What is held on the host beside the optimizer: slots and sums."""
        return self._slots + [flat.total for flat in self.flats if flat.total is not None]

    def forget(self) -> None:
        """Drop all gradients since the last step."""
        super().forget()
        for flat in self.flats:
            flat.arrived.clear()

    def finish(self) -> None:
        """Until all updates are done; what is launched from now on finds all weights."""
        self._lanes.wait()
        self.use_weights()

    def use_weights(self) -> None:
        """Let what is launched from now on find all weights."""
        self.use(self._buckets)

    def write_weights(self, flat: Flat, values: Tensor) -> None:
        """Set a flat's weights, from (n,)."""
        start = 0
        for weights in flat.weights:
            part = values[start : (start := start + weights.numel())]
            weights.data.copy_(part.view_as(weights), non_blocking=self._overlaps)

    def _hold_back(self, model: nn.Module) -> None:
        """Let every module wait for the weights that it reads: its own, and its leaves', which some read uncalled."""
        for module in model.modules():
            leaves = [child for child in module.children() if not any(True for _ in child.children())]
            self._wait_before(module, [item for part in (module, *leaves) for item in part.parameters(recurse=False)])

    def runs_whole(self, module: nn.Module) -> None:
        """Let a module wait for all weights below it, where what is below runs without its hooks."""
        self._wait_before(module, module.parameters())

    def _wait_before(self, module: nn.Module, read: Iterable[nn.Parameter]) -> None:
        flats = {id(flat): flat.bucket for item in read if (flat := self._flat_of.get(item))}
        if flats:
            buckets = list(flats.values())
            hook = module.register_forward_pre_hook(_WeightsWait(self, buckets))
            # The model often outlives the optimizer.
            weakref.finalize(self, hook.remove)

    # What the pipeline has done, see `OffloadStep`.

    @torch.no_grad()
    def add_squares(self, bucket: Bucket, gradient: list[Tensor]) -> None:
        # In float32, for which no copy is made of the gradient; their squares' sum is in float64.
        norms = torch._foreach_norm(gradient, 2, torch.float32)
        self._noted[bucket.index] = torch.stack(norms).double().square().sum()

    @torch.no_grad()
    def copy_out(self, bucket: Bucket, gradient: list[Tensor], slot: int) -> None:
        # In turn, what follows reads or writes the slot at once: then every copy is waited for.
        arrived, start = self._of_slot(self.flats[bucket.index], slot), 0
        for grad in gradient:
            arrived[start : (start := start + grad.numel())].copy_(grad.reshape(-1), non_blocking=self._overlaps)
            if self._overlaps and grad.is_cuda:
                # Its memory is the pass's, which must not take it for something else before the copy is done.
                grad.record_stream(torch.cuda.current_stream(grad.device))

    def drain(self, bucket: Bucket, slot: int, *, begins: bool) -> None:
        flat = self.flats[bucket.index]
        arrived = self._of_slot(flat, slot)
        if flat.total is None:
            flat.total = torch.empty_like(arrived, pin_memory=False)
        if begins:
            flat.total.copy_(arrived)
        else:
            # Only a sum needs float32.
            flat.total = flat.total.to(torch.float32)
            self._host.add(flat.total, arrived)

    def sum_squares(self) -> None:
        torch.sum(self._noted, dim=0, out=self._squares_on_device)

    def copy_norm(self) -> None:
        self._copied_squares.copy_(self._squares_on_device, non_blocking=True)

    def add_squares_on_host(self, bucket: Bucket, slot: int | None) -> None:
        flat = self.flats[bucket.index]
        grad = flat.total if slot is None else self._of_slot(flat, slot)
        self._squares += self._host.sum_squares(grad)  # type: ignore[arg-type]

    def clip(self, settings: list[dict[str, Any]], *, on_host: bool) -> None:
        squares, self._squares = self._squares if on_host else self._copied_squares.item(), 0.0
        self._grad_norm = math.sqrt(squares) if squares < math.inf else math.inf
        is_finite = math.isfinite(self._grad_norm)
        self._grad_scale = clip_factor(self._grad_norm, self._max_grad_norm) if is_finite else math.nan
        self._settings = settings

    def update(self, bucket: Bucket, slot: int, *, from_sum: bool) -> None:
        flat = self.flats[bucket.index]
        weights = self._of_slot(flat, slot)
        if math.isfinite(self._grad_scale):
            grad = flat.total if from_sum else weights
            out_bf16 = weights if weights.dtype == torch.bfloat16 else None
            group = self._settings[bucket.index]
            self._host.update(group, flat.master, grad, grad_scale=self._grad_scale, out_bf16=out_bf16)  # type: ignore[arg-type]
        if weights.dtype != torch.bfloat16 or not math.isfinite(self._grad_scale):
            weights.copy_(flat.master.detach())

    def copy_in(self, bucket: Bucket, slot: int) -> None:
        flat = self.flats[bucket.index]
        self.write_weights(flat, self._of_slot(flat, slot))

    def _of_slot(self, flat: Flat, slot: int) -> Tensor:
        return self._slots[slot][: flat.bucket.elements * flat.dtype.itemsize].view(flat.dtype)
