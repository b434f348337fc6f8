"""What `redheart status` makes of the files of a run: going on, finished, stopped, killed, half written."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from launching import redheart

from redheart.core.config import StudyConfig, SweepConfig
from redheart.core.errors import BadInput
from redheart.study.outlook.status import RunStatus, read_status, status_lines, status_of
from redheart.study.run_folder import RunFolder, start

NOW = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
CONFIG = StudyConfig(sweep=SweepConfig(rates=(1e-4, 1e-3)))


def lines_of_a_run(*, epochs: int, of: int, steps_per_epoch: int = 4) -> list[dict]:
    """A log that ended a second before `NOW`, with a step a second."""
    events: list[dict] = [
        {"event": "start", "step": 0, "epochs": of, "steps_per_epoch": steps_per_epoch, "effective_batch": 16}
    ]
    for step in range(1, epochs * steps_per_epoch + 1):
        loss = 1.0 / step
        events.append(
            {"event": "step", "step": step, "loss": loss, "grad_norm": 2.0, "learning_rate": 1e-4, "step_s": 0.5}
        )
        if step % steps_per_epoch == 0:
            epoch = step // steps_per_epoch
            events.append(
                {
                    "event": "epoch",
                    "epoch": epoch,
                    "step": step,
                    "train_loss": loss,
                    "val_loss": 2 * loss,
                    "val_module_loss": {"heads.a": 2 * loss, "neural.a": loss},
                    "val_metrics": {"kl": 0.25},
                    "host_rss_peak_bytes": epoch << 30,
                    "device_peak_bytes": None,
                    "time_left_s": 100.0,
                }
            )
    first = NOW - timedelta(seconds=len(events))
    return [{**event, "time_utc": (first + timedelta(seconds=index)).isoformat()} for index, event in enumerate(events)]


def write(folder: Path, lines: list[dict], tail: str = "") -> RunFolder:
    path = folder / "train" / "events.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    return RunFolder(folder)


def shown(status: RunStatus) -> str:
    return "\n".join(status_lines(status))


def test_a_run_that_goes_on(tmp_path: Path) -> None:
    folder = write(tmp_path, lines_of_a_run(epochs=3, of=5), tail='{"event": "step", "step": 13, "lo')
    (tmp_path / "train" / "samples.jsonl").write_text(
        json.dumps(
            {"event": "sample", "time_utc": NOW.isoformat(), "host_rss_bytes": 5 << 29, "device_busy_percent": 97}
        )
        + "\n"
    )
    status = read_status(folder, CONFIG, now=NOW)
    assert (status.state, status.epoch, status.epochs, status.step, status.steps) == ("running", 3, 5, 12, 20)
    assert status.time_left_s == 99.0 and status.best_epoch == 3
    assert status.samples_per_s == 32.0 and status.memory_bytes == {"host": 5 << 29, "host peak": 3 << 30}
    # An estimate that was too low leaves the steps that are left.
    late = read_status(folder, CONFIG, now=NOW + timedelta(seconds=110))
    assert late.state == "running" and late.time_left_s == 8 * 0.5
    text = shown(status)
    for part in ("running", "epoch 3/5, step 12/20", "2 min left", "2.50 GiB", "validation 0.1667", "best epoch 3"):
        assert part in text, part


@pytest.mark.parametrize(
    ("last", "state", "why"),
    [
        ({"event": "stopped", "what": "stopped on request; nothing is lost", "exit_code": 75}, "stopped", "on request"),
        ({"event": "end", "step": 12}, "stopped", "steps asked for"),
    ],
)
def test_a_run_that_said_why_it_ended(last: dict, state: str, why: str, tmp_path: Path) -> None:
    folder = write(tmp_path, [*lines_of_a_run(epochs=3, of=5), {**last, "time_utc": NOW.isoformat()}])
    status = read_status(folder, CONFIG, now=NOW + timedelta(days=1))
    assert status.state == state and why in status.why and status.time_left_s is None


def test_a_run_of_ones_own_model_is_told_by_the_log_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines_of_a_run(epochs=5, of=5)))
    status = status_of(tmp_path)
    assert (status.state, status.trials) == ("finished", []) and "epoch 5/5, step 20/20" in shown(status)
    with pytest.raises(BadInput, match="no run in this folder"):
        status_of(tmp_path / "other")


def test_a_killed_run_is_silent_and_a_slow_one_is_not(tmp_path: Path) -> None:
    lines = lines_of_a_run(epochs=1, of=5)
    later = NOW + timedelta(seconds=200)
    killed = read_status(write(tmp_path, lines), CONFIG, now=later)
    assert killed.state == "silent" and "nothing written since 2025-01-02 03:04:04 UTC" in killed.why
    slow = [{**line, "step_s": 30.0} if line["event"] == "step" else line for line in lines]
    assert read_status(write(tmp_path, slow), CONFIG, now=later).state == "running"


def test_the_way_that_a_card_was_found_to_take_best_is_said(tmp_path: Path) -> None:
    said = {"event": "chosen", "text": "chosen by the planner: 64 x 1, because", "predicted_step_s": None}
    lines = lines_of_a_run(epochs=1, of=5)
    status = read_status(write(tmp_path, [lines[0], {**lines[0], **said}, *lines[1:]]), CONFIG, now=NOW)
    assert status.chosen == said["text"] and f"way     {said['text']}" in shown(status)
    assert read_status(write(tmp_path, lines), CONFIG, now=NOW).chosen == ""


def test_a_finished_run_is_finished_whatever_its_log_ends_with(tmp_path: Path) -> None:
    folder = write(tmp_path, lines_of_a_run(epochs=5, of=5))
    status = read_status(folder, CONFIG, now=NOW + timedelta(days=9))
    assert status.state == "finished" and status.phases["train"] and "epoch 5/5" in shown(status)
    assert shown(status).startswith(
        "state   finished: the training; not done: sweet-spot, crossover, evaluate, report\n"
    )
    for name in ("select/crossover.json", "evaluation/evaluation.json", "report/report.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert read_status(folder, CONFIG, now=NOW).why == "the training; not done: sweet-spot"


def test_before_training_the_trials_are_shown(tmp_path: Path) -> None:
    for rate, epochs in ((1e-4, 2), (1e-3, 1)):
        path = tmp_path / "sweep" / f"rate_{rate}"
        path.mkdir(parents=True)
        lines = lines_of_a_run(epochs=epochs, of=2)
        (path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    status = read_status(RunFolder(tmp_path), CONFIG, now=NOW)
    assert (status.state, status.why) == ("running", "trial 2 of 2 of the sweep")
    killed = read_status(RunFolder(tmp_path), CONFIG, now=NOW + timedelta(days=1))
    assert killed.state == "silent" and killed.why.startswith("trial 2 of 2 of the sweep; nothing written since")
    (tmp_path / "sweep" / "sweep.json").touch()
    assert read_status(RunFolder(tmp_path), CONFIG, now=NOW).state == "waiting"
    assert [(trial.rate, trial.epochs, trial.val_loss) for trial in status.trials] == [(1e-4, 2, 0.25), (1e-3, 1, 0.5)]
    assert "0.0001" in shown(status)


@settings(max_examples=60)
@given(cut=st.integers(0, 6000), damaged=st.integers(0, 6000), byte=st.integers(0, 255))
def test_a_log_in_any_state_of_being_written_can_be_watched(
    cut: int, damaged: int, byte: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = write(tmp_path_factory.mktemp("run"), lines_of_a_run(epochs=4, of=5))
    path = folder.train / "events.jsonl"
    content = bytearray(path.read_bytes()[:cut])
    # A line that is cut back and written again while it is read: its head of one line, its tail of another.
    if content:
        at = damaged % len(content)
        content[at : at + 40] = bytes([byte]) * 3
    path.write_bytes(content)
    assert shown(read_status(folder, CONFIG, now=NOW))


def test_the_command_prints_text_or_json_and_refuses_no_run(tmp_path: Path) -> None:
    config = StudyConfig(out=tmp_path / "run")
    start(config)
    write(tmp_path / "run", lines_of_a_run(epochs=2, of=2))
    done = redheart("status", tmp_path / "run")
    assert done.returncode == 0 and "epoch 2/2" in done.stdout, done.stderr
    told = json.loads(redheart("status", tmp_path / "run", "--json").stdout)
    assert (told["state"], told["losses"]["validation"]) == ("finished", 0.25)
    none = redheart("status", tmp_path / "none")
    assert none.returncode == 2 and "no run in this folder" in none.stderr
