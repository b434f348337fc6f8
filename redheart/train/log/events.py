"""The event log of a run: one JSON object a line, appended, cut back to the last state on resume; and its sinks.

Every line ends with `chain`, the digest of that line and the chain before it: a line that was changed, removed or put
elsewhere breaks it. How long the log is at least, the newest resume state knows.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from redheart.core.errors import BadInput, CorruptFile, DiskError, Interrupted, RedHeartError
from redheart.core.files import disk_errors
from redheart.snapshots.manifests import newest_progress

_CHAIN = ', "chain": "{}"}}'
_BEGINNING = b'{"event": "'
_CHAIN_BYTES = len(_CHAIN.format("0" * 16))
_HINT = "restore it from a copy, or remove its folder to train again"

Event = dict[str, Any]


class EventSink(Protocol):
    """Something that is told every event beside the log: a tracker, a terminal. It must not fail a run."""

    wants_past: bool
    """Whether events of before a resume are told again, because this sink has never seen them."""

    def write(self, event: Mapping[str, object]) -> None:
        """Take one event."""

    def close(self, *, exit_code: int) -> None:
        """The run ends with this exit code."""


class EventLog:
    """Appends events to `events.jsonl`; without a path, as on all ranks but the first, it keeps silent.

    As a context it closes itself and its sinks; an error that ends the block is logged as `stopped`.
    """

    def __init__(
        self, path: Path | None, *, length_bytes: int, keeps_rest: bool = False, sinks: Sequence[EventSink] = ()
    ):
        """Open the log and cut it to the length that it had when the state to resume from was written.

        `keeps_rest` keeps what follows up to the first broken line: a finished run that is started again has nothing
        to add.

        Raises:
            BadInput: the file is no event log.
            CorruptFile: what the run logged up to that state was changed or cut.
        """
        self._file = None
        self._sinks = sinks
        if path is None:
            return
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            content = path.read_bytes() if path.exists() else b""
            # Another program's file of this name must not be cut to the length of ours.
            if length_bytes == 0 and not content.startswith(_BEGINNING[: len(content)]):
                what = "another file stands where the event log is to be written"
                raise BadInput(what, where=path, hint="move it elsewhere")
            kept = content[: content.rfind(b"\n") + 1 if keeps_rest else length_bytes]
            past, self._chain, whole_bytes = _parsed(path, kept, least_bytes=length_bytes, ends_behind=keeps_rest)
            self._file = path.open("ab")
            self._file.truncate(whole_bytes)
            self._file.seek(whole_bytes)
        for sink in (sink for sink in sinks if sink.wants_past):
            for event in past:
                sink.write(event)

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.close()
            return
        exit_code = _exit_code(error)
        what = error.what if isinstance(error, RedHeartError) else type(error).__name__
        # A full disk must not hide what ended the run.
        with suppress(DiskError):
            self.write("stopped", what=what, exit_code=exit_code)
        with suppress(DiskError):
            self.close(exit_code=exit_code)

    def close(self, *, exit_code: int = 0) -> None:
        """Close the file and the sinks.

        Raises:
            DiskError: what could not be written before cannot be written now either; all is closed.
        """
        try:
            if self._file:
                with disk_errors(Path(self._file.name)):
                    self._file.close()
        finally:
            _close(self._sinks, exit_code=exit_code)

    def write(self, event: str, **fields: object) -> None:
        """Append one event with the time of day, hand it to the operating system and to the sinks."""
        if self._file is None:
            return
        entry: Event = {"event": event, **fields, "time_utc": time_utc()}
        body = json.dumps(entry, ensure_ascii=False, allow_nan=False).removesuffix("}").encode()
        self._chain = _next(self._chain, body)
        with disk_errors(Path(self._file.name)):
            self._file.write(body + _CHAIN.format(self._chain).encode() + b"\n")
            self._file.flush()
        for sink in self._sinks:
            sink.write(entry)

    def to_disk(self) -> None:
        """Return when what was written is on the disk: a state must not know of more than will be found."""
        if self._file:
            with disk_errors(Path(self._file.name)):
                os.fsync(self._file.fileno())

    @property
    def length_bytes(self) -> int:
        return self._file.tell() if self._file else 0


@contextmanager
def closed_if_refused(sinks: Sequence[EventSink]) -> Iterator[None]:
    """Around what comes before a log takes the sinks over: an error there closes them with its exit code."""
    try:
        yield
    except BaseException as error:
        _close(sinks, exit_code=_exit_code(error))
        raise


def _close(sinks: Sequence[EventSink], *, exit_code: int) -> None:
    for sink in sinks:
        sink.close(exit_code=exit_code)


def _exit_code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return Interrupted.exit_code
    return error.exit_code if isinstance(error, RedHeartError) else 1


def time_utc() -> str:
    """Now, ISO 8601 to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def all_events(path: Path) -> list[Event]:
    """All events in order; a cut last line, as a killed run leaves it, is passed over. No file, no events.

    Raises:
        CorruptFile: a line was changed or is missing, also at the end, where the resume states beside the log know
            of more; the file and the line are named.
    """
    return _parsed(path, _content(path), least_bytes=_known_bytes(path))[0]


