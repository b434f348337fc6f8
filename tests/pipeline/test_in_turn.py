"""Today's step against a clock: what is not hidden is added up, to the second."""

from dataclasses import replace

import pytest

from redheart.pipeline.clock import Counts, PassWork, Rates, in_turn

RATES = Rates(
    flop_s=1e12,
    memory_bytes_s=1e11,
    kernel_s=0.0,
    launch_s=1e-3,
    recompute_s=3e-3,
    bus_bytes_s=1e9,
    hand_over_s=1e-9,
    update_s=2e-9,
    around_s=0.5,
    keep_s=1e-9,
    update_on_card_s=1e-10,
)
WORK = PassWork(Counts(1000, 2e12, 1e11), Counts(2000, 4e12, 2e11))
"""3 and 6 s of computing, 1 and 2 of launching."""
PARAMETERS = 10**9


def test_an_offloaded_step_is_its_passes_copies_norm_and_update() -> None:
    waits = in_turn(WORK, RATES, micro_batches=1, on_host=PARAMETERS)
    # Two bytes an element leave in the stream that computes; they return beside the update.
    assert waits == pytest.approx({"card": 3 + 6 + 2, "host": 0.18 * 2 + 2, "rest": 0.5})


def test_passes_repeat_and_the_update_does_not() -> None:
    one, four = (sum(in_turn(WORK, RATES, micro_batches=n, on_host=PARAMETERS).values()) for n in (1, 4))
    assert four - one == pytest.approx(3 * 11 + (0.30 - 0.18) * 2)


@pytest.mark.parametrize(
    ("change", "waits_for"),
    [({"launch_s": 1e-2}, "launches"), ({"hand_over_s": 1e-7}, "gradients"), ({"bus_bytes_s": 1e8}, "bus")],
)
def test_the_lane_that_is_slowest_is_waited_for(change: dict[str, float], waits_for: str) -> None:
    assert waits_for in in_turn(WORK, replace(RATES, **change), micro_batches=1, on_host=PARAMETERS)


def test_without_offload_nothing_crosses_the_bus_and_the_gradients_are_kept_at_a_price() -> None:
    rates = replace(RATES, bus_bytes_s=1.0, hand_over_s=1.0)
    waits = in_turn(WORK, rates, micro_batches=2, on_card=PARAMETERS)
    assert waits == pytest.approx({"card": 2 * (3 + 6 + 1) + 0.1, "rest": 0.5, "host": 0.0})


def test_what_is_launched_again_under_checkpointing_has_its_own_price() -> None:
    rates = replace(RATES, flop_s=1e15, memory_bytes_s=1e15, hand_over_s=0.0)
    again = replace(WORK, backward=WORK.backward.plus(Counts(500)), recomputed_operators=500)
    once, twice = (in_turn(work, rates, micro_batches=1)["launches"] for work in (WORK, again))
    assert twice - once == pytest.approx(500 * 3e-3)


def test_a_share_on_the_card_is_neither_sent_nor_updated_on_the_host() -> None:
    none, half = (
        sum(in_turn(WORK, RATES, micro_batches=1, on_host=PARAMETERS - part, on_card=part).values())
        for part in (0, PARAMETERS // 2)
    )
    assert none - half == pytest.approx(0.5 * (2 + 1.18 * 2) - 0.5 * (1 + 0.1))
