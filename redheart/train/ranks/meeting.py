"""How the ranks of a launcher find each other before anything else is done: a line from each to the first rank.

Whoever ends closes its line, however it ends: the system does it for a killed process, and keep-alive finds a host that
is gone. Nothing has to be sent in time, so a rank that is slow or suspended is never taken for one that has ended.
"""

import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import msgspec

from redheart.core.errors import BadInput, one_line
from redheart.core.ranks import Ranks

MEET_S = 1800.0
"""How long ranks wait for each other at the start, as torch's own groups do: other hosts are started by hand."""
ANSWER_S = 30.0
"""How long one that is there may take for an answer."""
FIRST_NOTE_S, NOTE_EVERY_S = 10.0, 30.0
_KEEP_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""A host that is gone is found after 10 + 3 * 5 seconds."""
_MOST_BYTES = 1 << 20
"""Of a message: whoever reaches the port may send what has no end."""

T = TypeVar("T", bound=msgspec.Struct)
_kept: list[object] = []
"""The first rank's store: with its last holder it would close, and the port be anybody's until training begins."""


class Hello(msgspec.Struct, frozen=True):
    token: str
    rank: int
    host: str
    terminal: str
    """Where its errors go, on this host: who shares it need not say a thing twice."""


class Line:
    """A connection between two ranks, one JSON object a line."""

    def __init__(self, connection: socket.socket):
        self._connection, self._reader = connection, connection.makefile("rb")
        self._sends = threading.Lock()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEP_ALIVE.items():
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send(self, message: msgspec.Struct) -> None:
        """Send, if the other one is there: that it is gone is what `receive` finds."""
        with suppress(OSError), self._sends:
            self._connection.sendall(msgspec.json.encode(message) + b"\n")

    def receive(self, kind: type[T], *, timeout_s: float | None = None) -> T | None:
        """The next message, None where the other one has ended or is none of ours."""
        try:
            self._connection.settimeout(timeout_s)
            line = self._reader.readline(_MOST_BYTES)
            return msgspec.json.decode(line, type=kind) if line else None
        except (OSError, msgspec.DecodeError):
            return None

    def close(self) -> None:
        self._reader.close()
        self._connection.close()


def this_rank(ranks: Ranks, *, token: str = "") -> Hello:
    """How this process presents itself."""
    try:
        errors = os.fstat(2)
        terminal = f"{errors.st_dev}:{errors.st_ino}"
    except OSError:
        terminal = f"none of rank {ranks.rank}"
    return Hello(token, ranks.rank, socket.gethostname(), terminal)


def arrivals(ranks: Ranks) -> Generator[tuple[Hello, Line] | None]:
    """On the first rank: each of the others as it comes; None now and then while they are waited for.

    Raises:
        BadInput: the address cannot be listened on, or not all have come.
    """
    token = secrets.token_hex(16)
    missing = set(range(1, ranks.world_size))
    with _server() as listener:
        listener.settimeout(1.0)
        with _store_errors(ranks):
            store = _store(ranks)
            _kept.append(store)
            # Where the lines of the others are taken, and what they have to know.
            store.set(_key(), f"{listener.getsockname()[1]} {token}")
        for _ in _patience(ranks, "ranks", missing, MEET_S):
            try:
                line = Line(listener.accept()[0])
            except TimeoutError:
                yield None
                continue
            hello = line.receive(Hello, timeout_s=ANSWER_S)
            if hello and secrets.compare_digest(hello.token, token) and hello.rank in missing:
                missing.remove(hello.rank)
                yield hello, line
            else:
                line.close()
            if not missing:
                return


def line_to_first(ranks: Ranks) -> Line:
    """On the other ranks: a line to the first, once that is there.

    Raises:
        BadInput: its address is none, it did not come, or it cannot be reached.
    """
    assert ranks.address is not None
    for _ in _patience(ranks, "rank", {0}, MEET_S):
        try:
            socket.create_connection(ranks.address, timeout=ANSWER_S).close()
            break
        except socket.gaierror as error:
            raise no_meeting(ranks, f"MASTER_ADDR: {error.strerror}") from error
        except OSError:
            time.sleep(0.2)
    # The store of torchrun's agent is there before the first rank, which has still to start.
    patience_s = MEET_S if _has_agents_store() else ANSWER_S
    with _store_errors(ranks):
        store = _store(ranks)
        for _ in _patience(ranks, "rank", {0}, patience_s):
            if store.check([_key()]):
                break
            time.sleep(0.1)
        port, token = store.get(_key()).decode().split()
    try:
        line = Line(socket.create_connection((ranks.address[0], int(port)), timeout=ANSWER_S))
    except OSError as error:
        raise no_meeting(ranks, f"rank 0 listens on port {port} there: {error}") from error
    line.send(this_rank(ranks, token=token))
    return line


def _server() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _key() -> str:
    return f"redheart/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def _has_agents_store() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)


def _store(ranks: Ranks) -> Any:
    """torch's store at the launcher's address. The groups of later share it: the port is taken once."""
    import torch.distributed

    assert ranks.address is not None
    return torch.distributed.TCPStore(
        *ranks.address,
        is_master=ranks.is_first and not _has_agents_store(),
        wait_for_workers=False,
        multi_tenant=True,
        timeout=timedelta(seconds=ANSWER_S),
    )


@contextmanager
def _store_errors(ranks: Ranks) -> Iterator[None]:
    import torch.distributed

    try:
        yield
    except torch.distributed.DistError as error:
        raise no_meeting(ranks, one_line(error)) from error


def _patience(ranks: Ranks, what: str, missing: set[int], patience_s: float) -> Iterator[None]:
    """Turns until a block has what it waits for; from time to time it is said who is waited for."""
    start_s = time.monotonic()
    next_note_s = FIRST_NOTE_S
    while (waited_s := time.monotonic() - start_s) < patience_s:
        if waited_s > next_note_s:
            next_note_s = waited_s + NOTE_EVERY_S
            print(f"waiting for {what} {_names(missing)} of {ranks.world_size}", file=sys.stderr, flush=True)
        yield
    raise no_meeting(ranks, f"no word of {what} {_names(missing)} in {patience_s:.0f} s")


def _names(ranks: set[int]) -> str:
    return ", ".join(map(str, sorted(ranks)))


def no_meeting(ranks: Ranks, got: str) -> BadInput:
    """What a rank ends with that is alone."""
    assert ranks.address is not None
    return BadInput(
        "the ranks of this run cannot meet",
        where=f"rank {ranks.rank} of {ranks.world_size}, MASTER_ADDR={ranks.address[0]} MASTER_PORT={ranks.address[1]}",
        got=got,
        expected="the host of rank 0, and a port that is free there",
        hint="give another port: MASTER_PORT, `accelerate --main_process_port` or `deepspeed --master_port`",
    )