def read_events(path: Path, event: str) -> list[Event]:
    """All events of one kind, as `all_events`."""
    return [entry for entry in all_events(path) if entry["event"] == event]


def events_up_to(path: Path, length_bytes: int) -> list[Event]:
    """The events that the resume state of this length knows of; what was logged behind it its resume cuts off.

    Raises:
        CorruptFile: one of them was changed or is missing.
    """
    return _parsed(path, _content(path)[:length_bytes], least_bytes=length_bytes)[0]


def events_behind(path: Path) -> list[Event]:
    """What a run has behind it when it is started again.

    Behind the newest resume state a power failure may leave anything, so that there the first broken line is the end.

    Raises:
        CorruptFile: what that state knows of was changed or is missing.
    """
    return _parsed(path, _content(path), least_bytes=_known_bytes(path), ends_behind=True)[0]


def watched_events(path: Path) -> list[Event]:
    """Whatever is readable in a log while a run that goes on cuts it and writes it again."""
    events = []
    for line in _content(path).split(b"\n")[:-1]:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and "event" in entry:
            entry.pop("chain", None)
            events.append(entry)
    return events


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise BadInput("the event log cannot be read", where=path, got=error.strerror) from error


def _known_bytes(path: Path) -> int:
    """What the newest of the resume states beside a log knows of it."""
    progress = newest_progress(path.parent / "states")
    return progress.events_bytes if progress else 0


def _parsed(path: Path, content: bytes, *, least_bytes: int, ends_behind: bool = False) -> tuple[list[Event], str, int]:
    """The events of all whole lines, the chain after them and their bytes.

    With `ends_behind` a broken line behind the first `least_bytes` is no error, but the end.
    """
    whole_bytes = content.rfind(b"\n") + 1
    if whole_bytes < least_bytes:
        raise CorruptFile(
            "the event log is cut or missing",
            where=path,
            got=f"{whole_bytes} bytes of whole lines",
            expected=f"{least_bytes} or more, as the newest resume state says",
            hint=_HINT,
        )
    events: list[Event] = []
    chain, begin = "", 0
    for number, line in enumerate(content[:whole_bytes].split(b"\n")[:-1], start=1):
        body = line[:-_CHAIN_BYTES]
        following = _next(chain, body)
        if line[-_CHAIN_BYTES:] != _CHAIN.format(following).encode():
            if ends_behind and begin >= least_bytes:
                break
            raise CorruptFile(
                "the event log was changed, or a line of it is missing",
                where=f"{path}, line {number}",
                hint=_HINT,
            )
        events.append(json.loads(body + b"}"))
        chain, begin = following, begin + len(line) + 1
    return events, chain, begin


def _next(chain: str, body: bytes) -> str:
    return hashlib.sha256(chain.encode() + body).hexdigest()[:16]
