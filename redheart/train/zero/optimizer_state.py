"""What a resume state holds of an engine as plain tensors by name: masters, optimizer states, buffers; out and in."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from redheart.core.errors import CorruptFile

BUFFER = "buffer"
"""Begins the name of a buffer, as a number does that of a group's tensor."""


def held_bytes(masters: list[Tensor], optimizer: torch.optim.Optimizer, staging: list[Tensor]) -> dict[str, int]:
    """Bytes of host memory by role."""
    counted: set[int] = set()

    def total(tensors: Iterable[object]) -> int:
        # What two roles share counts for the first, and a map that all states share once.
        held = {item.data_ptr(): item.nbytes for item in tensors if isinstance(item, Tensor) and item.nbytes}
        size = sum(value for address, value in held.items() if address not in counted)
        counted.update(held)
        return size

    return {
        "masters": total(masters),
        "gradients": total(master.grad for master in masters),
        "states": total(value for master in masters for value in optimizer.state[master].values()),
        "staging": total(staging),
    }


def tensors_of(
    masters: list[Tensor], optimizer: torch.optim.Optimizer, module: nn.Module
) -> Iterator[tuple[str, Tensor]]:
    """All of it, one after the other: `GROUP.master`, `GROUP.state1` and so on, then `buffer.NAME`."""
    for index, master in enumerate(masters):
        yield f"{index}.master", master.detach()
        for name, value in sorted(optimizer.state[master].items()):
            yield f"{index}.{name}", value if isinstance(value, Tensor) else torch.tensor(value)
    for name, buffer in module.named_buffers():
        yield f"{BUFFER}.{name}", buffer


def load_tensors(masters: list[Tensor], optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Read one tensor at a time: a whole state beside the engine's own would make the peak of a resume."""
    names: dict[int, list[str]] = {index: [] for index in range(len(masters))}
    for name in tensors:
        group, _, key = name.partition(".")
        if group != BUFFER and key != "master":
            names[int(group)].append(name)
    for index, master in enumerate(masters):
        saved = tensors[f"{index}.master"]
        if saved.shape != master.shape:
            raise CorruptFile(
                "the state belongs to another model",
                where=f"{index}.master",
                got=tuple(saved.shape),
                expected=tuple(master.shape),
                hint="resume with the same preset and strategy",
            )
        master.data.copy_(saved)
        del saved
        state: dict[str, object] = {}
        for name in names[index]:
            key = name.partition(".")[2]
            is_step_count = key == "step" and not isinstance(optimizer, torch.optim.AdamW)
            state[key] = int(tensors[name]) if is_step_count else tensors[name].to(master.device)
        optimizer.state[master] = state
    _count_powers(optimizer, max((int(state.get("step", 0)) for state in optimizer.state.values()), default=0))


def _count_powers(optimizer: Any, steps: int) -> None:
    """Let DeepSpeedCPUAdam hold its powers of beta after so many steps, which no state has.

    It multiplies them from step to step, and where the number of the step jumps takes `pow`, of other last bits.
    """
    native: Any = getattr(optimizer, "ds_opt_adam", None)
    if native is None:
        return
    group, none = optimizer.param_groups[0], [torch.empty(0)] * 4
    for step in range(1, steps + 1):
        native.adam_update(optimizer.opt_id, step, 0.0, *group["betas"], group["eps"], 0.0, True, *none)  # type: ignore[attr-defined]


def load_buffers(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy what a state holds of a module's buffers into them; states of old hold none."""
    for name, buffer in module.named_buffers():
        if f"{BUFFER}.{name}" in tensors:
            buffer.copy_(tensors[f"{BUFFER}.{name}"])
