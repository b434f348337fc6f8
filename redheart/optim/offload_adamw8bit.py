"""An optimizer for any training loop whose master weights and states lie on the host: `OffloadAdamW8bit`.

    optimizer = OffloadAdamW8bit(model.parameters(), lr=1e-4, max_grad_norm=1.0)
    ...
    loss.backward()
    optimizer.step()

The device holds the model in bf16 and no gradient longer than its backward pass needs it: 2 bytes a parameter and a
little more. The host holds masters in float32, two moments of 8 bits, and the gradients.
"""

import weakref
from collections.abc import Callable, Iterable, MutableMapping
from itertools import groupby
from typing import Any, NoReturn

import torch
from torch import Tensor, distributed, nn
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from redheart.optim.host_adamw8bit import HostAdamW8bit, check_hyper_parameters
from redheart.optim.offloaded import RING_BYTES, Flat, Offloaded
from redheart.pipeline.bucket import Bucket, bounded

HYPER_PARAMETERS = ("lr", "betas", "eps", "weight_decay")
_TAKEN: MutableMapping[Tensor, RemovableHandle] = WeakTensorKeyDictionary()
"""The hook of every parameter: a later optimizer takes it over, where an earlier one would take its gradients away."""


class OffloadAdamW8bit(torch.optim.Optimizer):
    """AdamW whose masters and 8-bit states lie on the host, for parameters in bf16 or float32 on any device.

    Gradients are taken from the parameters as the backward pass makes them (`parameter.grad` is None after it), summed
    over backward passes until `step`, clipped together there, and the new weights are written into the parameters. The
    update is that of the `zero2_offload_adam8bit` strategy, bit for bit: parameters without a gradient count as zeros.

    Args:
        params: parameters or groups of them; those that require no gradient are left alone, masters are taken at the
            first step. Groups may set `state_bits` to 32, as for norms and biases.
        max_grad_norm: the gradients' common norm is clipped to it, None clips nothing; a loop's own clipping finds no
            gradient, so that it has to be said here. A norm that is NaN or Inf changes nothing.
        ring_bytes: memory for gradients on their way.
        overlap: the model, on a CUDA device: copies and updates go on beside its passes. Its modules wait for their
            weights; call `finish` before anything else reads them. Without it a step is done when `step` returns.

    Raises:
        ValueError: no parameter requires a gradient or one is of another type; a hyper-parameter is out of its range;
            there are several ranks, whose gradients nobody would average; or `overlap` without a CUDA device.

    In a loop of one's own, `transformers.Trainer`, TRL's `SFTTrainer`, Lightning: docs/your-loop.md has the lines.
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
        overlap: nn.Module | None = None,
    ):
        if distributed.is_initialized() and distributed.get_world_size() > 1:
            raise ValueError("OffloadAdamW8bit is for one rank: nothing averages the gradients of several")
        defaults: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        check_hyper_parameters(**defaults)
        super().__init__(params, defaults | {"state_bits": 8})
        for group in self.param_groups:
            _check_group(group)
        flats = self._flattened()
        self._host = HostAdamW8bit(
            [
                {"params": [flat.master], "state_bits": self.param_groups[group]["state_bits"]}
                for flat, group in zip(flats, self._group_of, strict=True)
            ]
        )
        self._work = Offloaded(flats, self._host, max_grad_norm=max_grad_norm, ring_bytes=ring_bytes, overlap=overlap)
        self._types = {parameter: parameter.dtype for flat in flats for parameter in flat.parameters}
        self._hooks = {item: item.register_post_accumulate_grad_hook(_hook_of(self)) for item in self._types}
        for parameter, hook in self._hooks.items():
            if parameter in _TAKEN:
                _TAKEN[parameter].remove()
            _TAKEN[parameter] = hook

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("OffloadAdamW8bit is bound to its parameters: keep its state_dict() instead of a copy of it")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused once the optimizer is made: buckets and states are laid out then.

        Raises:
            ValueError: it is made.
        """
        if hasattr(self, "_work"):
            raise ValueError("OffloadAdamW8bit takes no further parameters: make a new one with all that are trained")
        super().add_param_group(param_group)

    @property
    def grad_norm(self) -> float:
        """The last step's norm before clipping; NaN before the first."""
        return self._work.grad_norm

    def _flattened(self) -> list[Flat]:
        flats: list[Flat] = []
        self._group_of: list[int] = []
        for number, group in enumerate(self.param_groups):
            trained = [parameter for parameter in group["params"] if parameter.requires_grad]
            if others := {str(item.dtype) for item in trained} - {"torch.bfloat16", "torch.float32"}:
                raise ValueError(f"parameters are in {', '.join(sorted(others))}, expected bfloat16 or float32")
            for _, of_a_type in groupby(trained, key=lambda parameter: parameter.dtype):
                for part in bounded(of_a_type):
                    bucket = Bucket(len(flats), f"group {number}", sum(item.numel() for item in part))
                    # Whatever torch's defaults are: the kernel reads float32 on the host.
                    master = nn.Parameter(torch.empty(bucket.elements, dtype=torch.float32, device="cpu"))
                    flats.append(Flat(bucket, part, master, weights=list(part)))
                    self._group_of.append(number)
        if not any(flat.bucket.elements for flat in flats):
            raise ValueError("no parameter with elements requires a gradient")
        return flats

    def _arrived(self, parameter: nn.Parameter) -> None:
        grad, parameter.grad = parameter.grad, None
        assert grad is not None
        if grad.is_sparse:
            raise ValueError("OffloadAdamW8bit takes no sparse gradients: make the embedding with sparse=False")
        if grad.dtype != self._types[parameter]:
            was = str(self._types[parameter]).removeprefix("torch.")
            raise ValueError(f"a parameter is no longer in {was}: make the optimizer after the model is cast")
        self._work.arrived(parameter, grad)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update with the gradients of all backward passes since the last, and with those that a loop has set.

        Raises:
            ValueError: what requires a gradient has changed, another optimizer has taken parameters over, or a group's
                setting is out of its range; nothing is changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Trained is what was laid out; torch's optimizers look at every step.
        if any(
            parameter.requires_grad != (parameter in self._types)
            for group in self.param_groups
            for parameter in group["params"]
        ):
            raise ValueError("what requires a gradient has changed since the optimizer was made: make a new one")
        if any(_TAKEN.get(parameter) is not hook for parameter, hook in self._hooks.items()):
            raise ValueError("a later OffloadAdamW8bit has taken parameters over: this one would put back its weights")
        for group in self.param_groups:
            _check_group(group)
        for parameter in self._types:
            if parameter.grad is not None:
                # Set by hand, or of a pass before the optimizer was made.
                self._arrived(parameter)
        if not self._host.state:
            # Not before: weights may be loaded after the optimizer is made.
            self._work.use_weights()
            for flat in self._work.flats:
                torch.cat([item.reshape(-1).to("cpu", torch.float32) for item in flat.parameters], out=flat.master.data)
        groups = [self.param_groups[number] for number in self._group_of]
        self._work.step([{name: group[name] for name in HYPER_PARAMETERS} for group in groups])
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, those that have left for the host as well."""
        super().zero_grad(set_to_none=True)
        self._work.forget()

    def finish(self) -> None:
        """With `overlap`, until the last step's updates are done, whose weights all that is launched then finds."""
        self._work.finish()

    def state_dict(self) -> dict[str, Any]:
        """Groups, masters and states, once there are any: accelerate loads the first back from the device.

        The tensors are the optimizer's own.
        """
        self.finish()
        groups = [{name: value for name, value in group.items() if name != "params"} for group in self.param_groups]
        masters = [flat.master.detach() for flat in self._work.flats] if self._host.state else []
        return {
            "param_groups": groups,
            "masters": masters,
            "host": self._host.state_dict(),
            "shapes": self._shapes(),
        }

    def _shapes(self) -> list[list[list[int]]]:
        return [[list(parameter.shape) for parameter in flat.parameters] for flat in self._work.flats]

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state; the parameters take the masters' values.

        Raises:
            ValueError: it is that of other parameters: of other shapes, or, where parameters were given with names, of
                other names.
        """
        self.finish()
        if "masters" not in state_dict:
            raise ValueError("the state is that of another optimizer, expected one of OffloadAdamW8bit")
        sizes = [len(master) for master in state_dict["masters"]]
        own = [len(flat.master) for flat in self._work.flats]
        names, saved_names = (
            [group.get("param_names") for group in groups] for groups in (self.param_groups, state_dict["param_groups"])
        )
        is_same = sizes in ([], own) and state_dict.get("shapes", self._shapes()) == self._shapes()
        if not is_same or len(saved_names) != len(names) or (None not in names + saved_names and saved_names != names):
            raise ValueError("the state is that of other parameters, or of other groups of them")
        self._host.load_state_dict(state_dict["host"])
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update(saved)
        for flat, master in zip(self._work.flats, state_dict["masters"], strict=bool(sizes)):
            flat.master.copy_(master)
            self._work.write_weights(flat, flat.master)


def _check_group(group: dict[str, Any]) -> None:
    check_hyper_parameters(**{name: group[name] for name in HYPER_PARAMETERS})
    if group["state_bits"] not in (8, 32):
        raise ValueError(f"state_bits is {group['state_bits']}, expected 8 or 32")


def _hook_of(optimizer: OffloadAdamW8bit) -> Callable[[nn.Parameter], None]:
    """Takes gradients for as long as the optimizer is there: the parameters, which hold the hook, often outlive it."""
    reference = weakref.ref(optimizer)

    def arrived(parameter: nn.Parameter) -> None:
        owner = reference()
        if owner is not None:
            owner._arrived(parameter)

    return arrived
