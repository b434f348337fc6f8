"""The whole range that the planner is for: 4 to 80 GiB, lengths 32 to 512, micro-batches 1 to 64."""

from itertools import pairwise

import pytest

from redheart.core.config import FeatureConfig, StudyConfig, resolved
from redheart.core.units import GIB
from redheart.memory.plan import MICRO_BATCHES, Planner
from redheart.study.outlook import planning
from redheart.train.strategy import strategy_sizes

CARDS_GIB = (4, 6, 8, 12, 24, 80)
OFFLOAD = "zero2_offload_adam8bit"


@pytest.mark.long
@pytest.mark.parametrize("length", [32, 128, 512])
def test_every_card_gets_a_verdict_that_grows_with_the_card(length: int) -> None:
    config = resolved(StudyConfig(preset="full", features=FeatureConfig(seq_len_tokens=length)))
    plans = []
    for size in CARDS_GIB:
        found = planning.answer(config, vram_bytes=size * GIB, strategy="auto")
        plan = found.plan
        assert plan.fits == (plan.upper_bytes <= size * GIB) and plan.peak_bytes < plan.upper_bytes
        assert plan.micro_batch in MICRO_BATCHES and sum(plan.parts.values()) == plan.peak_bytes
        # Offloading the 730-million-parameter model is what a small card is for: all of these fit.
        assert plan.fits, (size, length)
        plans.append(plan)
    for small, large in pairwise(plans):
        assert large.step_cost <= small.step_cost


@pytest.mark.long
@pytest.mark.parametrize("checkpointing", [False, True])
def test_full_at_every_micro_batch_is_larger_with_more_records_and_what_is_named_instead_fits(
    checkpointing: bool,
) -> None:
    config = resolved(StudyConfig(preset="full", features=FeatureConfig(seq_len_tokens=512)))
    planner = Planner(planning.workload(config))
    sizes = strategy_sizes(OFFLOAD)
    peaks = [
        planner.plan(sizes, micro_batch=micro, checkpointing=checkpointing, vram_bytes=8 * GIB)[0].peak_bytes
        for micro in sorted(MICRO_BATCHES)
    ]
    assert peaks == sorted(peaks)
    refused = planning.answer(config, vram_bytes=8 * GIB, strategy=OFFLOAD, micro_batch=64)
    assert not refused.plan.fits
    assert refused.nearest is not None and refused.nearest.fits
