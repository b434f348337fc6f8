"""A training strategy, and its buffers beside activations: what, where, how large, how long, from which code.

The strategies themselves are in `redheart/train/strategies.py`; here is what they are made of.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from redheart.core.config import TrainConfig

Where = Literal["device", "host"]
Per = Literal["once", "group", "parameter"]
Groups = Sequence[dict[str, object]]
"""Parameter groups as `redheart.train.zero.groups` makes them."""
Life = Literal["always", "init", "init_all", "backward", "boundary", "accumulation", "step", "step_all"]

DS_CONFIGS = Path(__file__).parents[1] / "ds_configs"
"""Where DeepSpeed's configurations lie."""
SLOTS = "page-locked slots"
"""The line of what copies to and from a device pass through; without one there are none."""


@dataclass(frozen=True)
class ModelSizes:
    """What the ledger needs to know of a model and its parameter groups."""

    parameters: dict[str, int]
    """Elements of every parameter that is trained, by name."""
    groups: tuple[tuple[str, ...], ...]
    """Names of the parameters of every optimizer group."""
    group_state_bits: tuple[int, ...]
    """Bits of a moment that every group asks for."""
    frozen: tuple[int, ...] = ()
    """Elements of every parameter that is not trained: it has weights, and no gradient, master or states."""
    buffers: tuple[int, ...] = ()
    """Bytes of every buffer."""
    kept_buffer_bytes: int = 0
    """Of those that a checkpoint holds."""

    @property
    def total(self) -> int:
        """Elements of the whole model."""
        return self.trained + sum(self.frozen)

    @property
    def trained(self) -> int:
        """Elements that have masters, gradients and states."""
        return sum(self.parameters.values())


def model_sizes(module: nn.Module, groups: Sequence[Mapping[str, Any]]) -> ModelSizes:
    """Names and sizes of the parameters that are trained and of their optimizer groups (`params`, `state_bits`)."""
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    kept = module.state_dict().keys()
    names = {id(parameter): name for name, parameter in trained.items()}
    return ModelSizes(
        {name: parameter.numel() for name, parameter in trained.items()},
        tuple(tuple(names[id(parameter)] for parameter in group["params"]) for group in groups),
        tuple(int(group["state_bits"]) for group in groups),
        tuple(parameter.numel() for parameter in module.parameters() if not parameter.requires_grad),
        tuple(buffer.nbytes for buffer in module.buffers()),
        sum(buffer.nbytes for name, buffer in module.named_buffers() if name in kept),
    )


@dataclass(frozen=True)
class Entry:
    """One buffer of a strategy.

    Lives: `always`; `init`, `step`: while one group is initialised or stepped; `init_all`, `step_all`: for all groups
    together; `backward`: from the first gradient of a backward pass to its end; `boundary`: while one parameter of the
    last micro-batch leaves the bucket; `accumulation`: from the first gradient of a step to its end.
    """

    name: str
    where: Where
    per: Per
    life: Life
    each_bytes: tuple[int, ...]
    """One figure per group or parameter, in the model's order, or one in all."""
    source: str
    """The code that allocates it."""
    attribute: str | None = None
    """Where an engine holds it; None for what lives too briefly to be held."""

    @property
    def total_bytes(self) -> int:
        """All of them together."""
        return sum(self.each_bytes)


@dataclass(frozen=True)
class Strategy:
    """A way to train: what runs it, what it keeps where, how its optimizer is built, what a step costs."""

    name: str
    """As in `--train.strategy NAME`."""
    configuration: Path | None
    """DeepSpeed's, without any "auto"; None runs without DeepSpeed."""
    is_zero: bool
    """Whether DeepSpeed's ZeRO runs it; else one process does, in float32, with gradients kept until the step."""
    home: Where
    """Of masters, optimizer states and gradients from step to step."""
    state_bits: int
    """8 or 32 bits per optimizer moment."""
    ledger: Callable[[ModelSizes, "StrategySizes", bool], list[Entry]]
    """Every buffer for a model; the last argument is whether a step has several micro-batches."""
    optimizer: Callable[[Groups, TrainConfig], torch.optim.Optimizer]
    """The learning rate is set at every step."""
    cost: Callable[[int, int, bool], float]
    """Seconds of a step, by which configurations are ranked: parameters of a rank, micro-batches, checkpointing."""
    install_step: Callable[..., None] | None = None
    """Puts a step of its own into DeepSpeed's ZeRO optimizer; given that, `accumulates` and `card_share`."""
    is_offered: bool = False
    """Whether `auto` chooses from it and a refusal may name it; the others are asked for by name."""

    @property
    def takes_share(self) -> bool:
        """Whether a part of its optimizer may lie on the card."""
        return self.install_step is not None

    @property
    def card_dtype(self) -> torch.dtype:
        """What weights and activations are held in on a card."""
        return torch.bfloat16 if self.is_zero else torch.float32


@dataclass(frozen=True)
class StrategySizes:
    """A strategy with the numbers that its buffers depend on."""

    kind: Strategy
    ranks: int
    bucket_elements: int
    num_buckets: int
    weight_bytes: int
    """Of a parameter as the pass reads it: 2 in bf16, 4 in float32."""
    card_share: float = 0.0
    """Of the optimizer of a strategy that offloads, 0 to 1: what lies and is updated on the card."""
    graph_shapes: int = 0
    """Shapes of a pass that are CUDA graphs."""
    ring_bytes: int = 0
    """Of the slots of a step that is a pipeline; 0 where its transfers come in turn."""


def ledger(model: ModelSizes, strategy: StrategySizes, *, accumulates: bool) -> list[Entry]:
    """Every buffer of a strategy for a model."""
    entries = strategy.kind.ledger(model, strategy, accumulates)
    weights = each(strategy.weight_bytes, model.frozen)
    entries.append(Entry("frozen weights", "device", "parameter", "always", weights, "torch.nn.Module.to"))
    entries.append(Entry("buffers", "device", "parameter", "always", model.buffers, "torch.nn.Module.to"))
    if strategy.graph_shapes:
        sizes = each(strategy.weight_bytes * strategy.graph_shapes, model.parameters.values())
        source = "redheart/train/device/graphs.py: torch.cuda.make_graphed_callables, static_grad_inputs"
        entries.append(Entry("gradients of graphs", "device", "parameter", "always", sizes, source))
    return entries


def held_bytes(entries: Iterable[Entry]) -> dict[str, int]:
    """Bytes by the attribute that an engine holds them in."""
    held: dict[str, int] = {}
    for entry in entries:
        if entry.attribute and entry.total_bytes:
            held[entry.attribute] = held.get(entry.attribute, 0) + entry.total_bytes
    return held


def each(size: int, counts: Iterable[int]) -> tuple[int, ...]:
    """Bytes of tensors with so many elements of so many bytes."""
    return tuple(size * count for count in counts)
