"""What a resume state holds of an engine as plain tensors by name: masters, optimizer states, buffers; out and in.

A run on M ranks is gone on with by N: ZeRO divides every group's flat tensor evenly. Master weights and 32-bit moments
are moved exactly. Blocks of 8-bit codes begin where a partition begins, so where the new partition does not begin on an
old block they are dequantised and quantised anew, which rounds once more.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from redheart.core.errors import CorruptFile
from redheart.kernel.bindings import BLOCK
from redheart.optim.chunked import dequantise, quantise

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


class Repartitioned(Mapping[str, Tensor]):
    """The tensors of one rank of a new number of ranks, each put together when it is asked for.

    Names are those of `Engine.state_tensors`: `GROUP.master`, `GROUP.step`, and the optimizer's own.

    Args:
        ranks: the tensors of all old ranks.
        sizes: elements of every group's partition on a new rank, padding included.
        rank: the new rank.
    """

    def __init__(self, ranks: Sequence[Mapping[str, Tensor]], *, sizes: Sequence[int], rank: int):
        self._ranks, self._sizes, self._rank = ranks, sizes, rank
        # Buffers are every rank's own, and not divided.
        self._names = [name for name in ranks[0] if name.partition(".")[0] != BUFFER]
        groups = {name.partition(".")[0] for name in self._names}
        if groups != {str(index) for index in range(len(sizes))}:
            raise CorruptFile(
                "the state belongs to another model",
                got=f"{len(groups)} parameter groups",
                expected=len(sizes),
                hint="resume with the same preset and strategy",
            )

    def __getitem__(self, name: str) -> Tensor:
        group, _, key = name.partition(".")
        first = self._ranks[0][name]
        begin = self._rank * self._sizes[int(group)]
        part = slice(begin, begin + self._sizes[int(group)])
        if first.ndim == 0 or key.startswith("qmap"):
            return first
        if key.startswith("absmax"):
            return self._requantised(group, key.removeprefix("absmax"), part)[1]
        if first.dtype == torch.uint8:
            return self._requantised(group, key.removeprefix("state"), part)[0]
        return _cut(torch.cat([tensors[name] for tensors in self._ranks]), part)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def _requantised(self, group: str, moment: str, part: slice) -> tuple[Tensor, Tensor]:
        codes = [tensors[f"{group}.state{moment}"] for tensors in self._ranks]
        absmax = [tensors[f"{group}.absmax{moment}"] for tensors in self._ranks]
        qmap = self._ranks[0][f"{group}.qmap{moment}"]
        if part.start % BLOCK == 0 and all(item.numel() % BLOCK == 0 for item in codes[:-1]):
            length = part.stop - part.start
            zero = int(torch.searchsorted(qmap, 0.0))
            blocks = slice(part.start // BLOCK, part.start // BLOCK - (-length // BLOCK))
            return _cut(torch.cat(codes), part, fill=zero), _cut(torch.cat(absmax), blocks)
        values = torch.cat([dequantise(code, scale, qmap) for code, scale in zip(codes, absmax, strict=True)])
        anew, scales = quantise(_cut(values, part), qmap)
        if moment == "2":
            # As in every step: rounded to zero beside a first moment that is not, it would throw the weight far off.
            anew.clamp_(min=1)
        return anew, scales


def _cut(values: Tensor, part: slice, *, fill: float = 0.0) -> Tensor:
    """A part of a flat tensor; what lies behind its end is padding."""
    found = values[part]
    missing = part.stop - part.start - found.numel()
    return torch.cat([found, torch.full((missing,), fill, dtype=values.dtype)]) if missing else found.clone()
