"""What a run does when a loss is no number, memory runs out or a save fails: nothing is lost, one clear error."""

import threading
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from line import BATCH, PATIENCE_S, STEPS_PER_EPOCH, Line, run
from torch import Tensor, nn

from redheart.core.config import TrainConfig
from redheart.core.errors import DiskError, Diverged, DoesNotFit, RedHeartError
from redheart.snapshots.states import newest_state
from redheart.train import loop, saving
from redheart.train.engine import Engine, start_engine
from redheart.train.learner import MicroLoss
from redheart.train.log.events import all_events, read_events
from redheart.train.log.pace import CHECK_STEPS, Expected
from redheart.train.loop import RunSettings, train
from redheart.train.settings import Chosen


def nan_at(*calls: int) -> Callable[[int, Tensor], Tensor]:
    return lambda call, loss: loss * torch.nan if call in calls else loss


def nan_gradient_at(*calls: int) -> Callable[[int, Tensor], Tensor]:
    def fault(call: int, loss: Tensor) -> Tensor:
        if call in calls:
            loss.register_hook(lambda grad: grad * torch.inf)
        return loss

    return fault


@pytest.mark.parametrize("planted", [nan_at, nan_gradient_at])
def test_a_step_that_is_no_number_changes_nothing_and_the_run_goes_on(
    planted: Callable[..., Callable[[int, Tensor], Tensor]], tmp_path: Path
) -> None:
    clean = run(tmp_path / "clean", Line())
    broken = run(tmp_path / "broken", Line(planted(3)))
    assert [step["applied"] for step in broken] == [number != 2 for number in range(len(clean))]
    assert [step["loss"] for step in broken[:2]] == [step["loss"] for step in clean[:2]]
    # The skipped step is counted, its rate is spent.
    assert [step["learning_rate"] for step in broken] == [step["learning_rate"] for step in clean]


@pytest.mark.parametrize("planted", [nan_at, nan_gradient_at])
def test_three_in_a_row_end_the_run_and_the_last_good_state_is_intact(
    planted: Callable[..., Callable[[int, Tensor], Tensor]], tmp_path: Path
) -> None:
    with pytest.raises(Diverged) as ended:
        run(tmp_path, Line(planted(4, 5, 6)))
    assert ended.value.exit_code == 4
    state = newest_state(tmp_path / "states")
    assert state is not None
    weights = state.ranks[0]["0.master"]
    assert weights.isfinite().all()


def test_bad_steps_that_are_not_in_a_row_do_not_end_the_run(tmp_path: Path) -> None:
    assert len(run(tmp_path, Line(nan_at(1, 2, 4, 5, 7, 8)))) == 2 * STEPS_PER_EPOCH


def out_of_memory_above(size: int, learner: list[Line]) -> Callable[[int, Tensor], Tensor]:
    def fault(call: int, loss: Tensor) -> Tensor:
        if learner[0].sizes[-1] > size:
            raise torch.OutOfMemoryError("planted")
        return loss

    return fault


def test_out_of_memory_in_forward_halves_the_micro_batch_and_keeps_the_effective_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    small = run(tmp_path / "small", Line(), micro_batch=2)
    holder: list[Line] = []
    holder.append(Line(out_of_memory_above(2, holder)))
    halved = run(tmp_path / "halved", holder[0])
    assert [step["loss"] for step in halved] == [step["loss"] for step in small]
    assert holder[0].sizes[:6] == [8, 4, 2, 2, 2, 2]
    noted = read_events(tmp_path / "halved" / "events.jsonl", "out_of_memory")
    assert [event["micro_batch"] for event in noted] == [4, 2]
    assert capfd.readouterr().err.count("warning: out of device memory") == 2


