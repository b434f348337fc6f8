"""An optimizer for any training loop whose master weights and states lie on the host: `OffloadAdamW8bit`.

    optimizer = OffloadAdamW8bit(model.parameters(), lr=1e-4, max_grad_norm=1.0)
    ...
    loss.backward()
    optimizer.step()

The device holds the model in bf16 and no gradient longer than its backward pass needs it: 2 bytes a parameter and a
little more. The host holds masters in float32, two moments of 8 bits, and the gradients.
"""

import math
from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from redheart.memory.adamw8bit.optimizer import HostAdamW8bit, clip_factor
from redheart.pipeline.bucket import Bucket, bounded
from redheart.pipeline.lanes import InTurn
from redheart.pipeline.step import OffloadStep

RING_BYTES = 256 << 20
"""Memory for gradients that wait for their norm; page-locked where there is a device."""
HYPER_PARAMETERS = ("lr", "betas", "eps", "weight_decay")
_TAKEN: MutableMapping[Tensor, RemovableHandle] = WeakTensorKeyDictionary()
"""The hook of every parameter: a later optimizer takes it over, where an earlier one would take its gradients away."""


@dataclass
class _Flat:
    """Parameters of one group side by side: the memory behind a bucket."""

    bucket: Bucket
    group: int
    parameters: list[nn.Parameter]
    offsets: list[int]
    master: nn.Parameter
    total: Tensor | None = None
    """Sum of the gradients of several backward passes, float32."""
    num_arrived: int = 0

    @property
    def dtype(self) -> torch.dtype:
        return self.parameters[0].dtype


