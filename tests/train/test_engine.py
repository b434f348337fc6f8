"""The engines agree with each other, and k micro-batches with the one big batch."""

import json
import os
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import launch
from torch import Tensor, nn

from redheart.core.config import TrainConfig
from redheart.core.errors import BadInput
from redheart.core.ranks import read_ranks
from redheart.train import engine
from redheart.train.strategy import strategy_named
from redheart.train.zero.groups import parameter_groups
from redheart.train.zero.optimizer_state import load_tensors, tensors_of

SCRIPT = Path(__file__).with_name("engine_steps.py")
COMPILED = pytest.param("zero2_offload_adam32", marks=pytest.mark.long)
"""DeepSpeed compiles its optimizer for most of a minute on both cores, anew in every checkout."""


@cache
def steps_of(strategy: str, num_micro_batches: int, *more: str) -> dict[str, Any]:
    done = launch([sys.executable, str(SCRIPT)], strategy, num_micro_batches, *more)
    assert done.returncode == 0, done.stderr[-2000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))


@pytest.mark.parametrize("strategy", ["zero2_offload_adam8bit", COMPILED])
def test_offloaded_steps_follow_the_plain_ones(strategy: str) -> None:
    plain, offloaded = steps_of("plain", 1), steps_of(strategy, 1)
    assert offloaded["restored"] and plain["restored"]
    for ours, reference in zip(offloaded["steps"], plain["steps"], strict=True):
        assert ours["applied"]
        # bf16 weights and activations against float32: three significant digits.
        assert ours["loss"] == pytest.approx(reference["loss"], rel=3e-3)
        assert ours["grad_norm"] == pytest.approx(reference["grad_norm"], rel=3e-2)


@pytest.mark.long
def test_deepspeed_s_optimizer_goes_on_from_a_state_with_the_bits_of_an_unbroken_run() -> None:
    def optimizer_of(weights: torch.Tensor) -> torch.optim.Optimizer:
        groups = parameter_groups(torch.nn.ParameterList([weights.clone()]), weight_decay=0.01)
        return strategy_named("zero2_offload_adam32").optimizer(groups, TrainConfig())

    def steps(optimizer: torch.optim.Optimizer, numbers: range) -> list[torch.Tensor]:
        masters = [item for group in optimizer.param_groups for item in group["params"]]
        for number in numbers:
            optimizer.param_groups[0]["lr"] = 1e-3
            for master in masters:
                master.grad = torch.randn(master.shape, generator=torch.Generator().manual_seed(number))
            optimizer.step()
        return masters

    weights, module = torch.randn(64, 64), torch.nn.Module()
    expected = steps(optimizer_of(weights), range(200))
    first, kept = optimizer_of(weights), []
    for start in range(0, 180, 20):
        tensors = tensors_of(steps(first, range(start, start + 20)), first, module)
        kept.append({name: item.clone() for name, item in tensors})
    for number, state in enumerate(kept, 1):
        again = optimizer_of(weights)
        load_tensors([item for group in again.param_groups for item in group["params"]], again, state)
        for ours, unbroken in zip(steps(again, range(20 * number, 200)), expected, strict=True):
            assert torch.equal(ours, unbroken), f"after {20 * number} steps"


@pytest.mark.parametrize("strategy", ["zero2_offload_adam8bit", COMPILED])
def test_two_micro_batches_equal_one_batch_under_offload(strategy: str) -> None:
    one, two = steps_of(strategy, 1), steps_of(strategy, 2)
    for first, second in zip(one["steps"], two["steps"], strict=True):
        # The sum of two bf16 gradients is rounded once more than one gradient is.
        assert second["loss"] == pytest.approx(first["loss"], rel=2e-3)
        assert second["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-2)


def test_two_halves_give_the_bytes_of_two_micro_batches() -> None:
    halves, two = steps_of("plain", 1, "halves"), steps_of("plain", 2)
    assert (halves["digest"], halves["weights"]) == (two["digest"], two["weights"])
    assert halves["nan_left_all_alone"] and halves["restored"]


def test_two_halves_follow_two_micro_batches_under_offload() -> None:
    halves, two = steps_of("zero2_offload_adam8bit", 1, "halves"), steps_of("zero2_offload_adam8bit", 2)
    assert halves["nan_left_all_alone"] and halves["restored"]
    for first, second in zip(halves["steps"], two["steps"], strict=True):
        # Their gradients are added up in bf16, those of micro-batches in float32.
        assert first["loss"] == pytest.approx(second["loss"], rel=1e-4)
        assert first["grad_norm"] == pytest.approx(second["grad_norm"], rel=2e-3)


@pytest.mark.parametrize("num_micro_batches", [1, 2])
def test_the_way_through_slots_gives_the_same_bytes(num_micro_batches: int) -> None:
    direct = steps_of("zero2_offload_adam8bit", num_micro_batches)
    through = steps_of("zero2_offload_adam8bit", num_micro_batches, "through-slots")
    assert through == direct


@pytest.mark.parametrize("way", ["pipeline", "deferred"])
@pytest.mark.parametrize("num_micro_batches", [1, 2])
def test_the_pipeline_gives_the_same_bytes(num_micro_batches: int, way: str) -> None:
    direct = steps_of("zero2_offload_adam8bit", num_micro_batches)
    found = steps_of("zero2_offload_adam8bit", num_micro_batches, way)
    assert found["nan_left_all_alone"]
    if way == "deferred" and num_micro_batches == 1:
        # Its norm is summed in float32, as on a card, and clips with other last bits.
        for ours, reference in zip(found["steps"], direct["steps"], strict=True):
            assert ours == pytest.approx(reference, rel=1e-3)
    else:
        assert found == direct


@pytest.mark.parametrize(("strategy", "world_size"), [("plain", 1), ("gpu_adam8bit", 1), ("zero2_offload_adam8bit", 2)])
def test_the_pipeline_is_refused_where_there_is_none(
    strategy: str, world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "launched", lambda: replace(read_ranks({}), world_size=world_size))
    with pytest.raises(BadInput, match="cannot be a pipeline"):
        engine.start_engine(torch.nn.Linear(2, 2), TrainConfig(pipeline=True, strategy=strategy))


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_card_computes_by_the_kernels_that_were_planned(deterministic: bool) -> None:
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cuda.cudnn_sdp_enabled()
    try:
        engine._fix_kernels(deterministic=deterministic)
        assert torch.are_deterministic_algorithms_enabled() is deterministic
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cuda.enable_cudnn_sdp(before[1])


@pytest.mark.parametrize("norm", [0.0, 5e-8, 0.999, 1 - 1e-7, 1.0, 1 + 1e-7, 1e3])
@pytest.mark.parametrize("clip_norm", [1e-7, 1.0])
def test_plain_clips_as_torch_does_to_the_bit(norm: float, clip_norm: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model, reference = nn.Linear(3, 2), nn.Linear(3, 2)
    plain = engine.start_engine(model, TrainConfig(strategy="plain", clip_norm=clip_norm, num_threads=1))
    for ours, other in zip(model.parameters(), reference.parameters(), strict=True):
        ours.grad = torch.full_like(ours, norm / 8**0.5)
        other.grad = ours.grad.clone()
    seen: list[Tensor] = []
    monkeypatch.setattr(plain._optimizer, "step", lambda: seen.extend(item.grad.clone() for item in model.parameters()))
    expected = nn.utils.clip_grad_norm_(reference.parameters(), clip_norm)
    assert plain.step(1e-3) == float(expected)
    assert all(torch.equal(ours, other.grad) for ours, other in zip(seen, reference.parameters(), strict=True))
