"""Sizes of the network: the table of the full model, and one dial that derives every other preset from it."""

from dataclasses import dataclass, fields, replace
from typing import Any

HEAD_WIDTH = 64
"""Channels of an attention head where the width allows it."""
TASKS = ("emotion", "bentham", "regret", "surd")


@dataclass(frozen=True)
class ReaderDims:
    """An analyzer: learned queries read the token states, then think in a transformer of their own width."""

    width: int
    layers: int
    hidden: int
    queries: int


@dataclass(frozen=True)
class HeadDims:
    """A prediction head: a mixture of experts on the task's state."""

    experts: int
    hidden: int


@dataclass(frozen=True)
class ModelDims:
    """Every size of the network. `outputs` are the numbers of targets per task, in the order of `TASKS`."""

    width: int
    layers: int
    hidden: int
    neural: tuple[ReaderDims, ...]
    advanced: tuple[ReaderDims, ...]
    trunk_layers: int
    trunk_hidden: int
    trunk_registers: int
    heads: tuple[HeadDims, ...]
    dsp_bands: int
    dsp_taps: int
    dsp_width: int
    dsp_hidden: int
    calibrator_hidden: int
    empathy_width: int
    community_width: int
    community_hidden: int
    outputs: tuple[int, int, int, int] = (7, 10, 1, 4)
    dropout: float = 0.0

    def num_outputs(self, task: str) -> int:
        """Number of targets of a task."""
        return self.outputs[TASKS.index(task)]


def num_heads(width: int) -> int:
    """Attention heads of a block: 64 channels each, or one head where the width is no multiple of 64."""
    return width // HEAD_WIDTH if width % HEAD_WIDTH == 0 else 1


FULL = ModelDims(
    width=896,
    layers=8,
    hidden=3584,
    neural=(
        ReaderDims(width=1024, layers=9, hidden=4112, queries=80),
        ReaderDims(width=896, layers=7, hidden=4128, queries=32),
        ReaderDims(width=1152, layers=9, hidden=4840, queries=16),
        ReaderDims(width=512, layers=4, hidden=1792, queries=32),
    ),
    advanced=(
        ReaderDims(width=896, layers=6, hidden=3616, queries=16),
        ReaderDims(width=256, layers=2, hidden=896, queries=16),
        ReaderDims(width=768, layers=6, hidden=2832, queries=16),
        ReaderDims(width=256, layers=2, hidden=608, queries=16),
    ),
    trunk_layers=9,
    trunk_hidden=3784,
    trunk_registers=6,
    heads=(HeadDims(8, 984), HeadDims(8, 744), HeadDims(8, 1160), HeadDims(8, 612)),
    dsp_bands=128,
    dsp_taps=17,
    dsp_width=448,
    dsp_hidden=1920,
    calibrator_hidden=2234,
    empathy_width=64,
    community_width=320,
    community_hidden=1776,
)


def scaled(divisor: int) -> ModelDims:
    """The full model with every width divided by `divisor` and every depth by its cube root.

    Parameters fall by about divisor^(7/3) and keep the groups' proportions.
    """

    def width(value: int) -> int:
        return max(8, round(value / divisor / 8) * 8)

    def depth(value: int) -> int:
        return max(1, round(value / divisor ** (1 / 3)))

    def reader(dims: ReaderDims) -> ReaderDims:
        return ReaderDims(width(dims.width), depth(dims.layers), width(dims.hidden), max(2, depth(dims.queries)))

    names = [item.name for item in fields(FULL) if item.name.endswith(("width", "hidden", "bands"))]
    widths: dict[str, Any] = {name: width(getattr(FULL, name)) for name in names}
    return replace(
        FULL,
        **widths,
        layers=depth(FULL.layers),
        neural=tuple(map(reader, FULL.neural)),
        advanced=tuple(map(reader, FULL.advanced)),
        trunk_layers=depth(FULL.trunk_layers),
        trunk_registers=max(1, depth(FULL.trunk_registers)),
        heads=tuple(HeadDims(depth(head.experts), width(head.hidden)) for head in FULL.heads),
    )


PRESET_DIVISOR = {"tiny": 32, "small": 10, "full": 1}


def preset(name: str, *, outputs: tuple[int, int, int, int] = FULL.outputs, dropout: float = 0.0) -> ModelDims:
    """The sizes called `tiny`, `small` or `full`."""
    divisor = PRESET_DIVISOR[name]
    dims = FULL if divisor == 1 else scaled(divisor)
    return replace(dims, outputs=outputs, dropout=dropout)
