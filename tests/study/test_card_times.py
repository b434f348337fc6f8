"""`plan --card`: the time of a card that is not here, what comes next, and what a run on it remembers."""

import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import torch

from redheart.cli import main
from redheart.core.config import FeatureConfig, StudyConfig, TrainConfig, resolved
from redheart.core.errors import BadInput
from redheart.core.units import GIB
from redheart.memory.cards import find
from redheart.memory.step_time import HostSpeed
from redheart.study.outlook import doctor, plan_output, planning, timings
from redheart.train.log.pace import CHECK_STEPS
from redheart.train.settings import Chosen

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import step_times

CONFIG = resolved(
    StudyConfig(
        preset="tiny", epochs=10, features=FeatureConfig(seq_len_tokens=8), train=TrainConfig(effective_batch=32)
    )
)
TINY = [
    "plan",
    "--preset",
    "tiny",
    "--epochs",
    "10",
    "--seq-len-tokens",
    "8",
    "--effective-batch",
    "32",
    "--micro-batch=8",
]
"""The same: traces are shared."""


@pytest.fixture(autouse=True)
def empty_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "step_times.json"
    monkeypatch.setenv("REDHEART_STEP_TIMES", str(path))
    return path


def test_the_next_best_are_slower_fit_and_are_not_the_chosen_one() -> None:
    answer = planning.answer(CONFIG, vram_bytes=8 * GIB, card=find("RTX 3070"), micro_batch=8)
    found = answer.on_card
    assert found is not None and found.note is None and not found.is_host_measured
    settings = {plan.setting_text() for plan in (answer.plan, *(plan for plan, _ in found.others))}
    assert len(settings) == 3 and all(plan.fits for plan, _ in found.others)
    assert sorted(step_s for _, step_s in found.others) == [step_s for _, step_s in found.others]
    low, typical, high = (seconds / (-(-7086 // 32) * 10) for seconds in sorted(found.run_s))
    assert (low, typical, high) == pytest.approx((found.step.low_s, found.step.step_s, found.step.high_s))
    lines = plan_output.card_lines(answer.plan, found)
    assert lines[0].startswith("time") and "simulated, RTX 3070" in lines[0]
    assert plan_output.LANES[found.step.bound_by] in lines[1] and "doctor --measure" in lines[-1]


@pytest.mark.long
def test_without_offload_is_chosen_where_it_is_faster_and_fits() -> None:
    found = planning.answer(CONFIG, vram_bytes=24 * GIB, card=find("RTX 4090"), strategy="auto")
    assert found.on_card is not None and found.plan.strategy == "gpu_adam8bit"


@pytest.mark.parametrize("switch", [{}, {"pipeline": True}, {"graphs": True}])
def test_a_card_without_bf16_units_is_told_so_and_offered_what_works(switch: dict[str, bool]) -> None:
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, **switch))
    found = planning.answer(config, vram_bytes=6 * GIB, card=find("RTX 2060"), micro_batch=8).on_card
    assert found is not None and found.note is not None
    assert "no bf16 units" in found.note and "--strategy fp32_adamw) `tiny` fits" in found.note


def test_a_card_gives_its_memory_and_a_desktop_keeps_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, vram_gib in (
        (("--card", "3060 Ti"), 8),
        (("--card", "3060 Ti", "--reserve", "1GiB"), 7),
        (("--vram", "4GiB", "--reserve", "512MiB"), 3.5),
    ):
        main([*TINY, *arguments, "--json"])
        fields = json.loads(capsys.readouterr().out)
        assert fields["vram_bytes"] == vram_gib * GIB
        assert (fields["on_card"] is not None) == ("--card" in arguments)
    for wrong in (("--card", "RTX 9999"), ("--reserve", "lots"), ("--vram", "1GiB", "--reserve", "1GiB")):
        with pytest.raises(SystemExit) as refusal:
            main([*TINY, *wrong])
        assert refusal.value.code == 2


def test_steps_that_were_taken_on_the_card_are_believed() -> None:
    steps = [{"event": "step", "forward_backward_s": 1.0, "step_s": 1.5}] * 5
    plan = planning.answer(CONFIG, vram_bytes=8 * GIB, card=find("RTX 3070"), micro_batch=8).plan
    assert plan.step_s is None
    train = dataclasses.replace(CONFIG.train, checkpointing=plan.checkpointing, micro_batch=8)
    config = dataclasses.replace(CONFIG, train=train)
    found = timings.measured_step(config, steps, ranks=1)
    assert found is not None
    timings.remember(msgspec.structs.replace(found, device="NVIDIA GeForce RTX 3070"))
    answer = planning.answer(CONFIG, vram_bytes=8 * GIB, card=find("RTX 3070"), micro_batch=8)
    assert answer.plan.step_s == pytest.approx(1.5) and answer.on_card is not None
    assert "(measured: steps of" in plan_output.card_lines(answer.plan, answer.on_card)[0]
    assert planning.answer(CONFIG, vram_bytes=8 * GIB, card=find("RTX 3070 Ti"), micro_batch=8).plan.step_s is None


def test_a_run_that_was_expected_remembers_its_first_steps(empty_store: Path) -> None:
    sink = timings.Remembering(CONFIG, ranks=1, num_validation=1)
    for _ in range(CHECK_STEPS):
        sink.write({"event": "step", "forward_backward_s": 0.3, "step_s": 0.4})
    assert not empty_store.exists()
    sink.write({"event": "step", "forward_backward_s": 0.3, "step_s": 0.4})
    sink.write({"event": "estimate_check"})
    known = timings.recall(CONFIG, ranks=1)
    assert known is not None and known.update_s == pytest.approx(0.1)


def test_what_is_expected_is_what_was_measured_here_else_what_the_planner_says_of_the_card() -> None:
    found = Chosen("64 x 1", "planner", "", [], "a card", "its constants", 2.0, 1.0, 3.0, "host", 1, 2)
    assert timings.expected(CONFIG, None, ranks=1, num_validation=10) is None
    unknown = dataclasses.replace(found, predicted_step_s=None)
    assert timings.expected(CONFIG, unknown, ranks=1, num_validation=10) is None
    said = timings.expected(CONFIG, found, ranks=1, num_validation=10)
    assert said is not None and (said.step_s, said.basis) == (2.0, "simulated, its constants")
    steps = [{"event": "step", "forward_backward_s": 0.5, "step_s": 1.0}] * 5
    measured = timings.measured_step(CONFIG, steps, ranks=1)
    assert measured is not None
    timings.remember(measured)
    before = timings.expected(CONFIG, found, ranks=1, num_validation=10)
    assert before is not None and before.step_s == pytest.approx(1.0) and "measured" in before.basis


@pytest.mark.long
def test_full_on_a_known_card_is_expected_to_take_what_its_plan_says(monkeypatch: pytest.MonkeyPatch) -> None:
    config = resolved(StudyConfig(preset="full", train=TrainConfig(micro_batch=64, checkpointing=True)))
    answer = planning.answer(config, vram_bytes=8 * GIB, card=find("RTX 3070"))
    plan, planned = answer.plan, answer.on_card
    work = planning.planner_of(config).pass_work(64, checkpointing=True)
    assert planned is not None and (plan.micro_batch, plan.checkpointing) == (64, True)
    # What benchmarks/step_times.py takes for the passes that were measured.
    assert work.forward[1:] == pytest.approx(step_times.FORWARD[1:], rel=0.01)
    assert work.backward[1:] == pytest.approx(step_times.CHECKPOINTED[1:], rel=0.01)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _index=0: "NVIDIA GeForce RTX 3070")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _index: SimpleNamespace(total_memory=8 * GIB))
    taken, found = plan_output.on_this_card(StudyConfig(preset="full"))
    assert (taken.train.micro_batch, taken.train.checkpointing) == (64, True) and found is not None
    assert (found.by, found.device, found.vram_bytes) == ("planner", "NVIDIA GeForce RTX 3070", 8 * GIB)
    assert (found.predicted_step_s, found.bound_by) == (planned.step.step_s, planned.step.bound_by)
    assert found.low_s < found.predicted_step_s < found.high_s and found.upper_bytes == plan.upper_bytes
    assert len(found.others) == planning.NUM_OTHERS and all("s a step" in other for other in found.others)
    assert found.constants == "RTX 3070, constants of its data sheet and any host's" and found.constants in found.text
    assert "within a tenth of the fastest that fits, and it leaves 40% of the card free" in found.text
    assert f"bound by {plan_output.LANES[found.bound_by]}" in found.text
    steps = [{"event": "step", "forward_backward_s": 0.5, "step_s": 0.75}] * 5
    measured = timings.measured_step(resolved(taken), steps, ranks=1)
    assert measured is not None and measured.device == "NVIDIA GeForce RTX 3070"
    timings.remember(measured)
    timings.remember_host(HostSpeed(0.1e-9, 0.05e-9, 20e9))
    faster = plan_output.on_this_card(StudyConfig(preset="full"))[1]
    assert faster is not None and faster.predicted_step_s < found.predicted_step_s
    assert "this host's as measured" in faster.text
    assert "0.75 s a step (measured: steps of 64 x 128 tokens on NVIDIA GeForce RTX 3070)" in faster.text


