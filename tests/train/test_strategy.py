"""A strategy of one's own: one object, registered, planned and trained with by its name."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from redheart.core.config import TrainConfig
from redheart.core.errors import BadInput
from redheart.custom import TensorLearner, fit, plan
from redheart.memory.ledger import Entry, ModelSizes, Strategy, StrategySizes, each
from redheart.pipeline.clock import on_card
from redheart.train import strategy as registry
from redheart.train.log.events import read_events


@pytest.mark.parametrize("kind", ["slice", "channels_last"])
def test_plain_steps_weights_that_do_not_lie_in_a_row_as_their_copies_that_do(kind: str) -> None:
    weights = torch.randn(6, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    strided = weights[:, :4] if kind == "slice" else weights.to(memory_format=torch.channels_last)
    found = []
    for start in (nn.Parameter(strided), nn.Parameter(strided.detach().clone(memory_format=torch.contiguous_format))):
        optimizer = registry.strategy_named("plain").optimizer(
            [{"params": [start], "weight_decay": 0.1}], TrainConfig()
        )
        optimizer.param_groups[0]["lr"] = 1e-2
        for number in range(3):
            start.grad = torch.randn(start.shape, generator=torch.Generator().manual_seed(number))
            optimizer.step()
        found.append(start.detach())
    assert not strided.is_contiguous() and torch.allclose(*found, rtol=1e-6, atol=1e-7)


def momentum(model: ModelSizes, strategy: StrategySizes, accumulates: bool) -> list[Entry]:
    four = each(4, model.parameters.values())
    return [
        Entry("weights", "device", "parameter", "always", four, "torch.nn", "parameters"),
        Entry("gradients", "device", "parameter", "accumulation", four, "torch.autograd", "parameters.grad"),
        Entry("momentum", "device", "parameter", "always", four, "torch/optim/sgd.py", "state"),
    ]


TOY = Strategy(
    name="toy_sgd",
    configuration=None,
    is_zero=False,
    home="device",
    state_bits=32,
    ledger=momentum,
    optimizer=lambda groups, config: torch.optim.SGD(list(groups), lr=0.0, momentum=config.beta1),
    cost=on_card,
)


def test_a_strategy_of_ones_own_is_planned_and_trained_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_known", dict(registry._known))
    registry.register(TOY)
    model, data = nn.Linear(300, 300), [torch.randn(32, 300), torch.randn(32, 300)]
    before = model.weight.detach().clone()
    learner = TensorLearner(
        nn.ModuleDict({"map": model}),
        lambda module, batch: (module["map"](batch[0]) - batch[1]).square().mean(1),  # type: ignore[index]
        train=data,
        validation=data,
        modules=["map"],
    )
    config = TrainConfig(strategy="toy_sgd", effective_batch=16, cycle_epochs=1, snapshot_every=1)
    found = plan(learner, config, vram_bytes=8 << 30)
    count = sum(item.numel() for item in model.parameters())
    assert found.fits and found.moments["save"].parts == {"weights": 4 * count, "momentum": 4 * count}
    fit(learner, config, tmp_path, epochs=1, learning_rate=1e-2)
    assert len(list(read_events(tmp_path / "events.jsonl", "step"))) == 2
    assert not torch.equal(model.weight, before)
    with pytest.raises(BadInput, match="of that name"):
        registry.register(Strategy(**{**vars(TOY), "cost": lambda *_: 0.0}))


def test_nothing_but_their_own_file_knows_a_strategys_name() -> None:
    root = Path(registry.__file__).parents[1]
    names = "|".join(strategy.name for strategy in registry.all_strategies())
    asked = re.compile(rf"""(==|!=|\bin\b) *\(?["']({names})["']|["']8bit["'] in""")
    found = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if path != root / "train" / "strategies.py" and asked.search(path.read_text())
    }
    assert found == set()
