"""Parameter groups cover everything once and stay within their bound."""

from torch import nn

from redheart.model.dims import preset
from redheart.model.network import build
from redheart.train.groups import MAX_GROUP_ELEMENTS, parameter_groups


def test_groups_cover_every_parameter_once_and_respect_the_bound() -> None:
    model = build(preset("full"), seed=0, device="meta")
    groups = parameter_groups(model, weight_decay=0.01)
    members = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(members) == sorted(id(parameter) for parameter in model.parameters())
    for group in groups:
        elements = sum(parameter.numel() for parameter in group["params"])
        assert elements <= MAX_GROUP_ELEMENTS or len(group["params"]) == 1


def test_only_matrices_decay() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.RMSNorm(3))
    decayed, kept = parameter_groups(model, weight_decay=0.01)
    assert decayed["params"] == [model[0].weight] and decayed["weight_decay"] == 0.01
    assert kept["params"] == [model[0].bias, model[1].weight] and kept["weight_decay"] == 0.0
