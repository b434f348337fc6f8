"""The event log: appended, cut back, told to sinks, watched; read as it was written, or not at all."""

import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from redheart.core.errors import CorruptFile, DiskError, Diverged
from redheart.snapshots.manifests import Progress
from redheart.snapshots.states import write_state
from redheart.train.log.events import EventLog, all_events, events_behind, events_up_to, read_events, watched_events


def write_log(path: Path, steps: int, *, start: int = 0, length_bytes: int = 0) -> int:
    log = EventLog(path, length_bytes=length_bytes)
    for step in range(start, steps):
        log.write("step", step=step, loss=0.5 / (step + 1), text="é")
    log.to_disk()
    found = log.length_bytes
    log.close()
    return found


def write_state_of(folder: Path, events_bytes: int) -> None:
    progress = Progress(0, 1, 1, {}, {}, 0, None, events_bytes)
    write_state(
        folder / "states",
        tensors={"w": torch.zeros(1)},
        progress=progress,
        run_key="k",
        rank=0,
        world_size=1,
        barrier=lambda: None,
        parameters={},
    )


def test_a_log_that_is_cut_back_and_continued_is_one_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redheart.train.log.events.time_utc", lambda: "2026-01-01T00:00:00.000Z")
    path = tmp_path / "events.jsonl"
    assert read_events(path, "step") == []
    length = write_log(path, 3)
    write_log(path, 6, start=3, length_bytes=length)
    # Killed after the last state, in the middle of a line.
    path.write_bytes(path.read_bytes()[:-9])
    assert [event["step"] for event in read_events(path, "step")] == [0, 1, 2, 3, 4]
    assert write_log(path, 3, start=3, length_bytes=length) == length
    write_log(path, 4, start=3, length_bytes=length)
    write_log(tmp_path / "whole.jsonl", 4)
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_every_changed_byte_and_missing_line_is_found_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    length = write_log(path, 4)
    write_state_of(tmp_path, length)
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    broken = [content[:at] + bytes([byte ^ 1 << at % 8]) + content[at + 1 :] for at, byte in enumerate(content)]
    broken += [content[:at] for at in range(len(content))]
    broken += [b"".join(lines[:at] + lines[at + 1 :]) for at in range(4)]
    broken += [b"".join([lines[1], lines[0], *lines[2:]]), content + lines[3], content + b"{}\n"]
    for changed in broken:
        path.write_bytes(changed)
        with pytest.raises(CorruptFile, match=r"events\.jsonl"):
            read_events(path, "step")
        if not changed.startswith(content):
            with pytest.raises(CorruptFile, match=r"events\.jsonl"):
                EventLog(path, length_bytes=length)
    path.unlink()
    with pytest.raises(CorruptFile, match="cut or missing"):
        read_events(path, "step")
    with pytest.raises(CorruptFile, match="cut or missing"):
        EventLog(path, length_bytes=length)


