"""Being asked to stop: SIGTERM and Ctrl-C are remembered until the step is finished."""

import ctypes
import os
import signal
import sys
import threading
from types import FrameType

_PR_SET_PDEATHSIG = 1


def stop_with_parent() -> None:
    """Be asked to stop (SIGTERM) when the process that started this one ends, on Linux.

    A launcher that is stopped or killed would leave a training behind that nobody sees (`accelerate launch`, as an
    agent stops it, does not pass SIGTERM on).
    """
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            # It ended before it could be watched.
            signal.raise_signal(signal.SIGTERM)


_raised: list[int] = []
"""Signals that `raise_interrupt` has had."""


_ending = threading.Event()


def end_undisturbed() -> None:
    """This process is about to end with an error: a launcher that wants it to end must not put another in its place."""
    _ending.set()


def raise_interrupt(number: int, frame: FrameType | None) -> None:
    """The handler of both signals outside of a `StopRequest`; one that a library swallows is met by the next block."""
    if _ending.is_set():
        return
    _raised.append(number)
    raise KeyboardInterrupt


class StopRequest:
    """Inside the block the first signal only sets `pending`; a second Ctrl-C acts as usual.

    What the parent has made this process ignore stays ignored, and signals are the main thread's: in another one the
    block changes nothing.
    """

    def __init__(self) -> None:
        self.pending = bool(_raised)
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.pending = True
        if signal.SIGINT in self._previous:
            signal.signal(signal.SIGINT, signal.default_int_handler)