def test_a_run_goes_on_with_the_micro_batch_that_memory_had_left_it(tmp_path: Path) -> None:
    holder: list[Line] = []
    for epochs in (1, 2):
        holder[:] = [Line(out_of_memory_above(2, holder))]
        run(tmp_path, holder[0], epochs=epochs)
        assert holder[0].sizes[:2] == ([8, 4] if epochs == 1 else [2, 2])
    # What is asked for is tried.
    holder[:] = [Line(out_of_memory_above(2, holder))]
    run(tmp_path, holder[0], epochs=3, micro_batch=4)
    assert holder[0].sizes[:2] == [4, 2]
    assert [event["micro_batch"] for event in read_events(tmp_path / "events.jsonl", "start")] == [8, 2, 4]


def test_out_of_memory_in_the_middle_of_a_step_keeps_what_is_accumulated(tmp_path: Path) -> None:
    small = run(tmp_path / "small", Line(), micro_batch=2)

    def fault(call: int, loss: Tensor) -> Tensor:
        if call == 2:
            raise torch.OutOfMemoryError("planted")
        return loss

    learner = Line(fault)
    broken = run(tmp_path / "broken", learner, micro_batch=4)
    assert learner.sizes[:4] == [4, 4, 2, 2]
    # The first half was summed in another order: float32 rounding.
    assert [step["loss"] for step in broken] == pytest.approx([step["loss"] for step in small], rel=1e-5)


def test_one_record_that_does_not_fit_is_a_clear_error(tmp_path: Path) -> None:
    holder: list[Line] = []
    holder.append(Line(out_of_memory_above(0, holder)))
    with pytest.raises(DoesNotFit, match="out of device memory") as refused:
        run(tmp_path, holder[0])
    assert refused.value.exit_code == 3


def out_of_memory(grad: Tensor) -> None:
    raise torch.OutOfMemoryError("planted")


def test_out_of_memory_in_backward_is_a_clear_error_and_loses_nothing(tmp_path: Path) -> None:
    def fault(call: int, loss: Tensor) -> Tensor:
        if call == 3:
            loss.register_hook(out_of_memory)
        return loss

    with pytest.raises(DoesNotFit, match="micro-batch 4"):
        run(tmp_path, Line(fault))
    state = newest_state(tmp_path / "states")
    assert state is not None and state.manifest.progress.step == 2
    resumed = run(tmp_path, Line(), micro_batch=4)
    assert len(resumed) == 2 * STEPS_PER_EPOCH


def test_a_state_that_waits_when_a_run_ends_with_an_error_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, has_failed = saving.write_state, threading.Event()

    def slow(root: Path, **given: object) -> None:
        if given["progress"].step == 1:  # type: ignore[attr-defined]
            has_failed.wait(PATIENCE_S)
        write(root, **given)  # type: ignore[arg-type]

    def fault(call: int, loss: Tensor) -> Tensor:
        if call == 3:
            threading.Timer(0.2, has_failed.set).start()
            loss.register_hook(out_of_memory)
        return loss

    monkeypatch.setattr(saving, "write_state", slow)
    with pytest.raises(DoesNotFit):
        run(tmp_path, Line(fault))
    state = newest_state(tmp_path / "states")
    assert state is not None and state.manifest.progress.step == 2


def test_a_save_that_fails_where_another_error_ends_the_run_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    has_failed = threading.Event()

    def full_disk(root: Path, **given: object) -> None:
        has_failed.wait(PATIENCE_S)
        raise DiskError("cannot write: no space left on the disk", where=root)

    def fault(call: int, loss: Tensor) -> Tensor:
        if call == 2:
            threading.Timer(0.2, has_failed.set).start()
            loss.register_hook(out_of_memory)
        return loss

    monkeypatch.setattr(saving, "write_state", full_disk)
    with pytest.raises(DoesNotFit):
        run(tmp_path, Line(fault))
    assert "no space left on the disk" in capfd.readouterr().err


