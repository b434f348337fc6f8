"""Types that an engine holds tensors in: norms in float32 under bf16 weights, checkpoints of fewer bits raised."""

import copy

import pytest
import torch
from torch import nn

from redheart.train.device.compute_type import in_float32, let_norms_compute_in_float32
from redheart.train.engine import remembered_hooks


def norm_in_bf16() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(4))
    for parameter in model.parameters():
        parameter.data = torch.rand(4).bfloat16()
    return model


def test_a_norm_computes_in_float32_under_bf16_weights_until_it_is_let_go() -> None:
    model, inputs = norm_in_bf16(), torch.randn(16, 4).bfloat16()
    reference = in_float32(copy.deepcopy(model))
    with pytest.raises(RuntimeError, match="BFloat16"):
        model(inputs)
    put_back = remembered_hooks(model)
    let_norms_compute_in_float32(model)
    found = model(inputs)
    assert torch.equal(found, reference(inputs.float()).bfloat16())
    assert torch.equal(model[0].running_var, reference[0].running_var) and model[0].running_var.dtype == torch.float32
    found.float().square().sum().backward()
    assert model[0].weight.dtype == model[0].weight.grad.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="2D"):
        model(inputs[0])
    assert isinstance(model[0].weight, nn.Parameter)
    put_back()
    assert not model[0]._forward_pre_hooks and not model[0]._forward_hooks


def test_what_a_user_has_hung_on_a_module_stays_there() -> None:
    model, seen = nn.Sequential(nn.Linear(2, 2)), []
    model[0].register_forward_hook(lambda *_: seen.append("own"))
    put_back = remembered_hooks(model)
    model[0].register_forward_hook(lambda *_: seen.append("engine's"))
    model[0].forward = lambda inputs: inputs  # type: ignore[method-assign]
    put_back()
    model(torch.ones(1, 2))
    assert seen == ["own"] and "forward" not in model[0].__dict__


def test_parameters_become_float32_and_buffers_do_not_lose_bits() -> None:
    model = nn.Linear(2, 2).bfloat16()
    model.bias = nn.Parameter(torch.ones(2, dtype=torch.float64))
    for name, dtype in (("low", torch.float16), ("high", torch.float64), ("whole", torch.int8)):
        model.register_buffer(name, torch.ones(2, dtype=dtype))
    types = {name: tensor.dtype for name, tensor in in_float32(model).state_dict().items()}
    assert types["weight"] == types["bias"] == types["low"] == torch.float32
    assert (types["high"], types["whole"]) == (torch.float64, torch.int8)
