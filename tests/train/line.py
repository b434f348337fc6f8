"""The smallest learner there is, and a run of it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from redheart.core.config import TrainConfig
from redheart.train.learner import MicroLoss, Validation
from redheart.train.log.events import read_events
from redheart.train.loop import RunSettings, train

RECORDS, BATCH = 32, 8
PATIENCE_S = 20.0
"""What a test waits for a thread before it fails."""
STEPS_PER_EPOCH = RECORDS // BATCH


class Line:
    """A straight line through made-up records; `fault` sees the number of every forward call and may break it."""

    def __init__(self, fault: Callable[[int, Tensor], Tensor] = lambda call, loss: loss, *, records: int = RECORDS):
        torch.manual_seed(0)
        self.model: nn.Module = nn.ModuleDict({"line": nn.Linear(3, 1)})
        self._records, self.val_loss = records, 0.0
        self._x = torch.randn(records, 3)
        self._y = self._x @ torch.tensor([1.0, -2.0, 0.5])
        self._fault, self._calls = fault, 0
        self.sizes: list[int] = []

    def modules(self) -> Sequence[str]:
        return ["line"]

    def epoch_rows(self, epoch: int) -> np.ndarray:
        return np.random.default_rng(epoch).permutation(self._records)

    def loss(self, module: nn.Module, rows: np.ndarray, *, step_rows: np.ndarray) -> MicroLoss:
        self._calls += 1
        self.sizes.append(len(rows))
        errors = (module["line"](self._x[rows])[:, 0] - self._y[rows]) ** 2  # type: ignore[index]
        total = self._fault(self._calls, errors.sum() / len(step_rows))
        return MicroLoss(total, {"line": errors.detach().sum()}, {"line": torch.tensor(float(len(rows)))})

    def read_ahead(self, rows: np.ndarray) -> None:
        return None

    def mean_losses(self, sums: dict[str, float], counts: dict[str, float]) -> tuple[float, dict[str, float]]:
        return sums["line"] / max(1.0, counts["line"]), {}

    def validate(self, module: nn.Module) -> Validation:
        return Validation(self.val_loss, {}, {"line": 0.0}, {}, {"line": np.zeros((2, 1), np.float32)})


def run(
    folder: Path,
    learner: Line,
    *,
    epochs: int = 2,
    micro_batch: int = BATCH,
    state_every_steps: int = 1,
    state_every_minutes: float = 10.0,
    snapshot_every: int = 2,
) -> list[dict[str, object]]:
    """Train, and the run's `step` events."""
    config = TrainConfig(
        strategy="plain",
        effective_batch=BATCH,
        micro_batch=micro_batch,
        cycle_epochs=1,
        state_every_steps=state_every_steps,
        state_every_minutes=state_every_minutes,
        snapshot_every=snapshot_every,
    )
    train(learner, RunSettings(config, epochs, 1e-2, "key"), folder=folder)
    return read_events(folder / "events.jsonl", "step")