class OffloadAdamW8bit(torch.optim.Optimizer):
    """AdamW whose masters and 8-bit states lie on the host, for parameters in bf16 or float32 on any device.

    Gradients are taken from the parameters as the backward pass makes them (`parameter.grad` is None after it), summed
    over backward passes until `step`, clipped together there, and the new weights are written into the parameters. The
    update is that of the `zero2_offload_adam8bit` strategy, bit for bit: parameters without a gradient count as zeros.

    Args:
        params: parameters or groups of them, in the order of the forward pass; those that require no gradient are left
            alone, masters are taken at the first step. Groups may set `state_bits` to 32, as for norms and biases.
        max_grad_norm: the gradients' common norm is clipped to it, None clips nothing; a loop's own clipping finds no
            gradient, so that it has to be said here. A norm that is NaN or Inf changes nothing.
        ring_bytes: memory for gradients on their way.

    Raises:
        ValueError: no parameter requires a gradient, or there are several ranks, whose gradients nobody would average.

    In a loop of one's own, `transformers.Trainer`, TRL's `SFTTrainer`, Lightning: docs/your-loop.md has the lines.
    `grad_norm` is the last step's norm before clipping. Copies are made one after the other; what keeps them beside
    the pass on a card is the pipeline's (`redheart.pipeline.step`).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        max_grad_norm: float | None,
        ring_bytes: int = RING_BYTES,
    ):
        if distributed.is_initialized() and distributed.get_world_size() > 1:
            raise ValueError("OffloadAdamW8bit is for one rank: nothing averages the gradients of several")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "state_bits": 8})
        self.max_grad_norm, self.grad_norm = max_grad_norm, math.nan
        self._flats = self._flattened()
        self._host = HostAdamW8bit(
            [
                {"params": [flat.master], "state_bits": self.param_groups[flat.group]["state_bits"]}
                for flat in self._flats
            ]
        )
        buckets = [flat.bucket for flat in self._flats]
        self._pipeline = OffloadStep(buckets, InTurn(), ring_bytes=ring_bytes, work=self)
        largest = max(flat.bucket.elements * flat.dtype.itemsize for flat in self._flats)
        pinned = any(flat.parameters[0].is_cuda for flat in self._flats)
        self._slots = [
            torch.empty(largest, dtype=torch.uint8, pin_memory=pinned) for _ in range(self._pipeline.num_slots)
        ]
        self._flat_of = {parameter: flat for flat in self._flats for parameter in flat.parameters}
        self._squares, self._grad_scale = 0.0, 1.0
        for parameter in self._flat_of:
            if parameter in _TAKEN:
                _TAKEN[parameter].remove()
            _TAKEN[parameter] = parameter.register_post_accumulate_grad_hook(self._arrived)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused once the optimizer is made: buckets and states are laid out then.

        Raises:
            ValueError: it is made.
        """
        if hasattr(self, "_flats"):
            raise ValueError("OffloadAdamW8bit takes no further parameters: make a new one with all that are trained")
        super().add_param_group(param_group)

    def _flattened(self) -> list[_Flat]:
        flats: list[_Flat] = []
        for number, group in enumerate(self.param_groups):
            trained = [parameter for parameter in group["params"] if parameter.requires_grad]
            for _, of_a_type in groupby(trained, key=lambda parameter: parameter.dtype):
                for part in bounded(of_a_type):
                    *offsets, elements = accumulate((item.numel() for item in part), initial=0)
                    bucket = Bucket(len(flats), f"group {number}", elements)
                    flats.append(_Flat(bucket, number, part, offsets, nn.Parameter(torch.empty(elements))))
        if not flats:
            raise ValueError("no parameter requires a gradient")
        return flats

    def _arrived(self, parameter: Tensor) -> None:
        flat = self._flat_of[parameter]  # type: ignore[index]
        flat.num_arrived += 1
        if flat.num_arrived == len(flat.parameters):
            flat.num_arrived = 0
            self._pipeline.gradient_ready(flat.bucket)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update with the gradients of all backward passes since the last."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not self._host.state:
            # Not before: weights may be loaded after the optimizer is made.
            for flat in self._flats:
                torch.cat([item.reshape(-1).to("cpu", torch.float32) for item in flat.parameters], out=flat.master.data)
        for flat, group in zip(self._flats, self._host.param_groups, strict=True):
            group.update({name: self.param_groups[flat.group][name] for name in HYPER_PARAMETERS})
            if flat.num_arrived or not self._pipeline.has_gradient(flat.bucket):
                # What no pass has used is zero.
                flat.num_arrived = 0
                self._pipeline.gradient_ready(flat.bucket)
        self._squares = 0.0
        self._pipeline.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, those that have left for the host as well."""
        super().zero_grad(set_to_none=True)
        self._pipeline.forget()
        for flat in self._flats:
            flat.total, flat.num_arrived = None, 0

    def state_dict(self) -> dict[str, Any]:
        """Groups, masters and states, once there are any: accelerate loads the first back from the device.

        The tensors are the optimizer's own.
        """
        groups = [{name: value for name, value in group.items() if name != "params"} for group in self.param_groups]
        masters = [flat.master.detach() for flat in self._flats] if self._host.state else []
        return {"param_groups": groups, "masters": masters, "host": self._host.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state; the parameters take the masters' values.

        Raises:
            ValueError: it is that of other parameters.
        """
        sizes = [len(master) for master in state_dict["masters"]]
        if sizes not in ([], [len(flat.master) for flat in self._flats]) or len(state_dict["param_groups"]) != len(
            self.param_groups
        ):
            raise ValueError("the state is that of other parameters, or of other groups of them")
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update(saved)
        self._host.load_state_dict(state_dict["host"])
        for flat, master in zip(self._flats, state_dict["masters"], strict=bool(sizes)):
            flat.master.copy_(master)
            self._write(flat, flat.master)

    # What the pipeline has done, see `redheart.pipeline.step.Work`.

    def add_squares(self, bucket: Bucket) -> None:
        """Nothing: the norm is taken of what has arrived."""

    @torch.no_grad()
    def copy_out(self, bucket: Bucket, slot: int) -> None:
        flat = self._flats[bucket.index]
        arrived = self._slot(flat, slot)
        for parameter, offset in zip(flat.parameters, flat.offsets, strict=True):
            part = arrived[offset : offset + parameter.numel()]
            if parameter.grad is None:
                part.zero_()
            else:
                part.copy_(parameter.grad.reshape(-1))
                parameter.grad = None

    def drain(self, bucket: Bucket, slot: int) -> None:
        flat = self._flats[bucket.index]
        arrived = self._slot(flat, slot)
        if flat.total is None:
            flat.total = arrived.to(torch.float32, copy=True)
        else:
            self._host.add(flat.total, arrived)

    def add_squares_of_sum(self, bucket: Bucket) -> None:
        total = self._flats[bucket.index].total
        assert total is not None
        self._squares += self._host.sum_squares(total)
        self._set_norm()

    def copy_norm(self) -> None:
        for flat, slot in zip(self._flats, self._pipeline.slots(), strict=True):
            grad = flat.total if slot is None else self._slot(flat, slot)
            self._squares += self._host.sum_squares(grad)  # type: ignore[arg-type]
        self._set_norm()

    def _set_norm(self) -> None:
        self.grad_norm = math.sqrt(self._squares) if self._squares < math.inf else math.inf
        is_finite = math.isfinite(self.grad_norm)
        self._grad_scale = clip_factor(self.grad_norm, self.max_grad_norm) if is_finite else math.nan

    def update(self, bucket: Bucket, slot: int, *, from_sum: bool) -> None:
        flat = self._flats[bucket.index]
        weights = self._slot(flat, slot)
        if math.isfinite(self._grad_scale):
            grad = flat.total if from_sum else weights
            out_bf16 = weights if weights.dtype == torch.bfloat16 else None
            group = self._host.param_groups[bucket.index]
            self._host.update(group, flat.master, grad, grad_scale=self._grad_scale, out_bf16=out_bf16)  # type: ignore[arg-type]
        if weights.dtype != torch.bfloat16 or not math.isfinite(self._grad_scale):
            weights.copy_(flat.master.detach())
        flat.total = None

    def copy_in(self, bucket: Bucket, slot: int) -> None:
        flat = self._flats[bucket.index]
        self._write(flat, self._slot(flat, slot))

    @staticmethod
    def _write(flat: _Flat, weights: Tensor) -> None:
        for parameter, offset in zip(flat.parameters, flat.offsets, strict=True):
            parameter.data.copy_(weights[offset : offset + parameter.numel()].view_as(parameter))

    def _slot(self, flat: _Flat, slot: int) -> Tensor:
        return self._slots[slot][: flat.bucket.elements * flat.dtype.itemsize].view(flat.dtype)
