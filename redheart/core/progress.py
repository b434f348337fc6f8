"""How far a long piece of work is: a bar in a terminal, elsewhere a line for people or machines every half minute."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Literal

QUIET_S = 25.0
"""Seconds without a line after which one is due: half a minute of silence is taken for a program that hangs."""


def print_if_read(text: str) -> None:
    """Print a line for as long as standard output can be written to; long work must not end by it."""
    try:
        print(text, flush=True)
    except OSError:
        silence_stdout()


def warn(text: str) -> None:
    """Say on standard error what a person has to know; work goes on, also where nobody can read it."""
    _say_aside(f"warning: {text}")


def note(text: str) -> None:
    """Say on standard error what is well to know."""
    _say_aside(f"note: {text}")


def _say_aside(text: str) -> None:
    if sys.stderr is not None:
        with suppress(OSError):
            print(text, file=sys.stderr, flush=True)


def silence_stdout() -> None:
    """Send what is left and what comes to nowhere: Python would print a traceback of it at its end."""
    # A stream that is no file has nothing left to be flushed.
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@dataclass(frozen=True)
class Display:
    """Where and in which form progress is told."""

    form: Literal["bar", "json", "off"]
    """For people, for machines (one object a line), or not at all."""
    on_stderr: bool = False
    """Where standard output is a result for machines."""

    @contextmanager
    def track(self, phase: str, total: float, *, unit: str) -> Iterator[Callable[[float], None]]:
        """Around a piece of work; yields what is told how much more of it is done.

        Of a `total` of 0 only what is done is told. `unit` is what is counted, in the plural.
        """
        if self.form == "off":
            yield lambda _: None
        elif self.form == "bar" and (sys.stderr if self.on_stderr else sys.stdout).isatty():
            with self._bar(phase, total, unit) as advance:
                yield advance
        else:
            standing = Standing(phase, total, unit=unit)
            with Ticker(lambda: self.say(standing.fields if self.form == "json" else standing.text)):
                yield standing.advance

    def working(self, phase: str) -> AbstractContextManager[Callable[[float], None]]:
        """Around a piece of work of which only the time is told."""
        return self.track(phase, 0, unit="")

    def say(self, line: str | dict[str, object]) -> None:
        """Print a line, or an object as JSON in ASCII, whatever the encoding is."""
        text = line if isinstance(line, str) else json.dumps(line)
        print(text, file=sys.stderr if self.on_stderr else sys.stdout, flush=True)

    @contextmanager
    def _bar(self, phase: str, total: float, unit: str) -> Iterator[Callable[[float], None]]:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        text = TextColumn("{task.description}", markup=False)
        columns = (text, BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=self.on_stderr), transient=True) as progress:
            task = progress.add_task(f"{phase} ({total:,.0f} {unit})" if total else phase, total=total or None)
            yield lambda amount: progress.advance(task, amount)


SILENT = Display("off")


class Ticker:
    """Calls `tell` from a thread of its own whenever `quiet_s` seconds have passed since it, or `said`, was called."""

    def __init__(self, tell: Callable[[], object], *, quiet_s: float = QUIET_S) -> None:
        self._tell, self._quiet_s = tell, quiet_s
        self._said_s = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> "Ticker":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> "Ticker":
        self.said()
        self._thread.start()
        return self

    def close(self) -> None:
        self._ended.set()
        self._thread.join()

    def said(self) -> None:
        """Something was printed just now."""
        self._said_s = time.monotonic()

    def _run(self) -> None:
        while not self._ended.wait(max(0.0, self._said_s + self._quiet_s - time.monotonic())):
            if time.monotonic() - self._said_s >= self._quiet_s:
                try:
                    self._tell()
                except BrokenPipeError:
                    # Whoever read the lines wants no more of them.
                    return
                self.said()


class Standing:
    """How much of a piece of work is done, and since when it goes on; see `Display.track`."""

    def __init__(self, phase: str, total: float, *, unit: str, done: float = 0) -> None:
        self.done = done
        self._phase, self._total, self._unit = phase, total, unit
        self._first, self._start_s = done, time.monotonic()

    def advance(self, amount: float) -> None:
        self.done += amount

    @property
    def left_s(self) -> float | None:
        """Seconds that the rest takes at the pace until now; None before that is known."""
        here = self.done - self._first
        return self.seconds * max(0.0, self._total - self.done) / here if self._total and here > 0 else None

    @property
    def seconds(self) -> float:
        """Since it was begun."""
        return time.monotonic() - self._start_s

    @property
    def fields(self) -> dict[str, object]:
        left_s = self.left_s
        return {
            "event": "progress",
            "phase": self._phase,
            "done": self.done,
            "total": self._total or None,
            "unit": self._unit,
            "share": round(self.done / self._total, 4) if self._total else None,
            "seconds": round(self.seconds, 1),
            "left_s": None if left_s is None else round(left_s, 1),
        }

    @property
    def text(self) -> str:
        took, left_s = duration_text(self.seconds), self.left_s
        if not self._total:
            done = f"{self.done:,.0f} {self._unit}" if self._unit else "at work"
            return f"{self._phase:<11}{done}, {took}"
        ahead = "" if left_s is None else f", about {duration_text(left_s)} left"
        return f"{self._phase:<11}{self.done / self._total:.0%} of {self._total:,.0f} {self._unit} in {took}{ahead}"


def duration_text(seconds: float) -> str:
    """A duration as people say it: `40 s`, `12 min`, `2.1 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