def test_a_save_that_fails_beside_training_ends_the_run_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = saving.write_state

    def full_disk(root: Path, **given: object) -> None:
        if given["progress"].step == 3:  # type: ignore[attr-defined]
            raise DiskError("cannot write: no space left on the disk", where=root)
        write(root, **given)  # type: ignore[arg-type]

    monkeypatch.setattr(saving, "write_state", full_disk)
    with pytest.raises(DiskError):
        run(tmp_path, Line())
    state = newest_state(tmp_path / "states")
    assert state is not None and state.manifest.progress.step == 2


def test_saving_beside_training_and_in_line_give_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "beside", Line())
    monkeypatch.setattr(saving, "copies_fit", lambda *groups: False)
    run(tmp_path / "in_line", Line())
    files = {
        name: sorted(item.relative_to(tmp_path / name) for item in (tmp_path / name).rglob("*.safetensors"))
        for name in ("beside", "in_line")
    }
    assert files["beside"] == files["in_line"] and files["beside"]
    for item in files["beside"]:
        assert (tmp_path / "beside" / item).read_bytes() == (tmp_path / "in_line" / item).read_bytes()


def test_an_epoch_that_ends_after_a_resume_is_logged_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    run(tmp_path / "whole", Line())
    config = TrainConfig(
        strategy="plain", effective_batch=BATCH, micro_batch=BATCH, cycle_epochs=1, state_every_steps=1
    )
    settings = RunSettings(config, 2, 1e-2, "key", max_steps=STEPS_PER_EPOCH)
    train(Line(), settings, folder=tmp_path / "run")
    run(tmp_path / "run", Line())
    kept = ("epoch", "step", "train_loss", "grad_norm", "learning_rate")
    logged = {
        name: [{key: event[key] for key in kept} for event in read_events(tmp_path / name / "events.jsonl", "epoch")]
        for name in ("whole", "run")
    }
    assert logged["run"] == logged["whole"]


def test_a_partial_window_is_used_and_every_record_weighs_the_same(tmp_path: Path) -> None:
    records = 2 * BATCH + 3
    learner = Line(records=records)
    losses: list[list[float]] = []
    whole = learner.loss

    def noted(module: nn.Module, rows: np.ndarray, *, step_rows: np.ndarray) -> MicroLoss:
        result = whole(module, rows, step_rows=step_rows)
        losses.append([result.sums["line"].item(), len(step_rows), result.total.item()])
        return result

    learner.loss = noted  # type: ignore[method-assign]
    steps = run(tmp_path, learner, epochs=1)
    assert [size for _, size, _ in losses] == [BATCH, BATCH, 3]
    assert [step["loss"] for step in steps] == [total for _, _, total in losses]
    (epoch,) = read_events(tmp_path / "events.jsonl", "epoch")
    # The mean over records, not over steps: the three records of the last step weigh as three.
    assert epoch["train_loss"] == pytest.approx(sum(total for total, _, _ in losses) / records, rel=1e-12)
    assert epoch["train_loss"] != pytest.approx(sum(total for _, _, total in losses) / 3, rel=1e-3)


def test_an_epoch_without_one_good_step_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="no step of the epoch"):
        run(tmp_path, Line(nan_at(1, 2), records=2 * BATCH), epochs=2)
    assert not read_events(tmp_path / "events.jsonl", "epoch")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_validation_loss_that_is_no_number_ends_the_run_before_its_state(value: float, tmp_path: Path) -> None:
    learner = Line()
    learner.val_loss = value
    with pytest.raises(Diverged, match="validation loss"):
        run(tmp_path, learner)
    state = newest_state(tmp_path / "states")
    assert state is not None and state.manifest.progress.epoch == 0
    (stopped,) = read_events(tmp_path / "events.jsonl", "stopped")
    assert stopped["exit_code"] == 4 and not read_events(tmp_path / "events.jsonl", "epoch")


