"""Bf16 where the processor has units for it, float32 where it has none: which one, and that both train alike.

The other kind of processor is this one, with oneDNN and torch held to AVX2.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import MadeOnce, environment, launch
from torch import nn

from redheart.core.config import RUNTIME_FIELDS, TrainConfig, fingerprint
from redheart.model.dims import preset
from redheart.model.network import build
from redheart.report.report import computed_in
from redheart.study.outlook import doctor
from redheart.train import engine
from redheart.train.device import compute_type as types
from redheart.train.log.events import all_events

SCRIPT = Path(__file__).with_name("compute_types.py")
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
RUNS = ("fp32", "fp32 in two")
Found = dict[str, Any]


def found_without_units(argument: object) -> tuple[Found, str]:
    """What the script found in a process without bf16 units, and its standard error."""
    done = launch([sys.executable, str(SCRIPT)], argument, real=True, env=environment() | AVX2)
    assert done.returncode == 0, done.stderr[-2000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT ")), done.stderr


@pytest.fixture(scope="module")
def avx2(made_once: MadeOnce) -> tuple[Found, str, Path]:
    """What the script found, its standard error and its folder."""

    def make(folder: Path) -> None:
        found = found_without_units(folder)
        (folder / "found.json").write_text(json.dumps(found))

    folder = made_once("avx2", make)
    return (*json.loads((folder / "found.json").read_text()), folder)


def test_without_units_a_run_computes_in_float32(avx2: tuple[Found, str, Path]) -> None:
    found, _, _ = avx2
    assert found["bf16_units"] is False and found["auto"] == "fp32"
    assert {found[name]["dtype"] for name in RUNS} == {"torch.float32"}
    assert found["bf16"]["dtype"] == "torch.bfloat16"
    verdict, text, hint = found["finding"]
    assert verdict == "ok" and text.endswith("takes fp32") and hint is None


@pytest.mark.parametrize("name", RUNS)
def test_float32_steps_are_those_of_the_plain_engine(avx2: tuple[Found, str, Path], name: str) -> None:
    assert_steps_of_the_plain_engine(avx2[0], name)


@pytest.mark.long  # DeepSpeed compiles its optimizer for most of a minute.
def test_float32_steps_with_deepspeed_s_own_optimizer_are_those_of_the_plain_engine() -> None:
    found, _ = found_without_units("--32-bits")
    assert_steps_of_the_plain_engine(found, "fp32, 32 bits")
    assert_a_step_was_skipped(found["fp32, 32 bits"])


def assert_steps_of_the_plain_engine(found: Found, name: str) -> None:
    for ours, reference in zip(found[name]["steps"], found["plain"]["steps"], strict=True):
        assert ours["applied"]
        # Other orders of sums at first, and from the second step on 8 bits of every moment.
        assert ours["loss"] == pytest.approx(reference["loss"], rel=2e-6)
        assert ours["grad_norm"] == pytest.approx(reference["grad_norm"], rel=1e-4)
    assert found[name]["weights"] == pytest.approx(found["plain"]["weights"], rel=1e-6)


@pytest.mark.parametrize("name", [*RUNS, "plain", "bf16"])
def test_a_gradient_that_is_not_finite_changes_nothing(avx2: tuple[Found, str, Path], name: str) -> None:
    assert_a_step_was_skipped(avx2[0][name])


def assert_a_step_was_skipped(found: Found) -> None:
    assert found["skips"] and found["skipped_state_stays"] and found["restored"]


def test_the_weights_in_float32_are_the_masters(avx2: tuple[Found, str, Path]) -> None:
    found, _, _ = avx2
    fp32, bf16 = found["fp32"]["host_bytes"], found["bf16"]["host_bytes"]
    assert fp32["masters"] == bf16["masters"] and fp32["states"] == bf16["states"]
    # With two bytes more for a gradient and two fewer for weight and master together, both hold as much.
    assert fp32["gradients"] == 2 * bf16["gradients"] == fp32["masters"]


@pytest.mark.parametrize("way", ["bf16 to fp32", "fp32 to bf16"])
def test_a_state_goes_on_in_the_other_type(avx2: tuple[Found, str, Path], way: str) -> None:
    found = avx2[0][way]
    assert found["places"] and all(found["same"].values()) and "0.state1" in found["same"]
    # Weights and activations of three significant digits on one of the two sides.
    assert found["crossed"]["loss"] == pytest.approx(found["unbroken"]["loss"], rel=3e-3)
    assert found["crossed"]["loss"] != found["unbroken"]["loss"]


def test_a_run_goes_on_on_the_other_kind_of_processor_and_says_so(avx2: tuple[Found, str, Path]) -> None:
    _, stderr, folder = avx2
    said = "note: started in bf16, going on in fp32: the bits of an unbroken run are not promised"
    assert stderr.count(said) == 1
    events = all_events(folder / "run" / "train" / "events.jsonl")
    starts = [event for event in events if event["event"] == "start"]
    assert [(start["compute_type"], start["step"]) for start in starts] == [("bf16", 0), ("fp32", 1)]
    assert len({start["key"] for start in starts}) == 1
    assert [event["epoch"] for event in events if event["event"] == "epoch"] == [1, 2]
    assert computed_in([start["compute_type"] for start in starts]) == "bf16, then fp32"


@pytest.mark.parametrize(
    ("setting", "units", "card", "expected"),
    [
        ("auto", True, False, "bf16"),
        ("auto", False, False, "fp32"),
        ("bf16", False, False, "bf16"),
        ("fp32", True, False, "fp32"),
        ("auto", False, True, "bf16"),
        ("fp32", False, True, "bf16"),
    ],
)
def test_the_type_follows_the_processor_unless_there_is_a_card(
    setting: Any, units: bool, card: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(types, "has_bf16_units", lambda: units)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: card)
    assert types.type_name(TrainConfig(compute_type=setting)) == expected
    for strategy in ("plain", "fp32_adamw"):
        assert types.type_name(TrainConfig(strategy=strategy, compute_type=setting)) == "fp32"


def test_the_type_is_no_part_of_what_a_run_is() -> None:
    assert "compute_type" in RUNTIME_FIELDS
    assert fingerprint(TrainConfig(compute_type="bf16")) == fingerprint(TrainConfig(compute_type="fp32"))


@pytest.mark.parametrize("name", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
def test_avx512_that_is_held_below_its_bf16_units_counts_as_without(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(types.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    for held_to, units in (("avx512_core", False), ("AVX512_CORE_VNNI", False), ("AVX512_CORE_BF16", True), ("", True)):
        monkeypatch.setenv(name, held_to)
        assert types.has_bf16_units() is units, held_to


def test_avx512_without_bf16_units_and_arm_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    for machine, units in (("x86_64", False), ("AMD64", False), ("aarch64", True)):
        monkeypatch.setattr(types.platform, "machine", lambda machine=machine: machine)
        assert types.has_bf16_units() is units
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert types.has_bf16_units() is False


@pytest.mark.parametrize(("bf16", "fp32", "verdict"), [(200.0, 98.0, "ok"), (37.0, 98.0, "note")])
def test_doctor_holds_what_onednn_says_against_a_timing(
    bf16: float, fp32: float, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = {torch.bfloat16: bf16, torch.float32: fp32}
    monkeypatch.setattr(types, "has_bf16_units", lambda: True)
    monkeypatch.setattr(types, "product_gflops", lambda dtype: speeds[dtype])
    finding = doctor.arithmetic()
    assert finding.verdict == verdict and "takes bf16" in finding.found
    assert (finding.hint is None) == (verdict == "ok")
    assert verdict == "ok" or "--train.compute-type fp32" in str(finding.hint)


def test_a_timing_leaves_the_threads_as_they_were() -> None:
    threads = torch.get_num_threads()
    assert types.product_gflops(torch.float32, budget_s=0.001) > 0.1
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("name", "micro_batch", "num_threads", "expected"),
    [("tiny", 64, 0, 1), ("small", 16, 0, 1), ("small", 64, 0, 6), ("full", 1, 0, 6), ("tiny", 64, 5, 5)],
)
def test_one_thread_where_operators_are_too_small_for_two(
    name: str, micro_batch: int, num_threads: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(engine, "available_cores", lambda: 12)
    module = build(preset(name), seed=0, device="meta")
    engine.set_threads(module, TrainConfig(micro_batch=micro_batch, num_threads=num_threads), 2)
    assert chosen == [expected]


def test_a_few_large_operators_are_not_taken_for_many_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(engine, "available_cores", lambda: 2)
    # As many parameters as `tiny` has, in a fiftieth of its tensors.
    engine.set_threads(nn.Sequential(*[nn.Linear(220, 220) for _ in range(7)]), TrainConfig(micro_batch=64), 1)
    assert chosen == [2]
