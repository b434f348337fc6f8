"""The order of a step: nothing is read before it is written or overwritten before it is read, and no lane idles."""

import dataclasses
import sys
from itertools import groupby, pairwise
from operator import attrgetter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorder import Race, RecordingLanes

from redheart.pipeline import clock
from redheart.pipeline.bucket import cut
from redheart.pipeline.clock import Machine, Passes, StepTimes, simulate
from redheart.pipeline.lanes import Lane
from redheart.pipeline.step import OffloadStep

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from simulated_step import floor_s

MODULES = {"backbone": 70, "neural": 40, "signal": 3, "trunk": 90, "head": 20}
LARGEST = 16
REASONS = {
    "launched",
    "weights queued",
    "weights arrived",
    "gradient computed",
    "gradient copied",
    "gradient left",
    "slot read",
    "norm computed",
    "norm and gradients copied",
    "updated",
}
H200 = Machine("H200, 16 cores, PCIe 5", 54.7e9, 54.7e9, update_s=0.142e-9, drain_s=0.084e-9)
GRAPHED = Passes(forward_s=15.2e-3, backward_s=30.3e-3, launch_s=2e-3)
"""45.5 ms measured for forward and backward as one graph."""
FULL = {f"module {index}": 730_466_848 // 20 for index in range(20)}


def record(lanes: RecordingLanes, *, slots: int, micro_batches: int = 1, steps: int = 3) -> None:
    buckets = cut(MODULES, largest=LARGEST)
    ring_bytes = slots * max(bucket.wire_bytes for bucket in buckets)
    step = OffloadStep(buckets, lanes, ring_bytes=ring_bytes, accumulates=micro_batches > 1)
    for _ in range(steps):
        for _ in range(micro_batches):
            for module in MODULES:
                step.forward(module, 1.0)
            for module in reversed(MODULES):
                step.backward(module, 1.0)
        step.step()


@pytest.mark.parametrize("slots", [1, 2, 5, 100])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_nothing_is_read_before_it_is_written_or_overwritten_before_it_is_read(slots: int, micro_batches: int) -> None:
    record(RecordingLanes(), slots=slots, micro_batches=micro_batches)


def test_every_wait_is_of_a_known_reason() -> None:
    one, several = RecordingLanes(), RecordingLanes()
    record(one, slots=2)
    record(several, slots=2, micro_batches=2)
    assert one.reasons | several.reasons == REASONS


@pytest.mark.parametrize("reason", sorted(REASONS))
def test_without_any_one_of_the_waits_there_is_a_race(reason: str) -> None:
    # Of the norm there is one way with one micro-batch and another with several.
    with pytest.raises(Race):
        for micro_batches in (1, 2):
            record(RecordingLanes(broken=reason), slots=2, micro_batches=micro_batches)


@given(
    st.dictionaries(st.text(min_size=1, max_size=3), st.integers(0, 50), min_size=1, max_size=6).filter(
        lambda modules: sum(modules.values()) > 0
    ),
    st.integers(1, 20),
)
def test_buckets_hold_every_element_once_in_the_order_of_the_modules(modules: dict[str, int], largest: int) -> None:
    buckets = cut(modules, largest=largest)
    assert [bucket.index for bucket in buckets] == list(range(len(buckets)))
    assert all(1 <= bucket.elements <= largest for bucket in buckets)
    found = [(name, list(parts)) for name, parts in groupby(buckets, key=attrgetter("module"))]
    assert [name for name, _ in found] == [name for name, elements in modules.items() if elements]
    for name, parts in found:
        sizes = [bucket.elements for bucket in parts]
        assert sum(sizes) == modules[name] and max(sizes) - min(sizes) <= 1


def test_a_step_of_full_is_within_a_tenth_of_its_longest_chain() -> None:
    times = simulate(FULL, H200, GRAPHED, ring_bytes=2 << 30)
    chain_s = floor_s(FULL, H200, GRAPHED)
    assert chain_s == pytest.approx(0.0303 + 0.0007 + 0.1037 + 0.0006, rel=0.01)
    assert chain_s <= times.step_s <= 1.1 * chain_s
    assert times.bound_by == Lane.HOST and times.busy_s["card to host"] == pytest.approx(0.0267, rel=0.01)


@given(
    ring_mib=st.integers(16, 4096),
    micro_batches=st.integers(1, 4),
    pass_s=st.floats(1e-3, 1),
    launch_s=st.floats(0, 1),
    update_s=st.floats(1e-11, 1e-9),
    bus=st.floats(1e9, 1e11),
)
def test_no_lane_does_two_things_at_once_and_no_step_beats_the_chain(
    ring_mib: int, micro_batches: int, pass_s: float, launch_s: float, update_s: float, bus: float
) -> None:
    machine = Machine("any", bus, bus, update_s=update_s, drain_s=update_s / 2)
    passes = Passes(pass_s / 3, pass_s * 2 / 3, launch_s, micro_batches)
    times = simulate(FULL, machine, passes, ring_bytes=ring_mib << 20)
    for lane in Lane:
        of_lane = [item for item in times.timeline if item.lane == lane]
        assert all(one.end_s <= two.start_s for one, two in pairwise(of_lane))
        assert times.busy_s[lane] <= times.step_s * (1 + 1e-9)
    assert times.step_s >= floor_s(FULL, machine, passes) * (1 - 1e-9)


@pytest.mark.parametrize("ring_mib", [32, 2048])
def test_a_step_of_very_many_micro_batches_is_as_if_all_were_simulated(
    ring_mib: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A question with `--effective-batch 1000000` has an answer."""

    def times(micro_batches: int) -> StepTimes:
        passes = dataclasses.replace(GRAPHED, micro_batches=micro_batches)
        return simulate(FULL, H200, passes, ring_bytes=ring_mib << 20, steps=2)

    found = times(3 * clock.MOST_SIMULATED)
    assert times(10**6).step_s > 1000 * found.step_s
    monkeypatch.setattr(clock, "MOST_SIMULATED", 10**6)
    whole = times(768)
    assert found.step_s == pytest.approx(whole.step_s, rel=1e-6)
    assert found.busy_s == pytest.approx(whole.busy_s, rel=1e-6)


def test_a_smaller_ring_costs_the_host_what_it_drains() -> None:
    whole, part, one = (simulate(FULL, H200, GRAPHED, ring_bytes=size << 20) for size in (2048, 256, 32))
    assert whole.busy_s["host"] < part.busy_s["host"] < one.busy_s["host"]
    assert whole.step_s < part.step_s < one.step_s < 2 * whole.step_s
