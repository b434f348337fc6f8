"""States of M ranks read by N ranks: exact where blocks line up or are 32-bit, rounded once more elsewhere."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from redheart.core.errors import CorruptFile
from redheart.optim.chunked import dequantise, quantise
from redheart.optim.host_adamw8bit import dynamic_map
from redheart.train.zero.optimizer_state import Repartitioned

QMAP = dynamic_map(True)


def divided(flat: Tensor, ranks: int) -> list[Tensor]:
    """A flat tensor as ZeRO divides it: padded to a multiple of twice the ranks."""
    padded = torch.nn.functional.pad(flat, (0, -flat.numel() % (2 * ranks)))
    return list(padded.chunk(ranks))


def state(masters: Tensor, moments: Tensor, ranks: int) -> list[dict[str, Tensor]]:
    parts = []
    for master, moment in zip(divided(masters, ranks), divided(moments, ranks), strict=True):
        codes, absmax = quantise(moment, QMAP)
        parts.append(
            {
                "0.master": master,
                "0.step": torch.tensor(3),
                "0.exp_avg": moment,
                "0.state1": codes,
                "0.absmax1": absmax,
                "0.qmap1": QMAP,
            }
        )
    return parts


@settings(max_examples=60)
@given(elements=st.integers(1, 3000), old=st.integers(1, 4), new=st.integers(1, 4), seed=st.integers(0, 9))
def test_weights_and_float_moments_arrive_exactly_and_codes_within_one_rounding(
    elements: int, old: int, new: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    masters, moments = torch.randn(elements, generator=generator), torch.randn(elements, generator=generator)
    before, wanted = state(masters, moments, old), state(masters, moments, new)
    before[0]["buffer.running_mean"] = torch.ones(3)
    size = wanted[0]["0.master"].numel()
    for rank in range(new):
        found = dict(Repartitioned(before, sizes=[size], rank=rank))
        assert set(found) == set(wanted[rank])
        for name in ("0.master", "0.exp_avg", "0.step", "0.qmap1"):
            assert torch.equal(found[name], wanted[rank][name]), name
        values = dequantise(found["0.state1"], found["0.absmax1"], QMAP)
        # Two roundings, each at most half a step of the map's coarsest decade, of the largest value around.
        assert (values - wanted[rank]["0.exp_avg"]).abs().max() <= 0.02 * moments.abs().max()


@pytest.mark.parametrize(("old", "new"), [(2, 1), (1, 2), (2, 4)])
def test_blocks_that_line_up_keep_their_codes(old: int, new: int) -> None:
    moments = torch.randn(4096)
    before = state(moments, moments, old)
    for rank in range(new):
        found = Repartitioned(before, sizes=[4096 // new], rank=rank)
        whole = torch.cat([item["0.state1"] for item in before])
        assert torch.equal(found["0.state1"], whole[rank * 4096 // new : (rank + 1) * 4096 // new])


@pytest.mark.parametrize(("old", "new", "boundary"), [(2, 1, 192), (1, 2, 256)])
def test_no_second_moment_is_rounded_to_zero_beside_a_first_one_that_is_not(old: int, new: int, boundary: int) -> None:
    # After one step, in blocks of their own before, and in one block behind it.
    gradients = torch.cat([torch.ones(boundary), torch.full((384 - boundary,), 1e-4)])
    before: list[dict[str, Tensor]] = [{} for _ in range(old)]
    for moment, values, signed in (("1", 0.1 * gradients, True), ("2", 0.001 * gradients**2, False)):
        for rank, part in zip(before, divided(values, old), strict=True):
            qmap = dynamic_map(signed)
            codes, absmax = quantise(part, qmap)
            rank |= {f"0.state{moment}": codes, f"0.absmax{moment}": absmax, f"0.qmap{moment}": qmap}
    for rank in range(new):
        found = Repartitioned(before, sizes=[384 // new], rank=rank)
        first, second = (
            dequantise(found[f"0.state{moment}"], found[f"0.absmax{moment}"], found[f"0.qmap{moment}"])
            for moment in "12"
        )
        # A step is one learning rate; 8 bits round it up by a little.
        assert (first / 0.1 / ((second / 0.001).sqrt() + 1e-8)).abs().max() < 1.1


def test_a_state_of_another_model_is_refused() -> None:
    with pytest.raises(CorruptFile, match="another model"):
        Repartitioned(state(torch.ones(8), torch.ones(8), 2), sizes=[4, 4], rank=0)
