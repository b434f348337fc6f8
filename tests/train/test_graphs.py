"""Which parts of a pass become graphs, when, and what runs as ever; a capture itself needs a card."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from fixed_batch import DIMS, fixed_batch
from torch import Tensor, nn

from redheart.core.config import TrainConfig
from redheart.core.errors import BadInput
from redheart.model.network import build
from redheart.train.device import graphs
from redheart.train.device.graphs import Graphs
from redheart.train.engine import start_engine


class Capture:
    """`make_graphed_callables` that draws, runs every module on its samples, and counts what would be replayed."""

    def __init__(self) -> None:
        self.made: list[Sequence[nn.Module]] = []
        self.replayed: list[nn.Module] = []

    def __call__(
        self, modules: Sequence[nn.Module], samples: Sequence[tuple[Tensor, ...]], *, allow_unused_input: bool
    ) -> list[Callable[..., Any]]:
        assert allow_unused_input
        torch.rand(3)
        for module, tensors in zip(modules, samples, strict=True):
            assert not module._forward_pre_hooks and not module._forward_hooks
            module(*tensors)
        self.made.append(modules)
        return [self._replaying(module) for module in modules]

    def _replaying(self, module: nn.Module) -> Callable[..., Any]:
        def replay(*tensors: Tensor) -> Any:
            self.replayed.append(module)
            return module(*tensors)

        return replay


def passed(model: nn.Module, records: int = 8) -> tuple[Tensor, list[Tensor | None]]:
    """Loss and gradients of a pass."""
    features_BSD, mask_BS, _, _ = fixed_batch()
    torch.manual_seed(0)
    model.zero_grad()
    loss = sum(item.square().sum() for item in model(features_BSD[:records], mask_BS[:records]).values())
    assert isinstance(loss, Tensor)
    loss.backward()
    return loss.detach(), [item.grad for item in model.parameters()]


def same(one: tuple[Tensor, list[Tensor | None]], two: tuple[Tensor, list[Tensor | None]]) -> bool:
    pairs = [(one[0], two[0]), *zip(one[1], two[1], strict=True)]
    return all(torch.equal(*pair) if None not in pair else pair == (None, None) for pair in pairs)  # type: ignore[arg-type]


def test_a_shape_that_comes_again_runs_in_segments_and_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "SEGMENT_ELEMENTS", 20_000)
    model, capture, whole = build(DIMS, seed=0), Capture(), []
    expected = passed(model), passed(model, 4)
    quiet: list[int] = []
    Graphs(model, make=capture, before_capture=lambda: quiet.append(len(capture.made)), on_segment=whole.append)
    assert same(passed(model), expected[0]) and not capture.made
    assert same(passed(model), expected[0])
    (made,) = capture.made
    assert quiet == [0]
    assert capture.replayed == list(made) and [item.module for item in made] == whole  # type: ignore[union-attr]
    # None is part of another, and together they hold most of what is trained.
    held = [parameter for module in whole for parameter in module.parameters()]
    assert len({id(item) for item in held}) == len(held)
    assert sum(item.numel() for item in held) > 0.8 * sum(item.numel() for item in model.parameters())
    assert all(sum(item.numel() for item in module.parameters()) <= 20_000 for module in whole)
    # Other shapes, and passes that are not trained on, go on as ever.
    capture.replayed.clear()
    assert same(passed(model, 4), expected[1])
    with torch.no_grad():
        model(*fixed_batch()[:2])
    model.eval()
    passed(model)
    assert not capture.replayed and len(capture.made) == 1


def test_only_the_first_few_shapes_are_captured() -> None:
    model, capture = build(DIMS, seed=0), Capture()
    Graphs(model, make=capture)
    for records in (1, 2, 3, 1, 2, 3, 3):
        passed(model, records)
    assert len(capture.made) == graphs.MAX_SHAPES == 2
    capture.replayed.clear()
    passed(model, 3)
    assert not capture.replayed
    passed(model, 2)
    assert capture.replayed == list(capture.made[1])


def test_what_cannot_be_captured_runs_as_ever_with_one_note(capfd: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object, **__: object) -> list[Callable[..., Any]]:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    model = build(DIMS, seed=0)
    expected = passed(model)
    Graphs(model, make=fail)
    assert all(same(passed(model), expected) for _ in range(4))
    assert capfd.readouterr().err == (
        "note: passes are not captured as CUDA graphs, they run as ever; "
        "operation not permitted when stream is capturing\n"
    )


class Odd(nn.Module):
    """One part is called twice, one with what is no tensor, one gives no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.once = nn.Linear(4, 4), nn.Linear(4, 4)
        self.listed, self.named = _Listed(), _Named()

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        turned = self.twice(self.twice(self.once(inputs)))
        return {"out": self.listed(turned, slice(0, 2))[:, :2] + self.named(turned)["size"]}


class _Listed(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 4)

    def forward(self, inputs: Tensor, part: slice) -> Tensor:  # type: ignore[override]
        return super().forward(inputs)[part]


class _Named(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 4)

    def forward(self, inputs: Tensor) -> dict[str, Any]:  # type: ignore[override]
        return {"size": len(inputs), "of": super().forward(inputs)}


def test_only_what_is_called_once_with_tensors_is_a_segment() -> None:
    model, capture = Odd(), Capture()
    Graphs(model, make=capture)
    for _ in range(2):
        model(torch.ones(3, 4))["out"].sum().backward()
    assert [item.module for item in capture.made[0]] == [model.once]


def test_a_strategy_that_sums_gradients_in_place_is_refused() -> None:
    with pytest.raises(BadInput, match="cannot be graphs"):
        start_engine(nn.Linear(2, 2), TrainConfig(strategy="plain", graphs=True))
