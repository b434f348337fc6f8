"""One rank's failure ends all of them, within seconds, with that rank's message and exit code.

Without it the others stand in a collective for as long as NCCL or gloo waits, or see a line closed and say so in a
traceback each. The first rank decides whose failure was first; what follows from it on other ranks is not told.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import msgspec

from redheart.core.errors import Interrupted, OtherRankFailed, RedHeartError
from redheart.core.ranks import Ranks, launched
from redheart.train.interrupt import end_undisturbed
from redheart.train.ranks.meeting import MEET_S, Hello, Line, arrivals, line_to_first, no_meeting, this_rank

GRACE_S = 5.0
"""What a rank has to come out of its work by itself once another has failed; one in a collective of NCCL never does."""
SETTLE_S = 3.0
"""An error of no class of ours may be a collective that another rank has left: so long is waited for word of that."""
DECIDE_S = 5.0
"""What the first rank may take to decide who was first."""


class Failure(msgspec.Struct, frozen=True):
    rank: int
    exit_code: int
    what: str
    details: dict[str, str] = {}
    """Of an error of ours: where, got, expected, hint."""

    def as_error(self) -> OtherRankFailed:
        """What the other ranks end with."""
        error = OtherRankFailed(f"rank {self.rank}: {self.what}", **self.details)
        error.exit_code = self.exit_code
        return error


class Message(msgspec.Struct, frozen=True):
    """What goes over a line: to the first rank what has failed, from it what failed first; nothing at a good end."""

    failure: Failure | None = None
    is_said: bool = False
    """Whether another one prints it where the receiver's errors go: the failure, or in the first message that the first
    rank has ended without a word."""
    host: str = ""
    """Of the first rank: in its first message, when all have come."""


class Watch:
    """What this rank knows of the end of the others, and its word to them."""

    def __init__(self, rank: int, claim: Callable[[Failure], None], end: Callable[[], None]):
        """`claim` and `end` tell the first rank of a failure and of a good end."""
        self.rank = rank
        self.first: Failure | None = None
        """The failure that ends the run."""
        self._claim, self._end = claim, end
        self._is_known, self._has_left = threading.Event(), threading.Event()
        self._once = threading.Lock()

    def learn(self, failure: Failure, *, is_said: bool) -> None:
        """Another rank has failed, or this one's own failure is the first; only the first call counts."""
        with self._once:
            if self.first is not None:
                return
            self.first = failure
        end_undisturbed()
        if failure.rank != self.rank:
            if not is_said:
                _say(failure.as_error())
            threading.Thread(target=self._leave, args=(failure.exit_code,), name="leave", daemon=True).start()
        self._is_known.set()

    def settle(self, error: BaseException) -> Failure:
        """The failure that ends the run where `error` ends this rank's work; it is this error's if that was first."""
        is_ours = isinstance(error, RedHeartError | KeyboardInterrupt | SystemExit)
        if not is_ours and self._is_known.wait(SETTLE_S) and self.first:
            return self.first
        own = _failure(self.rank, error)
        self._claim(own)
        self._is_known.wait(DECIDE_S)
        self.learn(own, is_said=True)
        assert self.first is not None
        return self.first

    def leave(self) -> None:
        """This rank's work is over, in whichever way."""
        if self.first is None:
            self._end()
        self._has_left.set()

    def _leave(self, exit_code: int) -> None:
        if not self._has_left.wait(GRACE_S):
            os._exit(exit_code)


_watch: Watch | None = None
"""Of the block that is under way."""


@contextmanager
def together() -> Iterator[None]:
    """Do something on all ranks of a launcher: one that fails or is killed ends all, and one of them says why.

    Blocks in a block tell of a failure earlier, before what lies around them is closed.

    Raises:
        OtherRankFailed: instead of what followed here from the failure of another rank.
        BadInput: the ranks cannot meet.
    """
    global _watch
    ranks = launched()
    if ranks.world_size == 1 or _watch is not None:
        with ends_together(_watch):
            yield
        return
    _watch = meet(ranks)
    try:
        with ends_together(_watch):
            yield
    finally:
        _watch.leave()
        _watch = None


@contextmanager
def ends_together(watch: Watch | None) -> Iterator[None]:
    """Tell the others of what ends the block, and end it with what ended another rank before; alone without a watch."""
    try:
        yield
    except BaseException as error:
        is_good_end = isinstance(error, SystemExit) and error.code in (None, 0)
        if watch is None or isinstance(error, OtherRankFailed) or is_good_end:
            raise
        first = watch.settle(error)
        is_own = first.rank == watch.rank
        if isinstance(error, RedHeartError) and (is_own or error.what == first.what):
            if is_own and not error.is_said:
                _say(error)
            error.is_said = True
        elif not is_own:
            raise first.as_error() from error
        raise


