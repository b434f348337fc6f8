"""When a run saves: states by the clock, snapshots that no step waits for, and what is recomputed after a kill."""

import errno
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from line import PATIENCE_S, STEPS_PER_EPOCH, Line, run
from torch import Tensor

from redheart.core.config import TrainConfig
from redheart.core.errors import CorruptFile, DiskError
from redheart.core.files import PARTIAL
from redheart.snapshots.manifests import newest_progress, state_folders
from redheart.snapshots.states import newest_state
from redheart.train import epoch_end, loop, saving
from redheart.train.saving import BackgroundWriter, Saver


@pytest.fixture
def minute_a_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[Line], Line]:
    """A clock that goes on a minute with every step of a learner, and writes that have ended when they are begun."""
    monkeypatch.setattr(saving, "copies_fit", lambda tensors: False)

    def measured_by(learner: Line) -> Line:
        clock = partial(Saver, clock_s=lambda: 60.0 * len(learner.sizes))
        monkeypatch.setattr(loop, "Saver", clock)
        return learner

    return measured_by


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps of all states that are written, in order."""
    steps: list[int] = []
    write = saving.write_state

    def noted(root: Path, **given: Any) -> None:
        steps.append(given["progress"].step)
        write(root, **given)

    monkeypatch.setattr(saving, "write_state", noted)
    return steps


@pytest.mark.parametrize(
    ("every_minutes", "every_steps", "expected"),
    [
        (10.0, 0, [8]),  # a short run leaves its last state alone
        (3.0, 0, [3, 6, 8]),
        (0.0, 0, [4, 8]),  # one per epoch
        (0.0, 3, [3, 4, 6, 8]),
        (5.0, 4, [4, 8, 8]),  # further ones; the last step has one from before its epoch was counted
    ],
)
def test_states_are_written_by_the_clock_and_at_the_end(
    every_minutes: float,
    every_steps: int,
    expected: list[int],
    minute_a_step: Callable[[Line], Line],
    written: list[int],
    tmp_path: Path,
) -> None:
    run(tmp_path, minute_a_step(Line()), state_every_minutes=every_minutes, state_every_steps=every_steps)
    assert written == expected
    state = newest_state(tmp_path / "states")
    assert state is not None and state.manifest.progress.epoch == 2
    assert len(state_folders(tmp_path / "states")) == min(2, len(set(expected)))


def fail_at(number: int) -> Callable[[int, Tensor], Tensor]:
    def fault(call: int, loss: Tensor) -> Tensor:
        if call == number:
            raise KeyboardInterrupt
        return loss

    return fault


def files(folder: Path) -> dict[str, bytes]:
    """Snapshots and the last state."""
    last = state_folders(folder / "states")[-1]
    found = [*(folder / "snapshots").rglob("*"), *last.glob("*.safetensors")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found if path.is_file()}


@pytest.mark.parametrize(("every_minutes", "saved_step"), [(10.0, 0), (6.0, 6)])
def test_epochs_behind_the_newest_state_are_computed_again_to_the_same_bytes(
    every_minutes: float, saved_step: int, minute_a_step: Callable[[Line], Line], tmp_path: Path
) -> None:
    given: dict[str, Any] = {"epochs": 3, "snapshot_every": 1, "state_every_steps": 0}
    whole = run(tmp_path / "whole", Line(), **given)
    broken = minute_a_step(Line(fail_at(2 * STEPS_PER_EPOCH + 2)))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", broken, state_every_minutes=every_minutes, **given)
    # Two epochs have their snapshots, and no state counts the second of them.
    assert len(list((tmp_path / "run" / "snapshots").iterdir())) == 2
    state = newest_state(tmp_path / "run" / "states")
    assert (state.manifest.progress.step if state else 0) == saved_step
    resumed = run(tmp_path / "run", Line(), **given)
    assert [step["loss"] for step in resumed] == [step["loss"] for step in whole]
    assert files(tmp_path / "run") == files(tmp_path / "whole")


def rotten(run: Path) -> None:
    """The newest state's tensors change; its manifest does not."""
    path = state_folders(run / "states")[-1] / "rank_0.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def zeroed(run: Path) -> None:
    """A power failure: behind what the newest state made sure of, the log has a page of zeros."""
    path = run / "events.jsonl"
    progress = newest_progress(run / "states")
    assert progress
    content = path.read_bytes()
    assert len(content) > progress.events_bytes
    path.write_bytes(content[: progress.events_bytes] + b"\0" * 4096 + b"\n" + content[progress.events_bytes :])


def half_replaced(run: Path) -> None:
    """Killed when another state of the same step was about to take the newest one's place."""
    newest = state_folders(run / "states")[-1]
    newest.rename(newest.with_name(f".{newest.name}.replaced{PARTIAL}"))
    newest.with_name(f".{newest.name}{PARTIAL}").mkdir()


