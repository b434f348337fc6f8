"""`wandb sweep` and `wandb agent` as a user runs them, against a server on the loopback."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from launching import ROOT, WHOLE_STUDY, environment, events_of, launch, redheart
from wandb_server import WandbServer

from redheart.core.config import SweepConfig

TINY = {
    "prepare.num-generated": 100,
    "features.encoder": "hash",
    "train.strategy": "plain",
    "train.effective-batch": 16,
    "train.num-threads": 1,
    "sweep.epochs": 2,
}
WANDB = str(Path(sys.executable).parent / "wandb")


def wandb_environment(server: WandbServer, folder: Path) -> dict[str, str]:
    return environment() | {
        "WANDB_BASE_URL": server.url,
        "WANDB_API_KEY": 40 * "0",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_DIR": str(folder),
        "HOME": str(folder),
        "OMP_NUM_THREADS": "1",
    }


def wandb(server: WandbServer, folder: Path, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    return run_process([WANDB, *map(str, arguments)], server, folder, **variables)


def train(server: WandbServer, folder: Path, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "redheart", "train", *local_arguments(folder / "run")]
    options = ["--train.learning-rate", "1e-4", "--train.wandb", "online", *map(str, arguments)]
    return run_process([*command, *options], server, folder, **variables)


def run_process(
    command: list[str], server: WandbServer, folder: Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    return launch(command, env=wandb_environment(server, folder) | variables)


def create_sweep(server: WandbServer, folder: Path, run: Path, **changes: object) -> dict:
    """Create a sweep from launch/sweep.yaml, with the settings of a user who wants it small."""
    sweep = yaml.safe_load((ROOT / "launch" / "sweep.yaml").read_text())
    settings = {**TINY, "out": str(run), "train.checkpointing": False}
    sweep["parameters"] |= {name: {"value": value} for name, value in settings.items()} | changes
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    done = wandb(server, folder, "sweep", folder / "sweep.yaml")
    assert done.returncode == 0, done.stderr
    assert "wandb agent me/redheart/s1" in done.stderr + done.stdout
    return sweep


def local_arguments(run: Path) -> list[str]:
    return ["--out", str(run), *[item for name, value in TINY.items() for item in (f"--{name}", str(value))]]


def test_a_trial_of_an_agent_is_that_of_the_local_sweep(whole_study: Path, tmp_path: Path) -> None:
    settings = dict(zip(*[iter(WHOLE_STUDY[1 : WHOLE_STUDY.index("--epochs")])] * 2, strict=True))
    rate = float(settings.pop("--sweep.rates"))
    # That study was told no number of threads, which decides whether a batch is computed in halves.
    by_name = {name.removeprefix("--"): value for name, value in settings.items()} | {"train.num-threads": "0"}
    assert_same_trials([rate], by_name, whole_study, tmp_path)


@pytest.mark.long
def test_trials_of_an_agent_are_those_of_the_local_sweep(tmp_path: Path) -> None:
    local = tmp_path / "local"
    done = redheart("sweep", *local_arguments(local / "run"))
    assert done.returncode == 0, done.stderr
    assert_same_trials(list(SweepConfig().rates), {}, local, tmp_path)


def assert_same_trials(rates: list[float], settings: dict[str, str], local: Path, tmp_path: Path) -> None:
    """An agent's trials have the losses of a sweep in `local/run`, and the local command takes them as its own."""
    by_agent = tmp_path / "agent"
    values = {"train.learning-rate": {"values": rates}, "sweep.rates": {"value": rates}}
    values |= {name: {"value": value} for name, value in settings.items()}
    with WandbServer() as server:
        create_sweep(server, tmp_path, by_agent, **values)
        agent = wandb(server, tmp_path, "agent", "me/redheart/s1", WANDB_MODE="offline")
    assert agent.returncode == 0 and "Received exit command" in agent.stderr, agent.stderr[-3000:]
    assert [trial["train.learning-rate"] for trial in server.handed_out] == rates
    for rate in rates:
        logs = [run / "sweep" / f"rate_{rate}" / "events.jsonl" for run in (by_agent, local / "run")]
        assert events_of(logs[0]) == events_of(logs[1])
        assert len(list((by_agent / "sweep" / f"rate_{rate}" / "wandb").glob("offline-run-*"))) == 1

    # The same command takes the agent's trials as its own and repeats none.
    before = {path: path.stat().st_mtime_ns for path in by_agent.glob("sweep/rate_*/events.jsonl")}
    given = [word for name, value in settings.items() for word in (f"--{name}", value)]
    done = redheart("sweep", *local_arguments(by_agent), *given, "--sweep.rates", *rates)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    results = [json.loads((run / "sweep" / "sweep.json").read_text()) for run in (by_agent, local / "run")]
    assert results[0] == results[1]
    assert f"learning rate {results[1]['best_rate']}" in done.stdout