def meet(ranks: Ranks) -> Watch:
    """Wait for all ranks, and watch them from then on.

    Raises:
        BadInput: not all have come.
        OtherRankFailed: one that had come has failed since.
    """
    return _first_rank(ranks) if ranks.is_first else _other_rank(ranks)


def _first_rank(ranks: Ranks) -> Watch:
    """Takes the lines of all others and decides whose failure was first; its verdict says who need not print it."""
    here = {0: this_rank(ranks)}
    lines: dict[int, Line] = {}
    decides = threading.Lock()

    def decide(failure: Failure, *, speaks: bool = True) -> None:
        with decides:
            if watch.first is not None:
                return
            told = {_terminal(here[failure.rank])} if speaks else set()
            if not speaks:
                del here[failure.rank]
            for rank, hello in sorted(here.items()):
                is_said = _terminal(hello) in told
                told.add(_terminal(hello))
                if rank == 0:
                    watch.learn(failure, is_said=is_said)
                else:
                    lines[rank].send(Message(failure, is_said))

    def listen(rank: int, line: Line) -> None:
        while (message := line.receive(Message)) is not None:
            if message.failure is None:
                return
            decide(message.failure)
        decide(_without_a_word(rank, here[rank].host), speaks=False)

    def end() -> None:
        for line in lines.values():
            line.send(Message())

    watch = Watch(0, decide, end)
    try:
        with closing(arrivals(ranks)) as coming:
            for arrival in coming:
                if watch.first is not None:
                    raise watch.first.as_error()
                if arrival is not None:
                    hello, line = arrival
                    with decides:
                        here[hello.rank], lines[hello.rank] = hello, line
                    threading.Thread(target=listen, args=(hello.rank, line), name="peers", daemon=True).start()
    except BaseException as error:
        decide(_failure(0, error))
        raise
    # Only now: who begins before all have come may fail before all can be told.
    spoken_for = set()
    for rank, line in sorted(lines.items()):
        place = _terminal(here[rank])
        line.send(Message(is_said=place in spoken_for, host=here[0].host))
        spoken_for.add(place)
    return watch


def _other_rank(ranks: Ranks) -> Watch:
    line = line_to_first(ranks)
    answer = line.receive(Message, timeout_s=MEET_S)
    if answer is None:
        raise no_meeting(ranks, "rank 0 has ended")
    watch = Watch(ranks.rank, lambda failure: line.send(Message(failure)), lambda: line.send(Message()))

    def listen() -> None:
        while (message := line.receive(Message)) is not None:
            if message.failure is None:
                return
            watch.learn(message.failure, is_said=message.is_said)
        watch.learn(_without_a_word(0, answer.host), is_said=answer.is_said)

    if answer.failure is not None:
        watch.learn(answer.failure, is_said=answer.is_said)
        raise answer.failure.as_error()
    threading.Thread(target=listen, name="peers", daemon=True).start()
    return watch


def _say(error: RedHeartError) -> None:
    """In one write: ranks that share a terminal must not print into each other's lines."""
    sys.stderr.write(f"error: {error}\n")
    sys.stderr.flush()


def _terminal(hello: Hello) -> tuple[str, str]:
    return hello.host, hello.terminal


def _without_a_word(rank: int, host: str) -> Failure:
    details = {
        "where": f"host {host}",
        "got": "killed, out of memory, or its host is gone",
        "hint": "run the same command again; it goes on from the last state",
    }
    return Failure(rank, Interrupted.exit_code, "ended without a word, and with it the run", details)


def _failure(rank: int, error: BaseException) -> Failure:
    if isinstance(error, RedHeartError):
        given = {"where": error.where, "got": error.got, "expected": error.expected, "hint": error.hint}
        details = {name: _text(value) for name, value in given.items() if value is not None}
        return Failure(rank, error.exit_code, _text(error.what), details)
    if isinstance(error, KeyboardInterrupt):
        details = {"hint": "run the same command again to go on"}
        return Failure(rank, Interrupted.exit_code, "interrupted", details)
    code = error.code if isinstance(error, SystemExit) else None
    return Failure(rank, code if isinstance(code, int) else 1, _text(f"{type(error).__name__}: {error}"))


def _text(value: object) -> str:
    """A text that goes over a line: the names of files need not be UTF-8."""
    return str(value).encode(errors="backslashreplace").decode()
