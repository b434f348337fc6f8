"""The filter without a loop over tokens beside the textbook's recursion."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from redheart.model.kalman import EmotionKalman, affine_state, affine_states, kalman_gains


def filter_of(width: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Transition, observation and both covariances, float64."""
    random = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(width, width, generator=random, dtype=torch.float64)  # noqa: E731
    identity = torch.eye(width, dtype=torch.float64)
    process, measurement = 0.3 * draw(), draw()
    return (
        0.9 * identity + 0.2 * draw(),
        identity + 0.3 * draw(),
        process @ process.T + 1e-3 * identity,
        measurement @ measurement.T + 1e-3 * identity,
    )


def textbook_gains(
    transition: Tensor, observation: Tensor, process: Tensor, measurement: Tensor, tokens: int
) -> Tensor:
    identity = torch.eye(len(transition), dtype=transition.dtype)
    covariance, gains = identity, []
    for _ in range(tokens):
        covariance = transition @ covariance @ transition.T + process
        gain = covariance @ observation.T @ torch.linalg.inv(observation @ covariance @ observation.T + measurement)
        covariance = (identity - gain @ observation) @ covariance
        gains.append(gain)
    return torch.stack(gains)


@given(width=st.integers(1, 8), seed=st.integers(0, 2**31), tokens=st.integers(1, 70))
def test_gains_are_those_of_the_textbook(width: int, seed: int, tokens: int) -> None:
    matrices = filter_of(width, seed)
    found = kalman_gains(*matrices, tokens=tokens)
    # Relative to the largest: a noise of nothing in one direction makes the recursion itself lose digits.
    expected = textbook_gains(*matrices, tokens)
    assert (found - expected).abs().max() <= 1e-10 * max(1.0, expected.abs().max().item())