def test_a_run_leaves_its_start_its_estimate_and_its_end(tmp_path: Path) -> None:
    run(tmp_path, Line(), epochs=3)
    (start,) = read_events(tmp_path / "events.jsonl", "start")
    assert (start["epochs"], start["steps_per_epoch"], start["step"]) == (3, STEPS_PER_EPOCH, 0)
    (estimate,) = read_events(tmp_path / "events.jsonl", "estimate")
    assert estimate["steps"] == 3 * STEPS_PER_EPOCH - estimate["step"] and estimate["step"] == 6
    (end,) = read_events(tmp_path / "events.jsonl", "end")
    assert end["step"] == 3 * STEPS_PER_EPOCH and end["estimated_s"] > 0 and end["took_s"] > 0
    epochs = read_events(tmp_path / "events.jsonl", "epoch")
    assert epochs[0]["time_left_s"] is None and epochs[1]["time_left_s"] >= 0 and epochs[2]["time_left_s"] == 0
    times = [event["time_utc"] for event in all_events(tmp_path / "events.jsonl")]
    assert times == sorted(times)


def test_a_finished_run_that_is_started_again_keeps_its_log(tmp_path: Path) -> None:
    run(tmp_path, Line())
    before = (tmp_path / "events.jsonl").read_bytes()
    run(tmp_path, Line())
    assert (tmp_path / "events.jsonl").read_bytes() == before
    # More epochs go on from its last state; what ended it is not said twice.
    run(tmp_path, Line(), epochs=3)
    assert [len(read_events(tmp_path / "events.jsonl", kind)) for kind in ("start", "epoch", "end")] == [2, 3, 1]


class Told:
    """A sink that notes with what it was closed."""

    wants_past = False

    def __init__(self) -> None:
        self.codes: list[int] = []

    def write(self, event: Mapping[str, object]) -> None:
        return None

    def close(self, *, exit_code: int) -> None:
        self.codes.append(exit_code)


def too_small(*_: object) -> Engine:
    raise torch.OutOfMemoryError("planted")


@pytest.mark.parametrize(
    ("key", "log", "engine", "exit_code"),
    [
        ("key", "kept", start_engine, 0),
        ("of another run", "kept", start_engine, 2),
        ("key", "cut", start_engine, 2),
        ("key", "kept", too_small, 3),
    ],
)
def test_every_sink_is_closed_once_however_a_run_is_refused(
    key: str,
    log: str,
    engine: Callable[..., Engine],
    exit_code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(tmp_path, Line())
    if log == "cut":
        (tmp_path / "events.jsonl").write_bytes(b"")
    monkeypatch.setattr(loop, "start_engine", engine)
    config = TrainConfig(strategy="plain", effective_batch=BATCH, micro_batch=BATCH, cycle_epochs=1)
    sinks = [Told(), Told()]
    with nullcontext() if exit_code == 0 else pytest.raises(RedHeartError) as refused:
        train(Line(), RunSettings(config, 2, 1e-2, key), folder=tmp_path, sinks=sinks)
    assert refused is None or refused.value.exit_code == exit_code
    assert [sink.codes for sink in sinks] == [[exit_code], [exit_code]]


def test_an_estimate_from_before_the_run_is_logged_beside_its_first_steps(tmp_path: Path) -> None:
    config = TrainConfig(strategy="plain", effective_batch=BATCH, micro_batch=BATCH)
    expected = Expected(100.0, None, "simulated")
    chosen = Chosen("16 x 1", "planner", "the fastest", ["8 x 2"], "a card", "its own", None, None, None, None, 1, 2)
    settings = RunSettings(config, 1, 1e-2, "key", expected=expected, chosen=chosen)
    train(Line(records=30 * BATCH), settings, folder=tmp_path)
    (said,) = read_events(tmp_path / "events.jsonl", "chosen")
    assert {name: said[name] for name in asdict(chosen)} == asdict(chosen) and said["step"] == 0
    (check,) = read_events(tmp_path / "events.jsonl", "estimate_check")
    assert (check["step"], check["expected_step_s"], check["basis"]) == (CHECK_STEPS + 1, 100.0, "simulated")
    assert check["error_percent"] == pytest.approx(100 * (100.0 / check["step_s"] - 1), abs=0.1)
