"""The event log is read as it was written, or not at all."""

from pathlib import Path

import pytest
import torch

from redheart.core.errors import CorruptFile
from redheart.snapshots.states import Progress, write_state
from redheart.train.events import EventLog, read_events


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
    )


def test_a_log_that_is_cut_back_and_continued_is_one_chain(tmp_path: Path) -> None:
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
