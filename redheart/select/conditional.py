"""Losses of recombined models at the price of what a recombination changes.

A model is a graph of nodes. What a node makes depends on its own weights and on all that lies upstream, so it is kept
under a key of these, and a candidate runs only the nodes whose key is new: a swapped head costs that head, a swapped
backbone everything. Work is counted in full-model evaluations: floating-point operations of a node's matrix products
(torch's own counter, on the records at hand) over those of all nodes.

N records.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from redheart.select.loss_store import LossStore
from redheart.select.memo import Memo
from redheart.snapshots.blend import Blend

Signals = dict[str, Tensor]


class WiredModel(Protocol):
    """A model on fixed records in fixed batches, as a graph of nodes that hold one module's weights each, or none."""

    @property
    def wiring(self) -> Mapping[str, Sequence[str]]:
        """What every node reads, in an order in which they can run."""

    @property
    def finals(self) -> Sequence[str]:
        """The nodes whose predictions are the model's."""

    @property
    def num_batches(self) -> int: ...

    def load(self, module: str, weights: Mapping[str, Tensor]) -> None:
        """Give a module its weights; it keeps them until the next ones or `unload`."""

    def unload(self, module: str) -> None:
        """Let a module's weights go."""

    def compute(self, node: str, batch: int, read: Mapping[str, Signals]) -> Signals:
        """What a node makes of one batch, given what the nodes before it made of it."""

    def losses(self, final: str, signals: Sequence[Signals]) -> np.ndarray:
        """(N,) loss of a final node's predictions, given those of all batches; NaN where a record has no target."""


class ConditionalEvaluator:
    """Losses of any choice of weights, computed from what is not known yet; implements `search.Evaluator`.

    Args:
        model: the graph.
        weights: reads the weights of a module's mixture to where the graph computes.
        cache_bytes: bound of the kept results; those of the model at work are held beside them.
        weights_bytes: bound of the kept weights; those at work are held beside them.
        store: losses of whole models, also of earlier calls; it is asked first.
        key: of a choice in the store, from the digests of the weights that it names.
    """

    def __init__(
        self,
        model: WiredModel,
        weights: Callable[[str, Blend], Mapping[str, Tensor]],
        *,
        cache_bytes: int,
        weights_bytes: int,
        store: LossStore | None = None,
        key: Callable[[Mapping[str, Blend]], bytes] = lambda _: b"",
    ) -> None:
        self._model, self._read = model, weights
        self._store, self._key = store, key
        self.num_reused = 0
        """Candidates whose losses the store had."""
        self._results: Memo[list[Signals]] = Memo(cache_bytes)
        self._weights: Memo[Mapping[str, Tensor]] = Memo(weights_bytes)
        self._numbers: dict[tuple[object, ...], int] = {}
        self._flops: dict[str, float] = {}
        self._done_flops = 0.0
        self._downstream = _downstream(model.wiring)

    def losses(self, choice: Mapping[str, Blend], *, base: Mapping[str, Blend] | None = None) -> dict[str, np.ndarray]:
        """(N,) losses of the final predictors, by name.

        `base` is the model that more candidates will be derived from: its results are the last to make room.
        """
        key = self._key(choice)
        if self._store is not None and (known := self._store.get(key)) is not None:
            self.num_reused += 1
            return known
        self._start(choice)
        if base is not None:
            for of_node in self._keys(base).values():
                self._results.get(of_node)
        keys = self._keys(choice)
        made, missing = self._known(keys)
        self._compute(missing, choice, keys, made)
        found = {name: self._model.losses(name, made[name]) for name in self._model.finals}
        if self._store is not None:
            self._store.put(key, found)
        return found

    def cost(self, modules: Iterable[str], *, first: Mapping[str, Blend]) -> float:
        """Share of a full evaluation that other weights of these modules cost, everything else being cached.

        If nothing was computed yet, `first` is.
        """
        self._start(first)
        nodes = {node for module in modules for node in self._downstream[module]}
        return sum(self._flops[node] for node in nodes) / sum(self._flops.values())

    @property
    def evaluations(self) -> float:
        total = sum(self._flops.values())
        return self._done_flops / total if total else 0.0

    def _start(self, choice: Mapping[str, Blend]) -> None:
        """Compute everything for a first model and count what each node costs; later calls do nothing."""
        if self._flops:
            return
        self._compute(list(self._model.wiring), choice, self._keys(choice), {})
        if not any(self._flops.values()):
            # Without matrix products all nodes cost the same.
            self._flops = dict.fromkeys(self._flops, 1.0)
            self._done_flops = float(len(self._flops))

    def _keys(self, choice: Mapping[str, Blend]) -> dict[str, int]:
        """By node, one number for its name, its own weights and the numbers of what it reads."""
        keys: dict[str, int] = {}
        for node, sources in self._model.wiring.items():
            identity = (node, choice.get(node), *(keys[name] for name in sources))
            keys[node] = self._numbers.setdefault(identity, len(self._numbers))
        return keys

    def _known(self, keys: Mapping[str, int]) -> tuple[dict[str, list[Signals]], list[str]]:
        """What is kept of the nodes that the losses need, and those to compute for them, in an order that can run."""
        made: dict[str, list[Signals]] = {}
        missing: list[str] = []
        wanted = set(self._model.finals)
        for node, sources in reversed(list(self._model.wiring.items())):
            if node not in wanted:
                continue
            result = self._results.get(keys[node])
            if result is not None:
                made[node] = result
            else:
                missing.append(node)
                wanted.update(sources)
        return made, missing[::-1]

    def _compute(
        self, nodes: Sequence[str], choice: Mapping[str, Blend], keys: Mapping[str, int], made: dict[str, list[Signals]]
    ) -> None:
        """Add what nodes make of every batch to `made`, and keep it; at its first time a node's price is counted."""
        for node in nodes:
            if node in choice:
                self._model.load(node, self._weights_of(node, choice[node]))
            is_new = node not in self._flops
            counter = FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) if is_new else None
            with counter or nullcontext(), torch.inference_mode():
                result = [
                    self._model.compute(node, batch, {name: made[name][batch] for name in self._model.wiring[node]})
                    for batch in range(self._model.num_batches)
                ]
            if node in choice:
                self._model.unload(node)
            if counter:
                self._flops[node] = float(counter.get_total_flops())
            self._done_flops += self._flops[node]
            made[node] = result
            size = sum(tensor.nbytes for signals in result for tensor in signals.values())
            self._results.put(keys[node], result, size_bytes=size)

    def _weights_of(self, module: str, blend: Blend) -> Mapping[str, Tensor]:
        weights = self._weights.get((module, blend))
        if weights is None:
            weights = self._read(module, blend)
            self._weights.put((module, blend), weights, size_bytes=sum(tensor.nbytes for tensor in weights.values()))
        return weights


# torch's counter knows the fused attention of CUDA devices only.
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *_, **__: sdpa_flop_count(
        query, key, value
    )
}


def _downstream(wiring: Mapping[str, Sequence[str]]) -> dict[str, set[str]]:
    """By node, itself and every node that depends on it."""
    below: dict[str, set[str]] = {node: {node} for node in wiring}
    for node in reversed(list(wiring)):
        for other, sources in wiring.items():
            if node in sources:
                below[node] |= below[other]
    return below
