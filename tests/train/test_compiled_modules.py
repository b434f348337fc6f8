"""Compiled RMS norms and GELUs beside torch's in float64, and where they leave the work to torch."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from redheart.kernel.bindings import compiled_kernels
from redheart.train.device import compiled_modules
from redheart.train.device.compiled_modules import CompiledGELU, CompiledRMSNorm, compile_modules


def norm_of(width: int, seed: int = 0, eps: float | None = 1e-6) -> nn.RMSNorm:
    norm = nn.RMSNorm(width, eps=eps)
    with torch.no_grad():
        norm.weight.normal_(generator=torch.Generator().manual_seed(seed))
    return norm


def compiled(norm: nn.RMSNorm) -> nn.RMSNorm:
    norm = copy.deepcopy(norm)
    compile_modules(norm)
    assert type(norm) is CompiledRMSNorm
    return norm


def passes(norm: nn.Module, states: Tensor, grad: Tensor) -> list[Tensor]:
    """The norm's result and the gradients of states and weight."""
    states = states.detach().requires_grad_()
    found: Tensor = norm(states)
    return [found.detach(), *torch.autograd.grad(found, [states, *norm.parameters()], grad)]


@given(
    lengths=st.lists(st.integers(0, 20), min_size=0, max_size=3),
    width=st.integers(2, 70),
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([1e-4, 1.0, 1e4]),
)
def test_they_are_torchs_in_float64_but_for_rounding(lengths: list[int], width: int, seed: int, scale: float) -> None:
    random = torch.Generator().manual_seed(seed)
    states, grad = torch.randn(2, *lengths, width, generator=random)
    norm = norm_of(width, seed)
    found = passes(compiled(norm), scale * states, grad)
    expected = passes(norm.double(), (scale * states).double(), grad.double())
    for mine, theirs, terms in zip(found, expected, terms_of(norm, (scale * states).double(), grad), strict=True):
        assert mine.shape == theirs.shape and mine.dtype == torch.float32
        # Differences of the terms may be as small as they like.
        assert ((mine - theirs).abs() <= 1e-5 * theirs.abs() + 2e-6 * terms).all()


def terms_of(norm: nn.RMSNorm, states: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """How large the terms are whose sums are the norm's result and the gradients of states and weight."""
    inverse = (states.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    back = (grad * norm.weight).abs().sum(-1, keepdim=True) * inverse
    return torch.zeros(()), back, (grad * states * inverse).abs().reshape(-1, norm.normalized_shape[0]).sum(0)


def compiled_gelu() -> nn.Module:
    gelu = nn.GELU()
    compile_modules(gelu)
    assert type(gelu) is CompiledGELU
    return gelu


@given(
    lengths=st.lists(st.integers(0, 20), min_size=0, max_size=3),
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([1e-4, 1.0, 10.0, 1e4]),
)
def test_a_gelu_is_torchs_in_float64_but_for_rounding(lengths: list[int], seed: int, scale: float) -> None:
    states, grad = torch.randn(2, *lengths, generator=torch.Generator().manual_seed(seed))
    found = passes(compiled_gelu(), scale * states, grad)
    expected = passes(nn.GELU(), (scale * states).double(), grad.double())
    # Torch's own is as far from it: of the error function 1.5e-7 is not told.
    for mine, theirs, size in zip(found, expected, (scale * states.abs(), grad.abs()), strict=True):
        assert mine.shape == theirs.shape and mine.dtype == torch.float32
        assert ((mine - theirs).abs() <= 4e-7 * size).all()


def test_a_gelu_of_what_is_no_number_or_has_no_end_is_torchs() -> None:
    states = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 3e38, -3e38, 1e-40])
    assert torch.equal(compiled_gelu()(states).nan_to_num(-7.0), nn.GELU()(states).nan_to_num(-7.0))


def test_a_gelu_has_the_same_bits_in_any_place_and_number_of_threads() -> None:
    """Whichever lanes of which register a value comes into, and whatever the last ones are filled with."""
    kernel, states = compiled_kernels()[-1], 3 * torch.randn(50_000, generator=torch.Generator().manual_seed(0))
    whole = kernel.with_threads(1).gelu(states)
    for threads, start in ((2, 0), (5, 1), (1, 49_997)):
        part = kernel.with_threads(threads).gelu(states[start:].clone())
        assert all(torch.equal(mine, theirs[start:]) for mine, theirs in zip(part, whole, strict=True))


def test_a_second_backward_pass_of_a_gelu_is_an_error_and_no_other_gradient() -> None:
    """The first one took the memory of what the second would need."""
    states = torch.randn(3, requires_grad=True)
    found = compiled_gelu()(states)
    torch.autograd.grad(found.sum(), states, retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(found.sum(), states)


def test_the_number_of_threads_changes_no_bit() -> None:
    kernel = compiled_kernels()[-1]
    states, grad = torch.randn(2, 1000, 33, generator=torch.Generator().manual_seed(0))
    weight = norm_of(33).weight.detach()
    found = []
    for threads in (1, 2, 5):
        several = kernel.with_threads(threads)
        normed, inverse = several.rms_norm(states, weight, 1e-6)
        found.append([normed, inverse, *several.rms_norm_gradients(grad, states, weight, inverse)])
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_what_is_no_block_of_memory_is_read_as_it_is_meant() -> None:
    norm, states = norm_of(6), torch.randn(6, 4, 5, generator=torch.Generator().manual_seed(0)).transpose(0, 2)
    grad = torch.ones(()).expand(states.shape)
    found = passes(compiled(norm), states, grad)
    expected = passes(compiled(norm), states.contiguous(), grad.contiguous())
    found += passes(compiled_gelu(), states, grad)
    expected += passes(compiled_gelu(), states.contiguous(), grad.contiguous())
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_are_torchs(dtype: torch.dtype) -> None:
    norm, states = norm_of(5).to(dtype), torch.randn(3, 5, dtype=dtype)
    assert torch.equal(compiled(norm)(states), norm(states))
    assert torch.equal(compiled_gelu()(states), nn.GELU()(states))


def test_a_wrong_width_is_torchs_error() -> None:
    with pytest.raises(RuntimeError, match="shape"):
        compiled(norm_of(4))(torch.randn(2, 8))


def test_other_modules_are_left_alone_and_a_model_keeps_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(nn.RMSNorm):
        pass

    model = nn.Sequential(
        nn.RMSNorm(4, eps=1e-6),
        nn.GELU(),
        *(nn.RMSNorm(4), nn.RMSNorm((3, 4), eps=1e-6), Own(4, eps=1e-6), nn.LayerNorm(4), nn.GELU("tanh")),
    )
    plain, before, names = copy.deepcopy(model), list(model.parameters()), list(model.state_dict())
    compile_modules(model)
    compile_modules(model)
    kinds = [type(item) in (CompiledRMSNorm, CompiledGELU) for item in model]
    assert kinds == [True, True, False, False, False, False, False]
    assert list(model.state_dict()) == names
    assert all(mine is theirs for mine, theirs in zip(model.parameters(), before, strict=True))
    monkeypatch.setattr(compiled_modules, "fastest", lambda: (None, "no compiler"))
    states = torch.randn(3, 4)
    assert torch.equal(model(states), plain(states))
