"""The optimizer's states are bitsandbytes' in both directions; small tensors and marked groups stay in float32."""

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from redheart.optim.host_adamw8bit import HostAdamW8bit

SIZE = 5000
SETTINGS: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.999), "weight_decay": 0.01}


def parameters() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, generator=generator).requires_grad_() for n in (SIZE, 100)]


def take_steps(optimizer: torch.optim.Optimizer, *numbers: int) -> None:
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def ours(params: list[Tensor]) -> HostAdamW8bit:
    # bitsandbytes lets a second moment round to zero.
    return HostAdamW8bit(params, min_code2=0, **SETTINGS)


def theirs(params: list[Tensor]) -> torch.optim.Optimizer:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    optimizer: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(params, **SETTINGS)
    return optimizer


def assert_same(first: list[Tensor], second: list[Tensor]) -> None:
    for a, b in zip(first, second, strict=True):
        # An update is about lr = 1e-3; a moment next to the border of two codes may get the other one (1 % of it).
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
        assert (a - b).abs().median() < 1e-6


@pytest.mark.parametrize("direction", ["to bitsandbytes", "from bitsandbytes"])
def test_states_move_between_ours_and_bitsandbytes(direction: str) -> None:
    first_kind, second_kind = (ours, theirs) if direction == "to bitsandbytes" else (theirs, ours)
    old, new = parameters(), parameters()
    first = first_kind(old)
    take_steps(first, 1, 2, 3)
    for target, source in zip(new, old, strict=True):
        target.data.copy_(source.data)
    second = second_kind(new)
    second.load_state_dict(first.state_dict())
    for a, b in zip(old, new, strict=True):
        assert set(first.state[a]) == set(second.state[b])
        for name, value in first.state[a].items():
            moved = second.state[b][name]
            if isinstance(value, Tensor):
                assert moved.dtype == value.dtype and torch.equal(moved, value), name
                assert name.startswith("qmap") or moved.data_ptr() != value.data_ptr() or second_kind is theirs
            else:
                assert moved == value == 3
    take_steps(first, 4, 5)
    take_steps(second, 4, 5)
    assert_same([p.detach() for p in old], [p.detach() for p in new])


def test_a_resumed_optimizer_goes_on_with_the_same_bits() -> None:
    straight, broken = parameters(), parameters()
    take_steps(HostAdamW8bit(straight, **SETTINGS), 1, 2, 3, 4)
    first = HostAdamW8bit(broken, **SETTINGS)
    take_steps(first, 1, 2)
    second = HostAdamW8bit(broken, **SETTINGS)
    second.load_state_dict(first.state_dict())
    take_steps(second, 3, 4)
    assert all(torch.equal(a, b) for a, b in zip(straight, broken, strict=True))


def test_a_loaded_state_leaves_the_threads_as_they_were() -> None:
    optimizer = HostAdamW8bit(parameters(), **SETTINGS)
    optimizer.leave_a_core()
    before = optimizer._backend
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer._backend is before


def test_small_tensors_and_marked_groups_have_float32_states() -> None:
    large, small, marked = (torch.zeros(n, requires_grad=True) for n in (4096, 4095, 8192))
    optimizer = HostAdamW8bit([{"params": [large, small]}, {"params": [marked], "state_bits": 32}], **SETTINGS)
    take_steps(optimizer, 1)
    assert optimizer.state[large]["state1"].dtype == torch.uint8
    assert optimizer.state[small]["state1"].dtype == optimizer.state[marked]["state2"].dtype == torch.float32


def test_states_take_two_bytes_and_a_scale_per_block() -> None:
    parameter = torch.zeros(1 << 20, requires_grad=True)
    optimizer = HostAdamW8bit([parameter], **SETTINGS)
    take_steps(optimizer, 1)
    total = sum(value.nbytes for value in optimizer.state[parameter].values() if isinstance(value, Tensor))
    assert total / parameter.numel() <= 2.05


def test_a_closure_may_run_backward() -> None:
    (parameter,) = params = [torch.ones(4).requires_grad_()]
    optimizer = ours(params)

    def closure() -> float:
        loss = (parameter**2).sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 4.0 and (parameter < 1).all()


def test_loaded_states_come_to_their_parameters_wherever_they_were_kept() -> None:
    """accelerate and `torch.load(map_location="cuda")` hand them over on the device; `meta` stands in for it."""
    params = parameters()
    optimizer = HostAdamW8bit(params, **SETTINGS)
    take_steps(optimizer, 1)
    other = HostAdamW8bit([nn.Parameter(item.detach().to("meta")) for item in params], **SETTINGS)
    other.load_state_dict(optimizer.state_dict())
    tensors = [value for item in other.state.values() for value in item.values() if isinstance(value, Tensor)]
    assert tensors and {value.device.type for value in tensors} == {"meta"}


def test_a_copy_goes_on_with_the_same_bits() -> None:
    optimizer = HostAdamW8bit(parameters(), **SETTINGS)
    take_steps(optimizer, 1)
    copied = pickle.loads(pickle.dumps(optimizer))
    for each in (optimizer, copied):
        take_steps(each, 2)
    for own, other in zip(optimizer.param_groups[0]["params"], copied.param_groups[0]["params"], strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize("parameter", [torch.zeros(8, 600).bfloat16(), torch.zeros(8, 600).T])
def test_what_the_kernel_cannot_address_is_refused(parameter: Tensor) -> None:
    parameter.requires_grad_().grad = torch.zeros_like(parameter)
    with pytest.raises(TypeError, match="a contiguous float32 parameter is needed"):
        ours([parameter]).step()


def test_scripts_find_it_under_its_old_name() -> None:
    from redheart.memory.adamw8bit import optimizer

    assert optimizer.HostAdamW8bit is HostAdamW8bit and optimizer.backend().name
