"""What goes over the ranks lies on the engine's device: NCCL takes nothing else. Two ranks and a card are stubs."""

import ast
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import redheart
from redheart.train.counting import StepLosses
from redheart.train.engine import ZeroEngine
from redheart.train.learner import MicroLoss
from redheart.train.zero import fused_step

CARD = torch.device("cuda", 0)
WORDS = ("all_", "barrier", "batch_", "broadcast", "gather", "irecv", "isend", "recv", "reduce", "scatter", "send")
COLLECTIVES = {name for name in torch.distributed.distributed_c10d.__all__ if name.startswith(WORDS)}
PACKAGE = Path(redheart.__file__).parent


class OnCard(Tensor):
    """A tensor that says it lies on a card."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CARD

    def cpu(self) -> Tensor:  # type: ignore[override]
        return self.to("cpu")


def on_card(values: Tensor) -> Tensor:
    return values.clone().as_subclass(OnCard)


@pytest.fixture(autouse=True)
def two_ranks_of_nccl(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Both ranks hold the same values. Gives the names of the collectives as they are called."""
    called: list[str] = []
    move = Tensor.to

    def to(values: Tensor, *args: object, **given: object) -> Tensor:
        if isinstance(args[0], str | torch.device):
            is_card = torch.device(args[0]).type == "cuda"
            return on_card(values) if is_card else values.clone().as_subclass(Tensor)
        return move(values, *args, **given)  # type: ignore[call-overload, no-any-return]

    def all_reduce(values: Tensor, **given: object) -> None:
        assert values.device == CARD, "No backend type associated with device type cpu"
        called.append("all_reduce")
        values.mul_(2)

    def all_gather_into_tensor(whole: Tensor, part: Tensor, **given: object) -> None:
        assert whole.device == part.device == CARD, "No backend type associated with device type cpu"
        called.append("all_gather_into_tensor")
        whole.copy_(torch.cat([part, part]))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a collective that no stub stands for")

    monkeypatch.setattr(Tensor, "to", to)
    for name in COLLECTIVES:
        monkeypatch.setattr(torch.distributed, name, refuse)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    monkeypatch.setattr(torch.distributed, "all_gather_into_tensor", all_gather_into_tensor)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    return called


def engine_on_card() -> ZeroEngine:
    engine = ZeroEngine.__new__(ZeroEngine)
    engine.rank, engine.world_size, engine.device = 1, 2, CARD
    return engine


def test_sums_are_taken_on_the_device_and_come_back_exact(two_ranks_of_nccl: list[str]) -> None:
    values = torch.tensor([1.0, 1 / 3], dtype=torch.float64)
    summed = engine_on_card().sum_over_ranks(values)
    assert summed.device.type == "cpu" and summed.dtype == torch.float64
    assert summed.tolist() == [2.0, 2 / 3] and values.tolist() == [1.0, 1 / 3]
    engine_on_card().barrier()
    assert two_ranks_of_nccl == ["all_reduce", "all_reduce"]


def test_the_losses_of_a_step_take_one_sum(two_ranks_of_nccl: list[str]) -> None:
    losses = StepLosses()
    for share in (0.5, 0.25):
        counts = {"a": torch.tensor(3), "b": torch.tensor(1)}
        losses.add(MicroLoss(torch.tensor(share), {"a": torch.tensor(1.5), "b": torch.tensor(share)}, counts))
    totals = losses.over_ranks(engine_on_card().sum_over_ranks)
    assert (totals.loss, totals.sums, totals.counts) == (1.5, {"a": 6.0, "b": 1.5}, {"a": 12.0, "b": 4.0})
    assert two_ranks_of_nccl == ["all_reduce"]


def test_the_fused_step_shares_norm_and_weights_on_the_device(two_ranks_of_nccl: list[str]) -> None:
    class Optimizer:
        param_groups = ({},)

        def sum_squares(self, gradient: Tensor) -> float:
            return float(gradient.square().sum())

        def update(self, group: object, master: Tensor, gradient: Tensor, *, out_bf16: Tensor, **given: object) -> None:
            out_bf16.fill_(7)

    master = torch.zeros(4)
    master.grad = torch.full((4,), 2.0)
    flat = on_card(torch.zeros(8, dtype=torch.bfloat16))
    zero = SimpleNamespace(
        optimizer=Optimizer(),
        single_partition_of_fp32_groups=[master],
        params_in_partition=[],
        bit16_groups_flat=[flat],
        parallel_partitioned_bit16_groups=[[flat[:4], flat[4:]]],
        dp_process_group=None,
        clip_grad=0.0,
        _to_host=None,
        _to_device=None,
    )
    fused_step._step(zero)
    assert zero._global_grad_norm == 32**0.5 and not zero.overflow
    assert flat.tolist() == [7.0] * 8
    assert two_ranks_of_nccl == ["all_reduce", "all_gather_into_tensor"]


def test_no_other_place_in_the_package_talks_to_other_ranks() -> None:
    """A collective elsewhere needs a test of its own above."""
    found = {
        (str(path.relative_to(PACKAGE)), node.attr)
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in COLLECTIVES and "distributed" in ast.unparse(node.value)
    }
    assert found == {
        ("train/engine.py", "all_reduce"),
        ("train/zero/fused_step.py", "all_reduce"),
        ("train/zero/startup.py", "broadcast"),
        ("train/zero/fused_step.py", "all_gather_into_tensor"),
    }
