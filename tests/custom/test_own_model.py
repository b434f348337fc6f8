"""A model from elsewhere: planned, trained, resumed, and its best windows chosen, by the code of the page about it."""

import dataclasses
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import ROOT, launch, weights_digest
from torch import Tensor, nn

from redheart.core.config import SelectConfig, TrainConfig
from redheart.core.errors import BadInput
from redheart.custom import TensorLearner, choose, fit, plan
from redheart.evaluate.holdout_log import read_openings
from redheart.snapshots.consolidate import load_assembly
from redheart.train.log.events import read_events

PAGE = ROOT / "docs" / "own-model.md"


def test_the_page_runs_as_it_stands_and_again_to_the_same(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S)
    (tmp_path / "own.py").write_text("\n".join(blocks))
    (tmp_path / "README.md").write_text((ROOT / "README.md").read_text())

    def run() -> str:
        done = launch([sys.executable, "own.py"], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        # What saving shows of its progress.
        assert re.sub(r"\r?Writing model shards: [^\r\n]*", "", done.stderr).strip() == ""
        return done.stdout

    first = run()
    assert first.startswith("True ") and first.count("best single snapshot") >= 2
    losses = [event["val_loss"] for event in read_events(tmp_path / "runs" / "qwen3" / "events.jsonl", "epoch")]
    # It learns the README, which changes.
    assert len(losses) == 4 and losses[-1] < 0.95 * losses[0]
    assert (tmp_path / "runs" / "qwen3" / "saved" / "model.safetensors").is_file()
    assert run() == first


class Sum(nn.Module):
    """Two maps side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 1), nn.Linear(8, 1)

    def forward(self, inputs_ND: Tensor) -> Tensor:
        return (self.first(inputs_ND) + self.second(inputs_ND.flip(1))).squeeze(1)


def squares(module: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    inputs_ND, targets_N = batch
    weight = next(module.parameters())
    return (module(inputs_ND.to(weight.dtype)).float() - targets_N) ** 2


def learner(**changed: object) -> TensorLearner:
    random = torch.Generator().manual_seed(0)
    inputs_ND = torch.randn(200, 8, generator=random)
    data = [inputs_ND, inputs_ND.sum(1) + 0.1 * torch.randn(200, generator=random)]
    torch.manual_seed(0)
    given: dict[str, object] = {
        "train": [item[:120] for item in data],
        "validation": [item[120:] for item in data],
        "modules": ["first", "second"],
    }
    return TensorLearner(Sum(), squares, **(given | changed))  # type: ignore[arg-type]


CONFIG = TrainConfig(strategy="plain", effective_batch=16, cycle_epochs=4, snapshot_every=1)


def test_a_run_that_goes_on_has_the_bytes_of_an_unbroken_one(tmp_path: Path) -> None:
    # By the clock the end of the first part would leave a state that the unbroken run never wrote.
    config = dataclasses.replace(CONFIG, state_every_minutes=0)
    fit(learner(), config, tmp_path / "whole" / "train", epochs=4, learning_rate=1e-2)
    for epochs in (2, 4):
        fit(learner(), config, tmp_path / "parts" / "train", epochs=epochs, learning_rate=1e-2)
    assert weights_digest(tmp_path / "parts") == weights_digest(tmp_path / "whole")


def test_a_folder_of_other_data_is_refused(tmp_path: Path) -> None:
    fit(learner(), CONFIG, tmp_path, epochs=1, learning_rate=1e-2)
    other = learner(validation=[torch.ones(4, 8), torch.ones(4)])
    with pytest.raises(BadInput, match="another run"):
        fit(other, CONFIG, tmp_path, epochs=2, learning_rate=1e-2)


def test_the_choice_is_judged_on_records_that_it_has_not_seen_and_can_be_loaded(tmp_path: Path) -> None:
    trained = learner()
    fit(trained, CONFIG, tmp_path, epochs=4, learning_rate=1e-2)
    chosen = choose(trained, tmp_path, settings=SelectConfig(strategy="coordinate", level="module", map_epochs=0))
    assert chosen.gain_confirm.num_records == 40
    assert chosen.folder.name == ("chosen" if chosen.gain_confirm.is_evidence else "best_single")
    fresh = learner()
    load_assembly(fresh.model, chosen.folder)
    losses_N = fresh.validation_losses(fresh.model, np.arange(40))
    best = chosen.spot.curves["loss"][chosen.spot.epochs.index(chosen.spot.best_epoch)]
    assert losses_N.mean() <= best * 1.01


def test_the_best_snapshot_beside_itself_is_no_choice_that_the_records_judge(tmp_path: Path) -> None:
    trained = learner()
    fit(trained, CONFIG, tmp_path, epochs=2, learning_rate=1e-2)
    levels = [
        choose(trained, tmp_path, settings=SelectConfig(strategy=name, level="module", map_epochs=0)).gain_confirm.level
        for name in ("best-single", "uniform", "best-single", "uniform")
    ]
    assert levels == [0.95] * 4 and len(read_openings(tmp_path)) == 1


def test_a_tensor_that_no_snapshot_holds_is_named() -> None:
    model = Sum()
    model.first.register_buffer("phases", torch.zeros(2, dtype=torch.complex128))
    with pytest.raises(BadInput, match=r"first\.phases"):
        TensorLearner(model, squares, train=[torch.ones(3, 8), torch.ones(3)], validation=[torch.ones(3, 8)] * 2)


def test_a_plan_needs_no_device_and_refuses_what_cannot_fit() -> None:
    config = TrainConfig(effective_batch=16)
    found = plan(learner(), config, vram_bytes=8 << 30)
    assert found.fits and found.micro_batch == 16
    assert not plan(learner(), config, vram_bytes=64 << 20).fits


@pytest.mark.parametrize("modules", [["first"], ["first", "second", "second"]])
def test_modules_hold_every_tensor_exactly_once(modules: list[str]) -> None:
    with pytest.raises(BadInput, match="exactly once"):
        learner(modules=modules)


def test_tensors_are_of_as_many_records_each() -> None:
    with pytest.raises(BadInput, match="tensors of the records"):
        learner(train=[torch.ones(3, 8), torch.ones(4)])
