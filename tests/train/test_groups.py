"""Parameter groups cover everything once and stay within their bound."""

import torch
from torch import nn

from redheart.model.dims import preset
from redheart.model.network import build
from redheart.snapshots.manifests import ParameterPlace
from redheart.train.zero.groups import MAX_GROUP_ELEMENTS, parameter_groups, parameter_places


def test_groups_cover_every_parameter_once_and_respect_the_bound() -> None:
    model = build(preset("full"), seed=0, device="meta")
    groups = parameter_groups(model, weight_decay=0.01)
    members = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(members) == sorted(id(parameter) for parameter in model.parameters())
    for group in groups:
        elements = sum(parameter.numel() for parameter in group["params"])
        assert elements <= MAX_GROUP_ELEMENTS or len(group["params"]) == 1


def test_only_matrices_decay_and_only_large_ones_have_8_bit_states() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.RMSNorm(64), nn.Linear(64, 3))
    large, small, others = parameter_groups(model, weight_decay=0.01)
    assert large["params"] == [model[0].weight] and (large["weight_decay"], large["state_bits"]) == (0.01, 8)
    assert small["params"] == [model[2].weight] and (small["weight_decay"], small["state_bits"]) == (0.01, 32)
    assert others["params"] == [model[0].bias, model[1].weight, model[2].bias]
    assert (others["weight_decay"], others["state_bits"]) == (0.0, 32)


def test_matrices_of_any_class_decay_and_a_tied_weight_is_there_once() -> None:
    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.scale = nn.Parameter(torch.ones(64, 64)), nn.Parameter(torch.ones(64))

    model = nn.Sequential(Transposed(), nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False))
    model[2].weight = model[1].weight
    large, others = parameter_groups(model, weight_decay=0.01)
    assert large["params"] == [model[0].weight, model[1].weight] and others["params"] == [model[0].scale]


def test_what_is_not_trained_is_in_no_group() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 3))
    model[0].requires_grad_(False)
    small, others = parameter_groups(model, weight_decay=0.01)
    assert small["params"] == [model[1].weight] and others["params"] == [model[1].bias]


def test_places_follow_the_order_that_an_engine_flattened_in_and_know_both_names_of_a_tied_weight() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 3), nn.Linear(2, 2, bias=False))
    model[2].weight = model[0].weight
    places = parameter_places(model, [[model[1].bias, model[0].weight], [model[1].weight]], [[0, 3], [0]])
    assert list(places) == ["0.weight", "1.weight", "1.bias", "2.weight"]
    assert places["0.weight"] == places["2.weight"] == ParameterPlace(0, 3, [2, 2])
    assert places["1.weight"] == ParameterPlace(1, 0, [3, 2]) and places["1.bias"] == ParameterPlace(0, 0, [3])