@pytest.mark.long
def test_a_trial_that_diverges_is_told_to_the_agent_and_a_deleted_sweep_ends_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with WandbServer(trials_until_gone=1) as server:
        create_sweep(server, tmp_path, run, **{"train.learning-rate": {"values": [1e3, 1e-4]}})
        agent = wandb(server, tmp_path, "agent", "me/redheart/s1")
    assert agent.returncode == 1
    assert "Sweep was deleted" in agent.stderr
    assert "error: the loss or its gradient was not finite 3 steps in a row" in agent.stderr
    # `accelerate launch` has a traceback of its own for a command that fails; none of ours is in it.
    assert not re.search(r'File ".*redheart/', agent.stderr)
    (trial,) = [entry for entry in server.history.values()]
    assert [entry["step"] for entry in trial if "step/seconds" in entry] == [1, 2, 3]


def test_the_yaml_of_the_sweep_is_what_both_ends_read() -> None:
    sweep = yaml.safe_load((ROOT / "launch" / "sweep.yaml").read_text())
    assert sweep["metric"] == {"name": "val/loss", "goal": "minimize"}
    assert sweep["command"][1:3] == ["accelerate", "launch"]
    rates = sweep["parameters"]["train.learning-rate"]["values"]
    assert all(type(rate) is float for rate in rates)
    assert tuple(rates) == SweepConfig().rates and sweep["parameters"]["sweep.epochs"]["value"] == SweepConfig().epochs


def epochs_told(history: list[dict]) -> list[int]:
    return [entry["epoch"] for entry in history if "val/loss" in entry]


def test_a_run_that_goes_on_is_one_run_of_wandb_and_is_told_nothing_twice(tmp_path: Path) -> None:
    with WandbServer() as server:
        # The last start finds nothing left to do.
        for epochs in (1, 2, 2):
            done = train(server, tmp_path, "--epochs", epochs)
            assert done.returncode == 0, done.stderr
    (history,) = server.history.values()
    assert epochs_told(history) == [1, 2]
    assert [entry["step"] for entry in history if "step/seconds" in entry] == list(range(1, 11))


def test_a_server_that_is_lost_costs_no_training(tmp_path: Path) -> None:
    with WandbServer(stops_after="UpsertBucket") as server:
        done = train(server, tmp_path, "--epochs", 2, WANDB_FINISH_TIMEOUT="2")
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert server.operations[-1] == "UpsertBucket" and not server.history
    assert_trained(tmp_path)


def test_a_server_that_was_never_there_costs_no_training_and_can_be_told_later(tmp_path: Path) -> None:
    with WandbServer() as server:
        server.stop()
        done = train(server, tmp_path, "--epochs", 2, WANDB_INIT_TIMEOUT="2")
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "warning: W&B cannot be reached" in done.stderr
    assert_trained(tmp_path)
    (kept,) = (tmp_path / "run" / "train" / "wandb").glob("offline-run-*")
    assert f"wandb      offline; `wandb sync {kept}` sends it" in done.stdout
    with WandbServer() as server:
        sent = wandb(server, tmp_path, "sync", kept)
    assert sent.returncode == 0, sent.stderr
    (history,) = server.history.values()
    assert epochs_told(history) == [1, 2]


def assert_trained(folder: Path) -> None:
    log = events_of(folder / "run" / "train" / "events.jsonl")
    assert [event["epoch"] for event in log if event["event"] == "epoch"] == [1, 2]