def test_before_a_resume_only_what_it_will_keep_must_be_whole(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    assert events_behind(path) == []
    with EventLog(path, length_bytes=0) as log:
        log.write("epoch", epoch=1)
        length = log.length_bytes
        log.write("epoch", epoch=2)
    write_state_of(tmp_path, length)
    whole = path.read_bytes()
    # As a power failure leaves it: only states make sure that the log is on the disk.
    for behind, epochs in ((b"\0" * 99 + b"\n", 2), (b"{}\n" + whole, 2), (b"\0" * 99, 2)):
        path.write_bytes(whole + behind)
        assert len(events_behind(path)) == epochs and len(events_up_to(path, length)) == 1
    path.write_bytes(whole[:length] + b"\0" * 99 + b"\n" + whole[length:])
    assert events_behind(path) == events_up_to(path, length)
    assert [event["epoch"] for event in events_up_to(path, length)] == [1]
    for at in (12, length - 2):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        for read in (events_behind, lambda path: events_up_to(path, length)):
            with pytest.raises(CorruptFile, match="line 1"):
                read(path)
    path.write_bytes(whole[: length - 1])
    for read in (events_behind, lambda path: events_up_to(path, length)):
        with pytest.raises(CorruptFile, match="cut or missing"):
            read(path)


class Heard:
    def __init__(self, *, wants_past: bool = False):
        self.wants_past = wants_past
        self.events: list[Mapping[str, object]] = []
        self.exit_code: int | None = None

    def write(self, event: Mapping[str, object]) -> None:
        self.events.append(event)

    def close(self, *, exit_code: int) -> None:
        self.exit_code = exit_code


def test_sinks_hear_what_the_log_holds_and_only_a_new_one_hears_the_past(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path, length_bytes=0) as log:
        log.write("step", step=1)
        length = log.length_bytes
        log.write("step", step=2)
    new, old = Heard(wants_past=True), Heard()
    with EventLog(path, length_bytes=length, sinks=[new, old]) as log:
        log.write("step", step=3)
    assert [event["step"] for event in new.events] == [1, 3]
    assert [event["step"] for event in old.events] == [3]
    assert new.events == all_events(path) and new.exit_code == 0


def test_an_error_is_the_last_event_and_reaches_the_sinks_as_its_exit_code(tmp_path: Path) -> None:
    heard = Heard()
    with pytest.raises(Diverged), EventLog(tmp_path / "events.jsonl", length_bytes=0, sinks=[heard]):
        raise Diverged("no number")
    (stopped,) = read_events(tmp_path / "events.jsonl", "stopped")
    assert (stopped["what"], stopped["exit_code"], heard.exit_code) == ("no number", 4, 4)
    # A second Ctrl-C.
    with pytest.raises(KeyboardInterrupt), EventLog(tmp_path / "other.jsonl", length_bytes=0):
        raise KeyboardInterrupt
    assert [event["exit_code"] for event in read_events(tmp_path / "other.jsonl", "stopped")] == [75]


def test_a_full_disk_does_not_hide_the_error_that_ended_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EventLog(tmp_path / "events.jsonl", length_bytes=0)

    def full(event: str, **fields: object) -> None:
        raise DiskError("cannot write")

    monkeypatch.setattr(log, "write", full)
    with pytest.raises(Diverged), log:
        raise Diverged("no number")


@contextmanager
def file_limit(size_bytes: int) -> Iterator[None]:
    """No file of this process grows beyond this size, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_to_the_end_closes_every_sink_with_the_error_that_ended_the_run(tmp_path: Path) -> None:
    heard = Heard()
    log = EventLog(tmp_path / "events.jsonl", length_bytes=0, sinks=[heard])
    log.write("step", step=1)
    with file_limit(log.length_bytes), pytest.raises(Diverged), log:
        raise Diverged("no number")
    assert heard.exit_code == 4
    assert [event["event"] for event in all_events(tmp_path / "events.jsonl")] == ["step"]


def test_a_log_that_cannot_be_closed_is_a_disk_error_and_the_sinks_are_closed(tmp_path: Path) -> None:
    heard = Heard()
    log = EventLog(tmp_path / "events.jsonl", length_bytes=0, sinks=[heard])
    with file_limit(0):
        with pytest.raises(DiskError):
            log.write("step", step=1)
        # What it could not write it tries to write again.
        with pytest.raises(DiskError, match="file too large"):
            log.close()
    assert heard.exit_code == 0


def test_a_finished_log_is_kept_to_its_end_and_told_again(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    length = write_log(path, 2)
    with EventLog(path, length_bytes=length) as log:
        log.write("end", step=2)
    content = path.read_bytes()
    heard = Heard(wants_past=True)
    EventLog(path, length_bytes=length, keeps_rest=True, sinks=[heard]).close()
    assert path.read_bytes() == content
    assert [event["event"] for event in heard.events] == ["step", "step", "end"]
    # As a power failure leaves it behind the last state.
    path.write_bytes(content + b"\0" * 99 + b"\n")
    EventLog(path, length_bytes=length, keeps_rest=True).close()
    assert path.read_bytes() == content


EVENTS = st.lists(
    st.fixed_dictionaries(
        {"event": st.text(min_size=1), "loss": st.none() | st.floats(allow_nan=False, allow_infinity=False)}
    )
)


@settings(max_examples=60)
@given(events=EVENTS, cut=st.integers(0, 40))
def test_every_whole_line_of_a_cut_log_is_read(
    events: list[dict[str, object]], cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("log") / "events.jsonl"
    log = EventLog(path, length_bytes=0)
    for event in events:
        log.write(str(event["event"]), loss=event["loss"])
    log.close()
    content = path.read_bytes()
    content = content[: max(0, len(content) - cut)]
    path.write_bytes(content)
    found = all_events(path)
    assert [{"event": item["event"], "loss": item["loss"]} for item in found] == events[: content.count(b"\n")]
    assert watched_events(path) == found


@settings(max_examples=100)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_a_clear_error_and_watching_never_fails(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("log") / "events.jsonl"
    path.write_bytes(content)
    assert all(isinstance(event, dict) for event in watched_events(path))
    if b"\n" in content:
        with pytest.raises(CorruptFile, match="line 1"):
            all_events(path)
    else:
        assert all_events(path) == []
