"""The fused step against float64, against bitsandbytes, and against itself on other threads and instruction sets."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from redheart.kernel.bindings import BLOCK, Kernel, Moments, StepScalars, compiled_kernels
from redheart.kernel.build import NoKernel
from redheart.optim.chunked import Chunked, dequantise, quantise
from redheart.optim.host_adamw8bit import HostAdamW8bit, dynamic_map

try:
    KERNELS = compiled_kernels()
except NoKernel:
    KERNELS = ()
SCALARS = StepScalars(3, 1e-3, 0.9, 0.999, 1e-8, 0.01, grad_scale=0.5, min_code2=0)
QMAPS = (dynamic_map(True), dynamic_map(False))


class State:
    """Weights, a gradient and 8-bit moments with something in them."""

    def __init__(self, n: int, *, seed: int = 0, grad_scale: float = 1.0, bf16: bool = False):
        generator = torch.Generator().manual_seed(seed)
        self.master = torch.randn(n, generator=generator)
        self.grad = torch.randn(n, generator=generator) * grad_scale
        if bf16:
            self.grad = self.grad.bfloat16()
        moments = torch.randn(n, generator=generator) * 0.1, torch.rand(n, generator=generator) * 0.01
        first, second = (quantise(moment, qmap) for moment, qmap in zip(moments, QMAPS, strict=True))
        self.codes, self.absmax = (first[0], second[0]), (first[1], second[1])
        self.out = torch.zeros(n, dtype=torch.bfloat16)

    def step(self, backend: Kernel | Chunked, scalars: StepScalars = SCALARS) -> "State":
        backend.update(scalars, self.master, self.grad, Moments(self.codes, self.absmax, QMAPS), self.out)
        return self

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.master, *self.codes, *self.absmax, self.out)


def assert_same(first: State, second: State) -> None:
    for ours, others in zip(first.tensors(), second.tensors(), strict=True):
        # Bits, not values: a NaN equals itself here.
        size = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[ours.element_size()]
        assert torch.equal(ours.view(size), others.view(size))


def float64_step(state: State, scalars: StepScalars) -> tuple[Tensor, Tensor, Tensor]:
    """AdamW in float64 from the same dequantised moments: weights and the two moments before quantisation."""
    first, second = (
        dequantise(codes, absmax, qmap).double()
        for codes, absmax, qmap in zip(state.codes, state.absmax, QMAPS, strict=True)
    )
    grad = state.grad.double() * scalars.grad_scale
    first = scalars.beta1 * first + (1 - scalars.beta1) * grad
    second = scalars.beta2 * second + (1 - scalars.beta2) * grad.square()
    corrected = second.sqrt() / math.sqrt(1 - scalars.beta2**scalars.step) + scalars.eps
    move = scalars.learning_rate * first / (1 - scalars.beta1**scalars.step) / corrected
    return state.master.double() * (1 - scalars.learning_rate * scalars.weight_decay) - move, first, second


@pytest.mark.parametrize("backend", [*KERNELS, Chunked()], ids=lambda item: item.name)
@pytest.mark.parametrize("n", [0, 1, 7, 255, 256, 257, 1000, 70_000])
@pytest.mark.parametrize("bf16", [False, True])
def test_a_step_is_adamw_in_float64_up_to_rounding(backend: Kernel | Chunked, n: int, bf16: bool) -> None:
    state = State(n, bf16=bf16)
    master, first, second = float64_step(state, SCALARS)
    state.step(backend)
    # A few float32 roundings of weights of order 1.
    torch.testing.assert_close(state.master.double(), master, rtol=1e-6, atol=1e-6)
    assert torch.equal(state.out, state.master.bfloat16())
    for moment, codes, absmax, qmap in zip((first, second), state.codes, state.absmax, QMAPS, strict=True):
        expected_codes, expected_absmax = quantise(moment.float(), qmap)
        torch.testing.assert_close(absmax, expected_absmax, rtol=1e-6, atol=0)
        # A value that lies on the border of two codes to the last bit may get either.
        difference = codes.int() - expected_codes.int()
        assert difference.abs().max() <= 1 if n else True
        assert difference.count_nonzero() <= 1e-3 * n


@pytest.mark.skipif(not KERNELS, reason="no compiler")
@settings(max_examples=60)
@given(
    n=st.integers(0, 3000),
    seed=st.integers(0, 2**16),
    exponent=st.integers(-44, 36),
    bf16=st.booleans(),
    beta1=st.sampled_from([0.0, 0.9]),
    beta2=st.sampled_from([0.0, 0.999]),
    rate=st.sampled_from([0.0, 1e-3]),
    decay=st.sampled_from([0.0, 0.1]),
    step=st.integers(1, 10_000),
    min_code2=st.integers(0, 1),
    poison=st.sampled_from([None, math.nan, math.inf, -math.inf, 0.0]),
)
def test_instruction_sets_give_the_same_bits(
    n: int,
    seed: int,
    exponent: int,
    bf16: bool,
    beta1: float,
    beta2: float,
    rate: float,
    decay: float,
    step: int,
    min_code2: int,
    poison: float | None,
) -> None:
    scalars = StepScalars(step, rate, beta1, beta2, 1e-8, decay, 1.0, min_code2)
    states = []
    for kernel in KERNELS:
        state = State(n, seed=seed, grad_scale=10.0**exponent, bf16=bf16)
        if poison is not None:
            state.grad[n // 3 : n // 2] = poison
        states.append(state.step(kernel, scalars))
    for other in states[1:]:
        assert_same(states[0], other)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda item: item.name)
@pytest.mark.parametrize("bf16", [False, True])
def test_the_number_of_threads_does_not_change_a_bit(kernel: Kernel, bf16: bool) -> None:
    n = 5 * 4096 * BLOCK + 77 if kernel is KERNELS[-1] else 9 * 64 * BLOCK + 77
    one = State(n, bf16=bf16).step(kernel.with_threads(1))
    for threads in (2, 3, 8):
        assert_same(one, State(n, bf16=bf16).step(kernel.with_threads(threads)))
        assert kernel.with_threads(1).sum_squares(one.grad) == kernel.with_threads(threads).sum_squares(one.grad)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda item: item.name)
def test_the_bf16_copy_is_rounded_to_even_with_one_nan(kernel: Kernel) -> None:
    # Ties above even and odd neighbours, of either sign, denormal ones and at the end of the range; NaNs; infinities.
    upper = torch.tensor([0x0000, 0x0001, 0x3F80, 0x3F81, 0x7F7E, 0x7F7F, 0x7F80, 0x7FC0, 0x7FFF], dtype=torch.int32)
    lower = torch.tensor([0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=torch.int32)
    bits = (upper[:, None] << 16 | lower).flatten()
    special = torch.cat([bits, bits | torch.tensor(-(2**31), dtype=torch.int32)]).view(torch.float32)
    # A step of nothing leaves the weights as they are; one special value alone in a block, then all of them together.
    nothing = StepScalars(1, 0.0, 0.9, 0.999, 1e-8, 0.0)
    for size in (1, len(special)):
        for values in special.split(size):
            state = State(3 * BLOCK)
            state.master[BLOCK + 100 : BLOCK + 100 + len(values)] = values
            expected = state.master.clone()
            state.step(kernel, nothing)
            number = ~expected.isnan()
            assert torch.equal(state.master[number], expected[number])
            # torch has one NaN in its vectorised conversion and another in the rest.
            copy = torch.where(number, state.master.bfloat16().view(torch.int16), 0x7FC0)
            assert torch.equal(state.out.view(torch.int16), copy)


def test_the_norm_is_that_of_float64() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        grad = torch.randn(100_003).to(dtype)
        for backend in (*KERNELS, Chunked()):
            assert backend.sum_squares(grad) == pytest.approx(grad.double().square().sum().item(), rel=1e-12)


@pytest.mark.parametrize("backend", [*KERNELS, Chunked()], ids=lambda item: item.name)
@settings(max_examples=30)
@given(
    n=st.one_of(st.integers(0, 300), st.sampled_from([1 << 18, (1 << 19) + 5])),
    seed=st.integers(0, 2**16),
    poison=st.sampled_from([None, math.nan, math.inf]),
)
def test_a_bf16_gradient_is_added_as_torch_adds_it(
    backend: Kernel | Chunked, n: int, seed: int, poison: float | None
) -> None:
    generator = torch.Generator().manual_seed(seed)
    total, addend = torch.randn(n, generator=generator), torch.randn(n, generator=generator).bfloat16()
    if poison is not None:
        addend[n // 2 :] = poison
    expected = total + addend.float()
    backend.add(total, addend)
    torch.testing.assert_close(total, expected, rtol=0, atol=0, equal_nan=True)


def test_quantised_codes_are_the_nearest() -> None:
    for qmap in QMAPS:
        values = torch.linspace(float(qmap[0]), 1, 50 * BLOCK)
        values[::BLOCK] = 1.0
        codes, absmax = quantise(values, qmap)
        assert bool((absmax == 1).all())
        error = (qmap[codes.long()] - values).abs()
        nearest = (values[:, None] - qmap).abs().amin(1)
        assert bool((error <= nearest + 1e-7).all())


@pytest.mark.parametrize("backend", [*KERNELS, Chunked()], ids=lambda item: item.name)
def test_zero_gradients_and_zero_blocks_stay_finite(backend: Kernel | Chunked) -> None:
    state = State(600)
    state.grad.zero_()
    for absmax in state.absmax:
        absmax.zero_()
    before = state.master.clone()
    state.step(backend, replace(SCALARS, weight_decay=0.0, min_code2=1))
    assert torch.equal(state.master, before)
    assert all(bool((absmax == 0).all()) for absmax in state.absmax)


def training_pair() -> tuple[torch.nn.Parameter, torch.nn.Parameter, list[Tensor]]:
    generator = torch.Generator().manual_seed(5)
    weights = torch.randn(64, 256, generator=generator)
    grads = [torch.randn(64, 256, generator=generator) for _ in range(6)]
    return torch.nn.Parameter(weights.clone()), torch.nn.Parameter(weights.clone()), grads


def assert_close_but_for_borders(ours: Tensor, theirs: Tensor) -> None:
    """bitsandbytes rounds in another order, so a moment on the border of two codes may get the other one."""
    difference = (ours - theirs).detach().abs()
    assert (difference > 2e-5).float().mean() < 0.01
    assert difference.max() < 1e-3


def test_states_load_into_bitsandbytes_and_back() -> None:
    from bitsandbytes.optim import AdamW8bit

    ours, theirs, grads = training_pair()
    our_optimizer = HostAdamW8bit([ours], lr=1e-3, min_code2=0)
    their_optimizer = AdamW8bit([theirs], lr=1e-3, weight_decay=0.01)
    for grad in grads[:3]:
        ours.grad, theirs.grad = grad.clone(), grad.clone()
        our_optimizer.step()
        their_optimizer.step()
    assert_close_but_for_borders(ours, theirs)
    # Now each goes on from the other's states.
    our_state, their_state = our_optimizer.state[ours], their_optimizer.state[theirs]
    assert set(our_state) == set(their_state)
    for name, value in our_state.items():
        if isinstance(value, Tensor):
            assert value.dtype == their_state[name].dtype and value.shape == their_state[name].shape, name
    with torch.no_grad():
        theirs.copy_(ours)
    their_optimizer.state[theirs], our_optimizer.state[ours] = dict(our_state), dict(our_state)
    for name in ("state1", "state2", "absmax1", "absmax2"):
        their_optimizer.state[theirs][name] = our_state[name].clone()
    for grad in grads[3:]:
        ours.grad, theirs.grad = grad.clone(), grad.clone()
        our_optimizer.step()
        their_optimizer.step()
    assert_close_but_for_borders(ours, theirs)


def test_small_tensors_and_32_bit_groups_are_plain_adamw() -> None:
    ours, theirs, grads = training_pair()
    small, small_reference = torch.nn.Parameter(torch.ones(100)), torch.nn.Parameter(torch.ones(100))
    optimizer = HostAdamW8bit([{"params": [ours], "state_bits": 32}, {"params": [small]}], lr=1e-3)
    reference = torch.optim.AdamW([theirs, small_reference], lr=1e-3)
    for grad in grads:
        ours.grad, theirs.grad = grad.clone(), grad.clone()
        small.grad, small_reference.grad = grad.view(-1)[:100].clone(), grad.view(-1)[:100].clone()
        optimizer.step()
        reference.step()
    # Roundings of another order of operations over six steps.
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(small, small_reference, rtol=1e-5, atol=1e-6)
    assert optimizer.state[ours]["state1"].dtype == torch.float32


def test_states_take_2_05_bytes_a_parameter() -> None:
    weights = torch.nn.Parameter(torch.zeros(1 << 20))
    weights.grad = torch.ones_like(weights)
    optimizer = HostAdamW8bit([weights])
    optimizer.step()
    tensors = [value for value in optimizer.state[weights].values() if isinstance(value, Tensor)]
    assert sum(item.numel() * item.element_size() for item in tensors) <= 2.05 * weights.numel()