@pytest.mark.parametrize(("damage", "resumed_step"), [(rotten, 4), (zeroed, 6), (half_replaced, 6)])
def test_a_run_that_was_stopped_again_behind_what_is_damaged_ends_with_the_same_bytes(
    damage: Callable[[Path], None], resumed_step: int, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"state_every_steps": 2}
    whole = run(tmp_path / "whole", Line(), **given)
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(folder, Line(fail_at(7)), **given)
    damage(folder)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(folder, Line(fail_at(1)), **given)
        assert state_folders(folder / "states")[-1].name == f"step_{resumed_step:08d}"
        assert not list((folder / "states").glob(f".*{PARTIAL}"))
    resumed = run(folder, Line(), **given)
    assert [step["loss"] for step in resumed] == [step["loss"] for step in whole]
    assert files(folder) == files(tmp_path / "whole")


def test_what_a_state_knows_of_the_log_is_still_found_changed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Line(fail_at(7)), state_every_steps=2)
    rotten(tmp_path)
    path = tmp_path / "events.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"step": 2', b'"step": 3', 1))
    with pytest.raises(CorruptFile, match="the event log was changed"):
        run(tmp_path, Line(), state_every_steps=2)
    # Nothing is removed for a run that does not go on.
    assert len(state_folders(tmp_path / "states")) == 2


@pytest.mark.parametrize("error", [OSError(errno.EIO, "planted"), DiskError("planted")])
def test_snapshots_that_cannot_be_compressed_do_not_end_a_run(
    error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(saving, "compress_snapshots", fail)
    saving.compress_or_warn(tmp_path)
    assert capfd.readouterr().err.startswith("warning: snapshots stay uncompressed: ")


def test_a_state_never_counts_an_epoch_whose_snapshot_was_not_written(
    written: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(root: Path, **given: object) -> None:
        raise DiskError("cannot write: no space left on the disk", where=root)

    monkeypatch.setattr(epoch_end, "write_snapshot", full_disk)
    with pytest.raises(DiskError):
        run(tmp_path, Line(), state_every_steps=0, state_every_minutes=0)
    assert written == [STEPS_PER_EPOCH]


def test_training_goes_on_while_one_snapshot_is_written_and_another_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    third_epoch = threading.Event()

    def fault(call: int, loss: Tensor) -> Tensor:
        if call == 2 * STEPS_PER_EPOCH + 1:
            third_epoch.set()
        return loss

    write = epoch_end.write_snapshot

    def slow(root: Path, **given: Any) -> object:
        assert third_epoch.wait(PATIENCE_S), "training waited for the disk"
        return write(root, **given)

    monkeypatch.setattr(epoch_end, "write_snapshot", slow)
    run(tmp_path, Line(fault), epochs=3, snapshot_every=1, state_every_steps=0)
    assert len(list((tmp_path / "snapshots").iterdir())) == 3


@pytest.mark.parametrize(("room", "held"), [(True, 1), (False, 0)])
def test_no_more_than_one_copy_waits_and_none_where_memory_is_short(
    room: bool, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = threading.Event()
    monkeypatch.setattr(saving, "copies_fit", lambda tensors: room)
    model, copied = Line().model, threading.Event()
    with BackgroundWriter() as writer:
        saver = Saver(SimpleNamespace(rank=0), writer, folder=Path(), train=TrainConfig())  # type: ignore[arg-type]
        for _ in range(1 + held):
            writer.submit(lambda: first.wait(PATIENCE_S))

        def snapshot() -> Callable[[], object]:
            # Whatever was there before has made room.
            assert first.is_set() and writer.num_copies() <= held
            copied.set()
            return lambda: None

        release = threading.Timer(0.05, first.set)
        release.start()
        saver.save_snapshot(model, snapshot, compress=False)
        assert copied.is_set()


def test_a_state_by_time_is_put_off_while_something_is_written_but_not_for_ever() -> None:
    end, now_s = threading.Event(), 0.0
    engines = [SimpleNamespace(rank=rank) for rank in range(2)]
    with BackgroundWriter() as writer:
        first, second = (
            Saver(engine, writer, folder=Path(), train=TrainConfig(), clock_s=lambda: now_s)  # type: ignore[arg-type]
            for engine in engines
        )
        now_s = 599.0
        assert not first.is_due(1)
        now_s = 600.0
        # One clock decides for all ranks.
        assert first.is_due(1) and not second.is_due(1)
        writer.submit(lambda: end.wait(PATIENCE_S))
        assert not first.is_due(2)
        now_s = 1200.0
        assert first.is_due(3)
        end.set()
        writer.wait()
        now_s = 700.0
        assert first.is_due(4)


def test_a_failed_write_is_told_at_the_next_step_and_nothing_is_written_behind_it() -> None:
    def fail() -> None:
        raise DiskError("cannot write: no space left on the disk", where="disk")

    later: list[int] = []
    writer = BackgroundWriter()
    writer.submit(fail)
    writer.submit(lambda: later.append(1))
    with pytest.raises(DiskError):
        while not writer.is_idle():
            pass
    writer.wait()
    assert not later