def test_the_host_is_measured_kept_and_taken(empty_store: Path) -> None:
    assert timings.recall_host() is None
    found = doctor.measure(elements=1 << 18)
    assert 0 < found.update_s < 1e-6 and 0 < found.add_s < 1e-6 and found.copy_bytes_s > 1e7
    assert (found.launch_s is None) == (not torch.cuda.is_available())
    assert timings.remember_host(found) == empty_store.with_name("host_speed.json")
    assert timings.recall_host() == found
    slow = HostSpeed(1e-6, 1e-6, 1e9)
    before = planning.answer(CONFIG, vram_bytes=8 * GIB, card=find("RTX 3070"), micro_batch=8).on_card
    timings.remember_host(slow)
    after = planning.answer(CONFIG, vram_bytes=8 * GIB, card=find("RTX 3070"), micro_batch=8).on_card
    assert before and after and after.is_host_measured and after.step.step_s > before.step.step_s
    empty_store.with_name("host_speed.json").write_text("[{")
    assert timings.recall_host() is None


def test_a_launch_is_timed_by_its_operators() -> None:
    assert 1e-7 < doctor.launch_s(torch.device("cpu")) < 1


def test_too_little_is_left_of_a_card() -> None:
    with pytest.raises(BadInput, match="not a size"):
        planning.parse_bytes("2000GiB", least_bytes=0)


def test_graphs_launch_nothing_and_the_pipeline_has_a_ring_and_neither_was_measured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = {}
    for switches in ((), ("--train.graphs",), ("--pipeline",), ("--graphs", "--train.pipeline")):
        main([*TINY, "--card", "RTX 3070", *switches, "--json"])
        shown[switches] = json.loads(capsys.readouterr().out)
    eager, graphs, pipeline, both = shown.values()
    waits = [found["on_card"]["step"]["waits_s"] for found in shown.values()]
    assert "launches" in waits[0] and not waits[1].get("launches") and not waits[3].get("launches")
    assert graphs["on_card"]["step"]["step_s"] < eager["on_card"]["step"]["step_s"]
    # Two gradients of every parameter for good; the ring stands in for slots and gradients on the host.
    assert graphs["parts"]["gradients of graphs"] >= 2 * 2 * planning.planner_of(CONFIG).workload.sizes.trained
    assert "ring of slots" in pipeline["host_parts"] and "page-locked slots" not in pipeline["host_parts"]
    for found in (graphs, pipeline, both):
        assert "not measured" in found["basis"]
    assert eager["basis"] == "predicted"
