"""Optimizer states of a run on M ranks as one of N ranks needs them: ZeRO divides every group's flat tensor evenly.

Master weights and 32-bit moments are moved exactly. Blocks of 8-bit codes begin where a partition begins, so where
the new partition does not begin on an old block they are dequantised and quantised anew, which rounds once more.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from redheart.core.errors import CorruptFile
from redheart.memory.adamw8bit.chunked import dequantise, quantise
from redheart.memory.adamw8bit.kernel import BLOCK
from redheart.train.zero.optimizer_state import BUFFER


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
