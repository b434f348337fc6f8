"""A share of the optimizer on the card: planned within the bound, and states that go on with another share."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from launching import launch

from redheart.core.config import FeatureConfig, Preset, StudyConfig, TrainConfig, resolved
from redheart.core.errors import BadInput
from redheart.core.units import GIB
from redheart.memory.ledger import StrategySizes, held_bytes, ledger
from redheart.memory.plan import Plan
from redheart.memory.zero2 import groups_on_card
from redheart.model.dims import preset
from redheart.model.network import build
from redheart.study.outlook import planning
from redheart.train.engine import start_engine
from redheart.train.strategy import strategy_sizes

SCRIPT = Path(__file__).with_name("card_shares.py")
NAME = "zero2_offload_adam8bit"


@pytest.mark.parametrize(("before", "after"), [(0, 0.3), (0.3, 1), (1, 0)])
def test_a_state_of_one_share_goes_on_with_another(before: float, after: float) -> None:
    done = launch([sys.executable, str(SCRIPT)], before, after)
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    found: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
    assert found["same"] and abs(found["on_card"] - after) < 0.02
    assert found["updated_on_card"] == (after > 0)
    # The first step is that of the same weights; bitsandbytes rounds otherwise, in the last bits of a master.
    assert found["went_on"][0] == found["unbroken"][0]
    for (loss, norm), (other_loss, other_norm) in zip(found["went_on"], found["unbroken"], strict=True):
        assert loss == pytest.approx(other_loss, rel=1e-3) and norm == pytest.approx(other_norm, rel=2e-2)


@given(parts=st.lists(st.integers(0, 10**8), min_size=1), share=st.floats(0, 1))
def test_groups_on_the_card_fit_the_share(parts: list[int], share: float) -> None:
    chosen = groups_on_card(parts, share)
    assert sum(parts[index] for index in chosen) <= share * sum(parts) + 1e-6
    assert groups_on_card(parts, 1) == list(range(len(parts))) and sum(parts[i] for i in groups_on_card(parts, 0)) == 0


def assert_planned_with_a_share(name: Preset, length: int, gib: int) -> None:
    config = resolved(StudyConfig(preset=name, features=FeatureConfig(seq_len_tokens=length)))
    planner, sizes = planning.planner_of(config), strategy_sizes(NAME)
    found = planner.with_share(sizes, vram_bytes=gib * GIB)
    without = planner.fastest([sizes], vram_bytes=gib * GIB)
    assert (found is None) == (without is None)
    if found and without:
        assert found.peak_bytes <= found.upper_bytes <= gib * GIB and found.step_cost <= without.step_cost
        setting = {"micro_batch": found.micro_batch, "checkpointing": found.checkpointing, "vram_bytes": gib * GIB}
        assert (found.peak_bytes > planner.plan(sizes, **setting)[0].peak_bytes) == (found.card_share > 0)


def test_what_a_card_of_8_gib_leaves_free_is_the_optimizer_s() -> None:
    assert_planned_with_a_share("full", 128, 8)


def test_the_fastest_share_is_found_where_a_step_s_last_micro_batch_is_not_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = resolved(StudyConfig(preset="small", train=TrainConfig(effective_batch=48)))
    planner, sizes = planning.planner_of(config), strategy_sizes(NAME)

    def seconds(strategy: StrategySizes, micro_batch: int, checkpointing: bool) -> float:
        # 2 x 32 is more work than 3 x 16; what lies on the host costs 30.
        work = planner.steps(strategy, micro_batch) * micro_batch
        return work * (1.3 if checkpointing else 1) + 30 * (1 - strategy.card_share)

    def only_with_checkpointing(strategy: StrategySizes, micro_batch: int, checkpointing: bool, _: int) -> Plan:
        shared = dataclasses.replace(strategy, card_share=float(checkpointing))
        plan, _replay = planner.plan(shared, micro_batch=1, checkpointing=checkpointing, vram_bytes=8 * GIB)
        return msgspec.structs.replace(plan, micro_batch=micro_batch)

    monkeypatch.setattr(planner, "_largest_share", only_with_checkpointing)
    found = planner.with_share(sizes, vram_bytes=8 * GIB, cost=seconds)
    assert found and (found.micro_batch, found.checkpointing, found.card_share) == (1, True, 1.0)


@pytest.mark.long
@settings(max_examples=40)
@given(
    name=st.sampled_from(get_args(Preset)),
    length=st.sampled_from((64, 128, 256, 512)),
    gib=st.integers(4, 24),
)
def test_the_planner_s_point_is_within_the_bound_and_no_slower_than_without_a_share(
    name: Preset, length: int, gib: int
) -> None:
    assert_planned_with_a_share(name, length, gib)


@pytest.mark.parametrize("accumulates", [False, True])
def test_a_share_moves_bytes_and_makes_none(accumulates: bool) -> None:
    sizes = planning.planner_of(resolved(StudyConfig(preset="small"))).workload.sizes
    held = [
        held_bytes(ledger(sizes, strategy_sizes(NAME, TrainConfig(card_share=share)), accumulates=accumulates))
        for share in (0, 0.05, 1)
    ]
    assert held[0] == held[1] == held[2]


def test_a_strategy_without_a_host_optimizer_of_ours_takes_no_share() -> None:
    with pytest.raises(BadInput, match="moves to the card"):
        start_engine(build(preset("tiny"), seed=0), TrainConfig(strategy="plain", card_share=0.5))
