"""The event log of a run: one JSON object a line, appended, cut back to the last state on resume.

Every line ends with `chain`, the digest of that line and the chain before it: a line that was changed, removed or put
elsewhere breaks it. How long the log is at least, the newest resume state knows.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from redheart.core.errors import BadInput, CorruptFile
from redheart.core.files import disk_errors
from redheart.snapshots.states import least_events_bytes

_CHAIN = ', "chain": "{}"}}'
_CHAIN_BYTES = len(_CHAIN.format("0" * 16))
_MEND = "restore it from a copy, or remove its folder to train again"


class EventLog:
    """Appends events to `events.jsonl`; without a path, as on all ranks but the first, it keeps silent."""

    def __init__(self, path: Path | None, *, length_bytes: int):
        """Open the log and cut it to the length that it had when the state to resume from was written.

        Raises:
            CorruptFile: what the run logged up to that state was changed or cut.
        """
        self._file = None
        if path is None:
            return
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            content = path.read_bytes() if path.exists() else b""
            _, self._chain = _parsed(path, content[:length_bytes], least_bytes=length_bytes)
            self._file = path.open("ab")
            self._file.truncate(length_bytes)
            self._file.seek(length_bytes)

    def write(self, event: str, **fields: object) -> None:
        """Append one event and hand it to the operating system."""
        if self._file is None:
            return
        text = json.dumps({"event": event, **fields}, ensure_ascii=False, allow_nan=False)
        body = text.removesuffix("}").encode()
        self._chain = _next(self._chain, body)
        with disk_errors(Path(self._file.name)):
            self._file.write(body + _CHAIN.format(self._chain).encode() + b"\n")
            self._file.flush()

    def to_disk(self) -> None:
        """Return when what was written is on the disk: a state must not know of more than will be found."""
        if self._file:
            with disk_errors(Path(self._file.name)):
                os.fsync(self._file.fileno())

    @property
    def length_bytes(self) -> int:
        """Bytes written so far."""
        return self._file.tell() if self._file else 0

    def close(self) -> None:
        """Close the file."""
        if self._file:
            self._file.close()


def read_events(path: Path, event: str) -> list[dict[str, Any]]:
    """All events of one kind; a cut last line, as a killed run leaves it, is passed over.

    Raises:
        CorruptFile: a line was changed or is missing, also at the end, where the resume states beside the log know
            of more; the file and the line are named.
    """
    least_bytes = least_events_bytes(path.parent / "states")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        content = b""
    except OSError as error:
        raise BadInput("the event log cannot be read", where=path, got=error.strerror) from error
    events, _ = _parsed(path, content, least_bytes=least_bytes)
    return [entry for entry in events if entry["event"] == event]


def _parsed(path: Path, content: bytes, *, least_bytes: int) -> tuple[list[dict[str, Any]], str]:
    """The events of all whole lines, and the chain after them."""
    whole_bytes = content.rfind(b"\n") + 1
    if whole_bytes < least_bytes:
        raise CorruptFile(
            "the event log is cut or missing",
            where=path,
            got=f"{whole_bytes} bytes of whole lines",
            expected=f"{least_bytes} or more, as the newest resume state says",
            mend=_MEND,
        )
    events, chain = [], ""
    for number, line in enumerate(content[:whole_bytes].split(b"\n")[:-1], start=1):
        body = line[:-_CHAIN_BYTES]
        chain = _next(chain, body)
        if line[-_CHAIN_BYTES:] != _CHAIN.format(chain).encode():
            raise CorruptFile(
                "the event log was changed, or a line of it is missing",
                where=f"{path}, line {number}",
                mend=_MEND,
            )
        events.append(json.loads(body + b"}"))
    return events, chain


def _next(chain: str, body: bytes) -> str:
    return hashlib.sha256(chain.encode() + body).hexdigest()[:16]
