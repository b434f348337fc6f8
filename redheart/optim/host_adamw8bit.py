"""The optimizer: bitsandbytes' state layout, the fused kernel or the chunked fallback behind it."""

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from redheart.core.progress import note
from redheart.kernel.bindings import BLOCK, Kernel, Moments, StepScalars, fastest
from redheart.optim.chunked import CardKernel, Chunked

MIN_8BIT_ELEMENTS = 4096
"""A smaller tensor keeps 32-bit states: nothing is saved and a block of 256 would be a good part of it."""
# Under this key bitsandbytes hides its quantised states from FSDP.
BITSANDBYTES_NESTED = "__bnb_optimizer_quant_state__"


class HostAdamW8bit(torch.optim.Optimizer):
    """AdamW on the CPU with 8-bit states where they pay.

    Groups may set `state_bits` to 32 (norms and biases); tensors under 4,096 elements have 32-bit states in any case.
    Those with a true `on_card` are updated where their tensors are, by bitsandbytes.
    8-bit states are `state1`, `state2` (uint8 codes), `absmax1`, `absmax2` (float32 per 256) and `qmap1`, `qmap2`,
    under bitsandbytes' names, and load into `bitsandbytes.optim.AdamW8bit` and back; 32-bit ones are `state1`,
    `state2` in float32, as there. `kernel` is another path than this machine's fastest.

    Raises:
        ValueError: a hyper-parameter is out of its range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        min_code2: int = 1,
        kernel: Kernel | None = None,
    ):
        defaults: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        check_hyper_parameters(**defaults)
        super().__init__(params, defaults | {"state_bits": 8})
        self._min_code2 = min_code2
        self._backend = kernel or backend()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_min_code2": self._min_code2}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # Where a state is loaded, it stays the one that the optimizer has.
        self.__dict__.setdefault("_backend", backend())

    def leave_a_core(self) -> None:
        """Take one thread less than torch has, for somebody has other work to do meanwhile."""
        if isinstance(self._backend, Kernel):
            self._backend = self._backend.with_threads(max(1, torch.get_num_threads() - 1))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step on every parameter that has a gradient."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update(group, parameter, parameter.grad)
        return loss

    @torch.no_grad()
    def update(
        self,
        group: dict[str, Any],
        parameter: Tensor,
        grad: Tensor,
        *,
        grad_scale: float = 1.0,
        out_bf16: Tensor | None = None,
    ) -> None:
        """One step on one parameter, its gradient scaled on the way and its bf16 copy written in the same pass."""
        scalars = self.begin(group, parameter, grad_scale)
        self.update_part(group, parameter, grad, scalars, slice(0, parameter.numel()), out_bf16)

    def add(self, total: Tensor, addend: Tensor) -> None:
        """Add a gradient, (n,) bfloat16 or float32, to a sum of gradients beside it, (n,) float32."""
        if addend.dtype == torch.bfloat16 and not addend.is_cuda:
            self._backend.add(total, addend)
        else:
            total.add_(addend)

    def begin(self, group: dict[str, Any], parameter: Tensor, grad_scale: float) -> StepScalars:
        """Count a step on one parameter, with states at zero before the first; what every part of it takes."""
        state = self.state[parameter]
        if not state:
            self._start(state, parameter, group["state_bits"])
        state["step"] += 1
        beta1, beta2 = group["betas"]
        return StepScalars(
            step=state["step"],
            learning_rate=group["lr"],
            beta1=beta1,
            beta2=beta2,
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            grad_scale=grad_scale,
            min_code2=self._min_code2,
        )

    @torch.no_grad()
    def update_part(
        self,
        group: dict[str, Any],
        parameter: Tensor,
        grad: Tensor,
        scalars: StepScalars,
        part: slice,
        out_bf16: Tensor | None,
    ) -> None:
        """The step that was begun, of a part of [0, n) from a multiple of 256.

        `parameter` and `grad` are whole, (n,); `out_bf16` is where the part's new weights are written too.
        """
        path = CardKernel() if group.get("on_card") else self._backend
        state = self.state[parameter]
        master, flat_grad = parameter.data.view(-1)[part], grad.reshape(-1)[part]
        moments = Moments((state["state1"].view(-1)[part], state["state2"].view(-1)[part]))
        if moments.states[0].dtype == torch.uint8:
            blocks = slice(part.start // BLOCK, -(-part.stop // BLOCK))
            absmax = state["absmax1"][blocks], state["absmax2"][blocks]
            moments = Moments(moments.states, absmax, (state["qmap1"], state["qmap2"]))
        path.update(scalars, master, flat_grad, moments, out_bf16)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a state of this class or of `bitsandbytes.optim.AdamW8bit`; tensors are copied in their own dtype to
        their parameter's device.

        Raises:
            ValueError: the groups are of another number or size.
        """
        # torch's own loader would turn the uint8 codes into the parameter's float32.
        groups = [
            {"state_bits": group["state_bits"], **saved}
            for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True)
        ]
        super().load_state_dict({"state": {}, "param_groups": groups})
        saved_ids = [index for group in groups for index in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for index, parameter in zip(saved_ids, parameters, strict=True):
            saved = dict(state_dict["state"].get(index, {}))
            saved.update(saved.pop(BITSANDBYTES_NESTED, {}))
            if saved:
                self.state[parameter] = {
                    name: value.to(parameter.device, copy=True) if isinstance(value, Tensor) else value
                    for name, value in saved.items()
                }

    def sum_squares(self, grad: Tensor) -> float:
        """Sum of squares of a gradient, in double precision."""
        return (CardKernel() if grad.is_cuda else self._backend).sum_squares(grad)

    def _start(self, state: dict[str, Any], parameter: Tensor, state_bits: int) -> None:
        if parameter.dtype != torch.float32 or not parameter.is_contiguous():
            # The kernel goes by addresses.
            raise TypeError(f"a contiguous float32 parameter is needed, got {parameter.dtype}, {parameter.stride()}")
        state["step"] = 0
        if state_bits == 32 or parameter.numel() < MIN_8BIT_ELEMENTS:
            state["state1"], state["state2"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            return
        blocks = -(-parameter.numel() // BLOCK)
        for moment, qmap in (("1", dynamic_map(True)), ("2", dynamic_map(False))):
            zero = int(torch.searchsorted(qmap, 0.0))
            state[f"state{moment}"] = torch.full_like(parameter, zero, dtype=torch.uint8)
            state[f"qmap{moment}"] = qmap.to(parameter.device)
            state[f"absmax{moment}"] = parameter.new_zeros(blocks)


def check_hyper_parameters(*, lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> None:
    """The ranges of torch's AdamW.

    Raises:
        ValueError: one is outside.
    """
    for name, value in {"lr": lr, "eps": eps, "weight_decay": weight_decay}.items():
        if not value >= 0:
            raise ValueError(f"{name} is {value}, expected 0 or more")
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas are {betas}, expected two of at least 0 and below 1")


def clip_factor(norm: float, max_norm: float | None) -> float:
    """What every gradient is multiplied by so that their common norm is at most `max_norm`; None or 0 clips nothing.

    So does what is negative, as in transformers. The constant keeps the quotient finite, as in DeepSpeed's
    `unscale_and_clip_grads`.
    """
    return min(1.0, max_norm / (norm + 1e-6)) if max_norm is not None and max_norm > 0 else 1.0


@cache
def dynamic_map(signed: bool) -> Tensor:
    """bitsandbytes' dynamic map, (256,) float32 ascending."""
    from bitsandbytes.functional import create_dynamic_map

    return torch.as_tensor(create_dynamic_map(signed=signed), dtype=torch.float32)


@cache
def backend() -> Kernel | Chunked:
    """The fastest way that this machine has to make a step; says once if it is the slow one."""
    kernel, reason = fastest()
    if kernel is None:
        note(f"the optimizer's step runs in plain torch and is slow; {reason}")
    return kernel or Chunked()
