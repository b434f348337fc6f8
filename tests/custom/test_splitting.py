"""Into which parts a model is cut: blocks apart, tied weights once, what lies outside together."""

from collections.abc import Callable

import kinds
import pytest
import torch
from torch import nn

from redheart.core.errors import BadInput
from redheart.custom.models import checked_parts, found_parts
from redheart.snapshots.tensors import REST, full_name, model_tensors, parts_of

LLAMA = ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "lm_head"]
FOUND: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "of transformers": (kinds.llama, LLAMA),
    "with tied weights": (kinds.qwen3, LLAMA[:-1]),
    "in a wrapper": (lambda: nn.Sequential(kinds.qwen3()), [f"0.{name}" for name in LLAMA[:-1]]),
    "mostly frozen": (kinds.low_rank, ["model.layers.0", "model.layers.1", REST]),
    "without a list": (lambda: kinds.Perceptron(nn.BatchNorm1d(16)), ["first", "between", "last"]),
    "with a parameter of its own": (kinds.RootParameter, ["first", "last", REST]),
    "of one layer": (lambda: nn.Linear(2, 2), [REST]),
}


@pytest.mark.parametrize("what", FOUND)
def test_parts_are_found_and_hold_every_tensor_once(what: str) -> None:
    make, expected = FOUND[what]
    model = make()
    assert found_parts(model) == expected
    parts = parts_of(model, expected)
    held = {full_name(part, key): tensor for part, own in parts.items() for key, tensor in own.items()}
    tensors = model_tensors(model)
    assert all(tensors[name] is tensor for name, tensor in held.items())
    assert len(held) == len({id(tensor) for tensor in held.values()}) == len({id(item) for item in tensors.values()})


def test_a_named_part_whose_weights_are_all_tied_to_an_earlier_one_holds_nothing() -> None:
    assert checked_parts(kinds.qwen3(), LLAMA) == LLAMA[:-1]
    first_is_head = checked_parts(kinds.qwen3(), LLAMA[::-1])
    assert first_is_head == LLAMA[:0:-1]


def test_tied_weights_train_as_one() -> None:
    model = kinds.qwen3()
    part = parts_of(model, LLAMA)["model.embed_tokens"]["weight"]
    with torch.no_grad():
        part.fill_(2.0)
    assert torch.equal(model.lm_head.weight, torch.full_like(part, 2.0))


def test_a_name_that_no_file_can_have_is_refused_before_training() -> None:
    model = nn.ModuleDict({"en/de": nn.Linear(2, 2), "en": nn.Linear(2, 2)})
    for parts in (lambda: found_parts(model), lambda: checked_parts(model, ["en/de", "en"])):
        with pytest.raises(BadInput, match="cannot be"):
            parts()
