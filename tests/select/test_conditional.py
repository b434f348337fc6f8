"""Cached losses are the losses; only what a change reaches is computed; the cache keeps to its bound."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from redheart.select.conditional import ConditionalEvaluator, Signals
from redheart.select.loss_store import LossStore
from redheart.select.memo import Memo
from redheart.snapshots.blend import Blend, single

WIRING = {"base": (), "left": ("base",), "right": ("base",), "join": ("left", "right"), "a": ("join",), "b": ("join",)}
MODULES = tuple(name for name in WIRING if name != "join")
BATCHES, RECORDS, WIDTH = 2, 3, 4


class Toy:
    """A graph of linear maps of one width; every node is a module but `join`, which adds."""

    wiring: Mapping[str, Sequence[str]] = WIRING
    finals: Sequence[str] = ("a", "b")
    num_batches = BATCHES

    def __init__(self) -> None:
        self.inputs = torch.arange(BATCHES * RECORDS * WIDTH, dtype=torch.float32).reshape(BATCHES, RECORDS, WIDTH) / 10
        self.weights: dict[str, Tensor] = {}
        self.ran: list[str] = []

    def load(self, module: str, weights: Mapping[str, Tensor]) -> None:
        self.weights[module] = weights["w"]

    def unload(self, module: str) -> None:
        del self.weights[module]

    def compute(self, node: str, batch: int, read: Mapping[str, Signals]) -> Signals:
        if batch == 0:
            self.ran.append(node)
        assert set(read) == set(WIRING[node])
        total = sum((signals["x"] for signals in read.values()), self.inputs[batch] * 0)
        if node == "base":
            total = self.inputs[batch]
        return {"x": total if node == "join" else torch.tanh(total @ self.weights[node])}

    def losses(self, final: str, signals: Sequence[Signals]) -> np.ndarray:
        return np.concatenate([part["x"].sum(-1).numpy() for part in signals])


def toy_weights(module: str, blend: Blend) -> dict[str, Tensor]:
    seeds = [MODULES.index(module) * 100 + epoch for epoch in blend.epochs]
    parts = [torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return {"w": sum((w * part for w, part in zip(blend.weights, parts, strict=True)), torch.zeros(WIDTH, WIDTH))}


def evaluator(
    model: Toy, *, cache_bytes: int = 10**6, weights_bytes: int = 10**6, **stored: Any
) -> ConditionalEvaluator:
    return ConditionalEvaluator(model, toy_weights, cache_bytes=cache_bytes, weights_bytes=weights_bytes, **stored)


def everywhere(epoch: int) -> dict[str, Blend]:
    return dict.fromkeys(MODULES, single(epoch))


def test_without_matrix_products_all_nodes_cost_the_same() -> None:
    class Sums(Toy):
        def compute(self, node: str, batch: int, read: Mapping[str, Signals]) -> Signals:
            total = sum((signals["x"] for signals in read.values()), self.inputs[batch])
            return {"x": total if node == "join" else total + self.weights[node].sum()}

    found = evaluator(Sums())
    price = found.cost(["a"], first=everywhere(1))
    assert found.evaluations == 1
    found.losses({**everywhere(1), "a": single(2)})
    assert price == pytest.approx(1 / len(WIRING)) == pytest.approx(found.evaluations - 1)


def test_a_swap_runs_the_module_and_what_is_below_it_once() -> None:
    model = Toy()
    cached = evaluator(model)
    cost = partial(cached.cost, first=everywhere(1))
    cached.losses(everywhere(1))
    assert model.ran == list(WIRING) and cached.evaluations == 1
    for module, expected in (("b", ["b"]), ("right", ["right", "join", "a", "b"]), ("base", list(WIRING))):
        model.ran.clear()
        swapped = {**everywhere(1), module: single(2)}
        before = cached.evaluations
        cached.losses(swapped, base=everywhere(1))
        assert sorted(model.ran) == sorted(expected)
        assert cached.evaluations - before == pytest.approx(cost([module]))
        model.ran.clear()
        cached.losses(swapped)
        assert model.ran == []
    # Five modules of one size; what only adds costs nothing.
    assert cost(["b"]) == pytest.approx(1 / 5) and cost(["left"]) == pytest.approx(3 / 5)
    assert cost(["a", "b"]) == pytest.approx(2 / 5) and cost(MODULES) == pytest.approx(1)


def test_a_module_that_cannot_be_read_ends_the_evaluation() -> None:
    def reading(module: str, blend: Blend) -> dict[str, Tensor]:
        if module == "right":
            raise OSError("unreadable")
        return toy_weights(module, blend)

    with pytest.raises(OSError, match="unreadable"):
        ConditionalEvaluator(Toy(), reading, cache_bytes=0, weights_bytes=0).losses(everywhere(1))


CHOICES = st.lists(st.tuples(*[st.integers(1, 3)] * len(MODULES)), min_size=1, max_size=12)
ONE_RESULT_BYTES = BATCHES * RECORDS * WIDTH * 4


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(CHOICES, st.integers(0, 8), st.integers(0, 3))
def test_losses_are_those_of_the_whole_model_whatever_is_cached(
    choices: list[tuple[int, ...]], results_held: int, weights_held: int
) -> None:
    cached = evaluator(
        Toy(), cache_bytes=results_held * ONE_RESULT_BYTES, weights_bytes=weights_held * WIDTH * WIDTH * 4
    )
    for epochs in choices:
        choice = {module: single(epoch) for module, epoch in zip(MODULES, epochs, strict=True)}
        found, expected = cached.losses(choice), evaluator(Toy()).losses(choice)
        assert all(np.array_equal(found[name], expected[name]) for name in ("a", "b"))
        assert cached._results.held_bytes <= results_held * ONE_RESULT_BYTES


def test_what_candidates_are_derived_from_makes_room_last() -> None:
    model = Toy()
    cached = evaluator(model, cache_bytes=9 * ONE_RESULT_BYTES)
    base = everywhere(1)
    cached.losses(base)
    for epoch in range(2, 8):
        model.ran.clear()
        cached.losses({**base, "left": single(epoch)}, base=base)
        assert "base" not in model.ran and "right" not in model.ran


def test_memo_bounds_what_it_holds() -> None:
    memo: Memo[str] = Memo(10)
    for key in "abc":
        memo.put(key, key.upper(), size_bytes=4)
    assert memo.get("a") is None and memo.get("b") == "B" and memo.held_bytes == 8
    memo.put("d", "D", size_bytes=4)
    assert memo.get("c") is None and memo.get("b") == "B"
    memo.put("b", "BB", size_bytes=6)
    assert memo.get("b") == "BB" and memo.held_bytes == 10
    memo.put("e", "E", size_bytes=11)
    assert memo.get("e") is None and memo.held_bytes == 10


def test_a_later_search_finds_what_an_earlier_one_has_computed(tmp_path: Path) -> None:
    def stored(model: Toy) -> ConditionalEvaluator:
        store = LossStore(tmp_path / "x.bin", finals=("a", "b"), num_records=BATCHES * RECORDS)
        return evaluator(model, store=store, key=lambda choice: repr(choice).encode()[-32:].rjust(32))

    first, again = stored(Toy()), Toy()
    expected = first.losses(everywhere(1))
    second = stored(again)
    found = second.losses(everywhere(1))
    assert again.ran == [] and second.num_reused == 1 and first.num_reused == 0
    assert all(np.array_equal(found[name], expected[name]) for name in ("a", "b"))


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 3), st.integers(0, 200), st.integers(0, 255))
def test_a_cut_or_changed_store_keeps_what_lies_before(tmp_path: Path, number: int, position: int, flip: int) -> None:
    path = tmp_path / "losses.bin"
    path.unlink(missing_ok=True)
    store = LossStore(path, finals=("a",), num_records=2)
    for index in range(number):
        store.put(bytes([index]) * 32, {"a": np.array([index, np.nan])})
    size = 32 + 16 + 4
    content = bytearray(path.read_bytes()) if number else bytearray()
    if position < len(content):
        content[position] ^= flip
        path.write_bytes(content)
        kept = number if flip == 0 else position // size
    else:
        path.write_bytes(bytes(content) + b"x" * (position % size))
        kept = number
    again = LossStore(path, finals=("a",), num_records=2)
    assert len(again) == kept
    for index in range(kept):
        found = again.get(bytes([index]) * 32)
        assert found is not None and found["a"][0] == index and np.isnan(found["a"][1])
    again.put(b"z" * 32, {"a": np.array([7.0, 8.0])})
    assert len(LossStore(path, finals=("a",), num_records=2)) == kept + 1