@given(seed=st.integers(0, 2**31), tokens=st.integers(1, 140), data=st.data())
def test_states_are_those_of_the_recursion(seed: int, tokens: int, data: st.DataObject) -> None:
    random = torch.Generator().manual_seed(seed)
    maps_SOO = torch.randn(tokens, 3, 3, generator=random, dtype=torch.float64) / 2
    inputs_SBO = torch.randn(tokens, 2, 3, generator=random, dtype=torch.float64)
    state_BO, expected = torch.zeros(2, 3, dtype=torch.float64), []
    for map_OO, input_BO in zip(maps_SOO, inputs_SBO, strict=True):
        state_BO = state_BO @ map_OO + input_BO
        expected.append(state_BO)
    expected_SBO = torch.stack(expected)
    assert torch.allclose(affine_states(maps_SOO, inputs_SBO), expected_SBO, rtol=1e-10, atol=1e-10)
    last_B = torch.tensor([data.draw(st.integers(0, tokens - 1)) for _ in range(2)])
    expected_BO = expected_SBO[last_B, torch.arange(2)]
    assert torch.allclose(affine_state(maps_SOO, inputs_SBO, last_B), expected_BO, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("tokens", [1, 2, 5, 9])
def test_gradients_are_those_of_differences(tokens: int) -> None:
    matrices = [item.requires_grad_() for item in filter_of(3, seed=tokens)]

    def gains_of(*parts: Tensor) -> Tensor:
        # A covariance is symmetric, and so is what it is moved by.
        transition, observation, process, measurement = parts
        symmetric = [(noise + noise.T) / 2 for noise in (process, measurement)]
        return kalman_gains(transition, observation, *symmetric, tokens=tokens)

    assert torch.autograd.gradcheck(gains_of, matrices)
    random = torch.Generator().manual_seed(0)
    maps_SOO = torch.randn(tokens, 3, 3, generator=random, dtype=torch.float64).requires_grad_()
    inputs_SBO = torch.randn(tokens, 2, 3, generator=random, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(affine_states, (maps_SOO, inputs_SBO))
    assert torch.autograd.gradcheck(affine_state, (maps_SOO, inputs_SBO, torch.tensor([tokens - 1, tokens // 2])))


def test_gradients_are_the_same_bits_at_every_call() -> None:
    fusion = EmotionKalman(28)
    fusion.start(torch.Generator().manual_seed(0))
    first_BSO, second_BSO = torch.randn(2, 64, 24, 28, generator=torch.Generator().manual_seed(1))
    # Many records end at one token, and there are more elements than torch leaves to one thread.
    mask_BS = torch.arange(24) < torch.tensor([24, 24, 24, 17]).repeat(16)[:, None]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = [
            torch.autograd.grad(fusion(first_BSO, second_BSO, mask_BS).square().sum(), list(fusion.parameters()))
            for _ in range(8)
        ]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for again in found for one, other in zip(found[0], again, strict=True))


def test_padding_and_what_lies_in_it_changes_nothing() -> None:
    fusion = EmotionKalman(3)
    fusion.start(torch.Generator().manual_seed(0))
    random = torch.Generator().manual_seed(1)
    first_BSO, second_BSO = torch.randn(2, 4, 9, 3, generator=random)
    mask_BS = torch.arange(9) < torch.tensor([9, 5, 1, 0])[:, None]
    found_BO = fusion(first_BSO, second_BSO, mask_BS)
    other = torch.where(mask_BS[..., None], first_BSO, 100.0)
    assert torch.equal(fusion(other, second_BSO, mask_BS), found_BO)
    for record, length in enumerate((9, 5, 1)):
        alone_1O = fusion(
            first_BSO[record : record + 1, :length],
            second_BSO[record : record + 1, :length],
            mask_BS[record : record + 1, :length],
        )
        assert torch.allclose(alone_1O, found_BO[record : record + 1], rtol=1e-5, atol=1e-6)
    assert torch.equal(found_BO[3], torch.zeros(3))


def test_the_filter_is_the_textbook_one() -> None:
    fusion = EmotionKalman(3)
    generator = torch.Generator().manual_seed(0)
    fusion.start(generator)
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    first_BSO, second_BSO = torch.randn(2, 4, 9, 3, generator=torch.Generator().manual_seed(1))
    mask_BS = torch.arange(9) < torch.tensor([9, 5, 1, 7])[:, None]
    pair_BSP = torch.cat((first_BSO.log_softmax(-1), second_BSO.log_softmax(-1)), -1)
    share_BSP = fusion.weigh(pair_BSP).softmax(-1)
    with torch.no_grad():
        measured_BSO = (pair_BSP[..., :3] * share_BSP[..., :1] + pair_BSP[..., 3:] * share_BSP[..., 1:]).double()
        step, seen = fusion.transition.double(), fusion.observation.double()
        eye = torch.eye(3, dtype=torch.float64)
        noises = [
            root.double() @ root.double().T + fusion.EPSILON * eye
            for root in (fusion.process_root, fusion.measurement_root)
        ]
        expected = []
        for length, measured_SO in zip(mask_BS.sum(1), measured_BSO, strict=True):
            state, covariance = torch.zeros(3, dtype=torch.float64), eye
            for value in measured_SO[:length]:
                state, covariance = step @ state, step @ covariance @ step.T + noises[0]
                gain = covariance @ seen.T @ torch.linalg.inv(seen @ covariance @ seen.T + noises[1])
                state = state + gain @ (value - seen @ state)
                covariance = (eye - gain @ seen) @ covariance
            expected.append(state)
        found_BO = fusion(first_BSO, second_BSO, mask_BS)
    assert torch.allclose(found_BO.double(), torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_a_filter_whose_weights_have_diverged_gives_no_number_instead_of_an_error() -> None:
    fusion = EmotionKalman(3)
    fusion.start(torch.Generator().manual_seed(0))
    with torch.no_grad():
        # In float32 the covariance beside this is nothing, and the matrix to solve is singular.
        fusion.observation.fill_(1e20)
        fusion.measurement_root.zero_()
    logits_BSO, mask_BS = torch.randn(2, 4, 3), torch.ones(2, 4, dtype=torch.bool)
    prediction_BO = fusion(logits_BSO, logits_BSO, mask_BS)
    prediction_BO.sum().backward()
    assert not prediction_BO.isfinite().any()
