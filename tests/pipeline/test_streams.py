"""Deferred lanes: the bits of the same work in turn, no race, and nothing that keeps the launching thread."""

import copy
import gc
import math
import pickle
import threading
import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from deferred import DeferredCuda
from recorder import Race, RecordingLanes
from torch import Tensor, nn

from redheart.optim import OffloadAdamW8bit, offloaded
from redheart.pipeline import lanes
from redheart.pipeline.lanes import InTurn, Lane, StreamLanes, Task, Wait


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(48), nn.Linear(48, 48)

    def forward(self, inputs: Tensor) -> Tensor:
        # One leaf is read without being called, as attention's last map is in torch's own.
        return inputs + nn.functional.linear(self.norm(inputs), self.linear.weight, self.linear.bias)


def new_model(dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(Block(), nn.Sequential(Block(), Block()), Block()).to(dtype)


def new_optimizer(
    model: nn.Module, *, overlaps: bool, ring_bytes: int, max_grad_norm: float | None = None
) -> OffloadAdamW8bit:
    # A bucket for every matrix, and one for all that is small: the first module and the last both need it.
    groups = [{"params": [item]} for item in model.parameters() if item.ndim > 1]
    groups.append({"params": [item for item in model.parameters() if item.ndim == 1], "state_bits": 32})
    overlap = model if overlaps else None
    return OffloadAdamW8bit(groups, lr=1e-2, max_grad_norm=max_grad_norm, ring_bytes=ring_bytes, overlap=overlap)


def train(model: nn.Module, optimizer: OffloadAdamW8bit, *, passes: int, steps: int = 4) -> list[Tensor]:
    random = torch.Generator().manual_seed(6)
    for step in range(steps):
        for number in range(passes):
            inputs = torch.randn(4, 48, generator=random).to(next(model.parameters()).dtype)
            # Of the last block nothing is used in some passes, and one step is not finite.
            used = model if number == 0 and step != 1 else model[:2]  # type: ignore[index]
            (used(inputs).float().square().mean() * (math.nan if step == 2 else 1.0)).backward()
        optimizer.param_groups[0]["lr"] = 1e-2 / (step + 1)
        optimizer.step()
    optimizer.finish()
    return [item.detach().clone() for item in model.parameters()]


class Checked:
    """The lanes of a device, whose every task is shown to the vector clocks first."""

    gradients_stay = False
    """Whether every pass writes its gradients into the same memory."""

    def __init__(self, device: torch.device):
        self.streams, self.recorder = StreamLanes(device), RecordingLanes()

    def submit(self, lane: Lane, task: Task, waits: Sequence[Wait] = ()) -> tuple[Any, Any]:
        if lane == Lane.COMPUTE and task.kind == "square":
            # A pass has read the weights and written memory.
            name, weights = task.of, task.of.replace("gradient", "weights")
            if not self.gradients_stay:
                self.recorder._read.pop(name, None)
                self.recorder._written.pop(name, None)
            self.recorder.submit(lane, Task("backward", name, 0.0, (weights,), (name,)))
        clock, end = (
            lanes.submit(lane, task, [Wait(wait.event[part], wait.reason) for wait in waits])
            for part, lanes in enumerate((self.recorder, self.streams))
        )
        return clock, end

    def wait(self, end: tuple[Any, Any] | None = None) -> None:
        self.streams.wait(end and end[1])


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> DeferredCuda:
    device = DeferredCuda(0)
    monkeypatch.setattr(lanes, "Cuda", device)
    return device


@pytest.mark.parametrize("num_seeds", [2, pytest.param(40, marks=pytest.mark.long)])
@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("ring_bytes", [1, 20_000, 1 << 20])
def test_deferred_lanes_give_the_bits_of_the_work_in_turn(
    passes: int, ring_bytes: int, num_seeds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offloaded, "StreamLanes", lambda device: InTurn())
    model = new_model()
    optimizer = new_optimizer(model, overlaps=True, ring_bytes=ring_bytes, max_grad_norm=1.0)
    expected = train(model, optimizer, passes=passes)
    monkeypatch.setattr(offloaded, "StreamLanes", Checked)
    for seed in range(num_seeds):
        monkeypatch.setattr(lanes, "Cuda", DeferredCuda(10 * seed))
        model = new_model()
        optimizer = new_optimizer(model, overlaps=True, ring_bytes=ring_bytes, max_grad_norm=1.0)
        found = train(model, optimizer, passes=passes)
        assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True)), seed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_without_clipping_the_place_of_the_norm_does_not_matter(dtype: torch.dtype, cuda: DeferredCuda) -> None:
    models = [new_model(dtype), new_model(dtype)]
    optimizers = [
        new_optimizer(model, overlaps=overlaps, ring_bytes=20_000)
        for model, overlaps in zip(models, (False, True), strict=True)
    ]
    first, second = (train(model, optimizer, passes=1) for model, optimizer in zip(models, optimizers, strict=True))
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
    assert optimizers[0].grad_norm == pytest.approx(optimizers[1].grad_norm, rel=1e-6)
    states = [optimizer.state_dict()["masters"] for optimizer in optimizers]
    assert all(torch.equal(one, two) for one, two in zip(*states, strict=True))


