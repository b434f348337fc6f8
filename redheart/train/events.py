"""The event log of a run: one JSON object a line, appended, cut back to the last state on resume."""

import json
import os
from pathlib import Path

from redheart.core.files import disk_errors


class EventLog:
    """Appends events to `events.jsonl`; without a path, as on all ranks but the first, it keeps silent."""

    def __init__(self, path: Path | None, *, length_bytes: int):
        """Open the log and cut it to the length that it had when the state to resume from was written."""
        self._file = None
        if path is None:
            return
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            os.truncate(path, length_bytes)
            self._file = path.open("ab")

    def write(self, event: str, **fields: object) -> None:
        """Append one event and hand it to the operating system."""
        if self._file is None:
            return
        line = json.dumps({"event": event, **fields}, ensure_ascii=False, allow_nan=False)
        with disk_errors(Path(self._file.name)):
            self._file.write(line.encode() + b"\n")
            self._file.flush()

    @property
    def length_bytes(self) -> int:
        """Bytes written so far."""
        return self._file.tell() if self._file else 0

    def close(self) -> None:
        """Close the file."""
        if self._file:
            self._file.close()


def read_events(path: Path, event: str) -> list[dict[str, object]]:
    """All events of one kind; a cut last line, as a killed run leaves it, is passed over."""
    if not path.is_file():
        return []
    events = []
    lines = path.read_bytes().split(b"\n")
    for line in lines[:-1]:
        entry = json.loads(line)
        if entry["event"] == event:
            events.append(entry)
    return events
