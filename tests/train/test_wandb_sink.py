"""What W&B is told, when it is on, and that its failures stay its own."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from redheart.core.errors import BadInput
from redheart.train.log.wandb_sink import WandbSink, metrics_of, open_wandb, wandb_mode


@pytest.mark.parametrize(
    ("setting", "environment", "mode"),
    [
        ("auto", {}, "off"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_PROJECT": "p"}, "off"),
        ("auto", {"WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_MODE": "dryrun"}, "offline"),
        ("auto", {"WANDB_MODE": "online"}, "online"),
        ("auto", {"WANDB_MODE": "disabled", "WANDB_SWEEP_ID": "s"}, "off"),
        ("auto", {"WANDB_SWEEP_ID": "s"}, "online"),
        ("auto", {"WANDB_SWEEP_ID": "s", "WANDB_MODE": "offline"}, "offline"),
        ("off", {"WANDB_SWEEP_ID": "s", "WANDB_MODE": "online"}, "off"),
        ("offline", {"WANDB_MODE": "online"}, "offline"),
        ("online", {}, "online"),
    ],
)
def test_nothing_is_sent_unless_it_is_asked_for(setting: str, environment: Mapping[str, str], mode: str) -> None:
    assert wandb_mode(setting, environment) == mode


def test_an_unknown_mode_is_refused_by_name() -> None:
    with pytest.raises(BadInput, match="WANDB_MODE"):
        wandb_mode("auto", {"WANDB_MODE": "sometimes"})


def test_off_touches_nothing(tmp_path: Path) -> None:
    assert open_wandb("off", folder=tmp_path / "run", name="run", config={}, epochs=1) is None
    assert not list(tmp_path.iterdir())


def test_an_epoch_is_told_by_task_by_module_and_by_metric() -> None:
    event = {
        "event": "epoch",
        "epoch": 2,
        "step": 16,
        "train_loss": None,
        "val_loss": 0.5,
        "val_task_loss": {"a": 0.1},
        "train_module_loss": {"x.a": 0.2},
        "val_module_loss": {"x.a": 0.3},
        "val_metrics": {"kl": 0.4},
        "learning_rate": 1e-4,
        "host_rss_peak_bytes": 3 << 30,
        "device_peak_bytes": None,
    }
    assert metrics_of(event) == {
        "step": 16,
        "epoch": 2,
        "lr": 1e-4,
        "val/loss": 0.5,
        "val/task/a": 0.1,
        "train/module/x.a": 0.2,
        "val/module/x.a": 0.3,
        "val/kl": 0.4,
        "memory/host_rss_peak_gib": 3.0,
    }
    assert metrics_of({"event": "start", "step": 0}) == {}


class FailingRun:
    def __init__(self) -> None:
        self.calls = 0

    def log(self, metrics: Mapping[str, float]) -> None:
        self.calls += 1
        raise ConnectionResetError("lost")


def test_a_client_that_fails_is_told_nothing_more(capsys: pytest.CaptureFixture[str]) -> None:
    run = FailingRun()
    sink = WandbSink(run, wants_past=False)
    for _ in range(3):
        sink.write({"event": "step", "step": 1, "loss": 1.0})
    sink.close(exit_code=0)
    assert run.calls == 1
    assert capsys.readouterr().err == "warning: W&B failed and is told nothing more: ConnectionResetError: lost\n"