def test_the_launching_thread_goes_on_while_nothing_is_copied(cuda: DeferredCuda) -> None:
    model, reference = new_model(), new_model()
    optimizer = new_optimizer(model, overlaps=True, ring_bytes=1)
    cuda.gate.clear()
    model(torch.randn(2, 48).bfloat16()).sum().backward()
    optimizer.step()
    before = zip(model.parameters(), reference.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in before)
    cuda.gate.set()
    assert math.isfinite(optimizer.grad_norm)
    optimizer.finish()
    assert not torch.equal(model[0].linear.weight, reference[0].linear.weight)  # type: ignore[index, union-attr]


def test_weights_that_are_read_before_they_are_there_are_an_error(cuda: DeferredCuda) -> None:
    model = new_model()
    optimizer = new_optimizer(model, overlaps=True, ring_bytes=1 << 20)
    train(model, optimizer, passes=1, steps=1)
    (model[0].linear.weight.sum()).backward()  # type: ignore[index, union-attr]
    optimizer.step()
    with pytest.raises(RuntimeError, match="before they were there"):
        (model[0].linear.weight.sum()).backward()  # type: ignore[index, union-attr]


@pytest.mark.parametrize("waits", [True, False])
def test_gradients_that_stay_in_memory_leave_before_the_next_pass(
    waits: bool, cuda: DeferredCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checked, "gradients_stay", True)
    monkeypatch.setattr(offloaded, "StreamLanes", Checked)
    model = new_model()
    optimizer = new_optimizer(model, overlaps=True, ring_bytes=20_000)
    with nullcontext() if waits else pytest.raises(Race, match="gradient"):
        for _ in range(2):
            for _ in range(2):
                if waits:
                    optimizer._work.reuse_gradients()
                model(torch.randn(2, 48).bfloat16()).sum().backward()
            optimizer.step()


@pytest.mark.parametrize("waits", [True, False])
def test_what_runs_whole_waits_for_all_below_it(waits: bool, cuda: DeferredCuda) -> None:
    model = new_model()
    optimizer = new_optimizer(model, overlaps=True, ring_bytes=1 << 20)
    for module in model.modules():
        module._forward_pre_hooks.clear()
    for module in model if waits else ():  # type: ignore[attr-defined]
        optimizer._work.runs_whole(module)
    with nullcontext() if waits else pytest.raises(RuntimeError, match="before they were there"):
        train(model, optimizer, passes=1)


@pytest.mark.parametrize("method", ["copy_out", "drain", "update", "copy_norm"])
def test_an_error_in_a_lane_ends_the_step(method: str, cuda: DeferredCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError(method)

    # In the lanes' threads; a device's own errors come with its next call.
    monkeypatch.setattr(cuda, "launch", lambda stream, run: run())
    monkeypatch.setattr(offloaded.Offloaded, method, fail)
    model = new_model()
    optimizer = new_optimizer(model, overlaps=True, ring_bytes=1)
    with pytest.raises(MemoryError, match=method):
        train(model, optimizer, passes=1)


@pytest.mark.parametrize("overlaps", [True, False])
def test_only_lanes_that_wait_for_a_copy_let_it_go_on(
    overlaps: bool, cuda: DeferredCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inner, found = new_model(), Tensor.copy_, set()

    def copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        if source.dtype == torch.bfloat16:
            found.add(non_blocking)
        return inner(target, source, non_blocking)

    optimizer = new_optimizer(model, overlaps=overlaps, ring_bytes=1 << 20)
    monkeypatch.setattr(Tensor, "copy_", copy)
    train(model, optimizer, passes=1, steps=2)
    assert found == {overlaps}


def test_overlap_needs_a_card() -> None:
    model = new_model()
    with pytest.raises(ValueError, match="on a CUDA device, not on cpu"):
        new_optimizer(model, overlaps=True, ring_bytes=1)


def test_a_model_outlives_its_optimizer_and_is_copied_without_it(cuda: DeferredCuda) -> None:
    model = new_model()
    optimizer = new_optimizer(model, overlaps=True, ring_bytes=1 << 20)
    train(model, optimizer, passes=1, steps=1)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    optimizer.step()  # whose weights are on their way
    inputs = torch.randn(2, 48).bfloat16()
    assert torch.equal(copies[0](inputs), copies[1](inputs)) and optimizer._work._returned
    optimizer.finish()
    work = weakref.ref(optimizer._work)
    del optimizer
    gc.collect()
    assert work() is None and not any(module._forward_pre_hooks for module in model.modules())


def test_gradients_that_are_forgotten_behind_a_step_leave_its_norm_alone(
    cuda: DeferredCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms, reached, forgotten = [], threading.Event(), threading.Event()
    for is_paced in (False, True):
        model = new_model()
        optimizer = new_optimizer(model, overlaps=True, ring_bytes=1 << 20)
        add = optimizer._work.add_squares_on_host

        def paced(*arguments: Any, add: Any = add, is_paced: bool = is_paced) -> None:
            add(*arguments)
            if is_paced and not reached.is_set():
                reached.set()
                assert forgotten.wait(20)

        monkeypatch.setattr(optimizer._work, "add_squares_on_host", paced)
        random = torch.Generator().manual_seed(7)
        for _ in range(2):
            model(torch.randn(2, 48, generator=random).bfloat16()).square().sum().backward()
        optimizer.step()
        if is_paced:
            assert reached.wait(20)
            optimizer.zero_grad()
            forgotten.set()
        norms.append(optimizer.grad_norm)
        optimizer.finish()
    assert norms[0] == norms[1] > 0
