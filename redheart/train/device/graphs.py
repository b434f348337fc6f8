"""Forward and backward passes of a fixed shape as CUDA graphs, a pair for every segment: the switch `--train.graphs`.

A pass of `full` launches thousands of operators, and a card waits for the launches. A segment is a submodule with so
few parameters that its gradients leave while the next one runs. A shape that comes a second time is captured; what
comes once, or after the first few, runs as ever. Graphs hold a gradient of every parameter for good.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle

from redheart.core.progress import note
from redheart.train.draws import generators_kept

SEGMENT_ELEMENTS = 1 << 26
"""Largest segment: 128 MiB of gradients leave while the next one is computed."""
MAX_SHAPES = 2
"""Each holds 2 bytes a parameter of gradients; activations share one pool."""
LENGTH_STEP = 64
"""Texts are padded to a multiple of it, so that there are few shapes."""
_CONSTANTS = (type(None), bool, int, float, str)

Key = tuple[Any, ...]


class Call(NamedTuple):
    """What a module was called with, without its memory."""

    key: Key
    arguments: Any
    """Positional and named ones: constants, and tensors on the device `meta`."""

    @classmethod
    def of(cls, args: Any, kwargs: Any) -> "Call":
        """Of a call's arguments."""
        bare = pytree.tree_map_only(
            Tensor, lambda item: item.detach().to("meta").requires_grad_(item.requires_grad), (args, kwargs)
        )
        return cls(_key(args, kwargs), bare)

    def samples(self, device: torch.device) -> tuple[Tensor, ...]:
        """Tensors of zeros like those of the call."""
        tensors = (leaf for leaf in pytree.tree_leaves(self.arguments) if isinstance(leaf, Tensor))
        return tuple(torch.zeros_like(item, device=device, requires_grad=item.requires_grad) for item in tensors)


def _key(args: Any, kwargs: Any) -> Key:
    leaves, spec = pytree.tree_flatten((args, kwargs))
    tensors = ((leaf.shape, leaf.dtype, leaf.requires_grad) if isinstance(leaf, Tensor) else leaf for leaf in leaves)
    return spec, *tensors


class _Bare(nn.Module):
    """A module as a function of a call's tensors, without the hooks, which are not to run in a capture."""

    def __init__(self, segment: "Segment", call: Call):
        super().__init__()
        self.module, self._eager, self._call = segment.module, segment.eager, call

    def forward(self, *tensors: Tensor) -> Any:
        given = iter(tensors)
        args, kwargs = pytree.tree_map_only(Tensor, lambda _: next(given), self._call.arguments)
        return self._eager(*args, **kwargs)


class Segment:
    """Stands in for a module's `forward`: in a pass of a captured shape it takes its graph."""

    def __init__(self, module: nn.Module, is_captured: Callable[[], bool]):
        self.module, self.eager, self._is_captured = module, module.forward, is_captured
        self.graphs: dict[Key, Callable[..., Any]] = {}
        module.forward = self  # type: ignore[method-assign, assignment]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._is_captured() and torch.is_grad_enabled():
            graph = self.graphs.get(_key(args, kwargs))
            if graph is not None:
                return graph(*(leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)))
        return self.eager(*args, **kwargs)


class Graphs:
    """The graphs of a model in training, captured as its shapes come.

    Args:
        model: on a CUDA device; its weights stay where they are in memory.
        make: captures modules with their sample arguments, as `torch.cuda.make_graphed_callables`.
        before_capture: called before; during a capture nobody else may ask anything of the device.
        on_segment: told of every module that runs as a whole from now on, without the hooks of what is below it.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        make: Callable[..., Any],
        before_capture: Callable[[], None] | None = None,
        on_segment: Callable[[nn.Module], None] | None = None,
    ):
        self._model, self._make = model, make
        self._before_capture, self._on_segment = before_capture, on_segment
        self._segments: dict[nn.Module, Segment] = {}
        self._noted: dict[Key, list[tuple[nn.Module, Call | None]]] = {}
        self._captured: set[Key] = set()
        self._handles: list[RemovableHandle] = []
        self._is_over = self._is_captured = False
        model.register_forward_pre_hook(self._before, with_kwargs=True)
        model.register_forward_hook(lambda *_: self._stop_noting())

    def _before(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        self._stop_noting()
        key = _key(args, kwargs)
        self._is_captured = model.training and key in self._captured
        if self._is_captured or self._is_over or not model.training or not torch.is_grad_enabled():
            return
        if key not in self._noted:
            note = partial(self._note, self._noted.setdefault(key, []))
            below = [module for module in model.modules() if module is not model]
            self._handles = [module.register_forward_hook(note, with_kwargs=True) for module in below]
        elif self._capture(self._noted[key]):
            self._captured.add(key)
            self._is_captured, self._is_over = True, len(self._captured) == MAX_SHAPES

    def _stop_noting(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @staticmethod
    def _note(calls: list[tuple[nn.Module, Call | None]], module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        inputs, outputs = pytree.tree_leaves((args, kwargs)), pytree.tree_leaves(out)
        is_plain = all(isinstance(leaf, (Tensor, *_CONSTANTS)) for leaf in inputs) and all(
            isinstance(leaf, Tensor) for leaf in outputs
        )
        calls.append((module, Call.of(args, kwargs) if is_plain else None))

    def _capture(self, calls: Sequence[tuple[nn.Module, Call | None]]) -> bool:
        chosen = list(segments(self._model, calls))
        found = [self._segments.get(module) or Segment(module, lambda: self._is_captured) for module, _ in chosen]
        bare = tuple(_Bare(segment, call) for segment, (_, call) in zip(found, chosen, strict=True))
        if self._before_capture:
            self._before_capture()
        try:
            # Warming up draws random numbers, which the pass is not to miss.
            with generators_kept():
                samples = tuple(call.samples(next(module.parameters()).device) for module, call in chosen)
                graphs = self._make(bare, samples, allow_unused_input=True)
        except RuntimeError as error:
            self._is_over = True
            reason = str(error).strip().partition("\n")[0]
            note(f"passes are not captured as CUDA graphs, they run as ever; {reason}")
            return False
        for segment, graph, (module, call) in zip(found, graphs, chosen, strict=True):
            segment.graphs[call.key] = graph
            if module not in self._segments:
                self._segments[module] = segment
                if self._on_segment:
                    self._on_segment(module)
        return True


def segments(model: nn.Module, calls: Sequence[tuple[nn.Module, Call | None]]) -> Iterator[tuple[nn.Module, Call]]:
    """The largest submodules of at most `SEGMENT_ELEMENTS` that were called once, and plainly, in their order."""
    times = Counter(module for module, _ in calls)
    plain = {module: call for module, call in calls if call is not None and times[module] == 1}

    def below(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            elements = sum(parameter.numel() for parameter in child.parameters())
            if child in plain and 0 < elements <= SEGMENT_ELEMENTS:
                yield child
            else:
                yield from below(child)

    chosen = set(below(model))
    return ((module, plain[module]) for module in times if module in chosen)
