"""Ranks that find each other and end together. Each rank is a thread here; real ones are killed in tests/faults."""

import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import torch.distributed
from msgspec.structs import replace

from redheart.core.errors import BadInput, DiskError, DoesNotFit, Interrupted, OtherRankFailed
from redheart.core.ranks import Ranks
from redheart.snapshots import states
from redheart.train import interrupt
from redheart.train.counting import AT_START
from redheart.train.ranks import meeting, peers
from redheart.train.ranks.meeting import Hello
from redheart.train.ranks.peers import Watch, ends_together, meet

FULL = DiskError("cannot write: no space left on the disk", where="/run")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """No process of a test is ended, and nothing waits for long. Gives the exit codes that processes would have had."""
    exits: list[int] = []
    monkeypatch.setattr(peers.os, "_exit", exits.append)
    monkeypatch.setattr(peers, "GRACE_S", 0.2)
    monkeypatch.setattr(peers, "SETTLE_S", 1.0)
    monkeypatch.setattr(peers, "end_undisturbed", lambda: None)
    monkeypatch.setattr(meeting, "ANSWER_S", 3.0)
    return exits


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def ranks(world_size: int) -> list[Ranks]:
    address = "127.0.0.1", free_port()
    return [Ranks(rank, world_size, rank, world_size, address) for rank in range(world_size)]


def on_every_rank(world_size: int, work: Callable[[Watch], object]) -> list[Future[object]]:
    """Let every rank do something once all have met; what came of it, by rank."""

    def one(place: Ranks) -> object:
        watch = meet(place)
        try:
            with ends_together(watch):
                return work(watch)
        finally:
            watch.leave()

    with ThreadPoolExecutor(world_size) as pool:
        return [pool.submit(one, place) for place in ranks(world_size)]


def wait_for_the_end(watch: Watch) -> None:
    """As a collective does that another rank has left."""
    deadline = time.monotonic() + 10
    while watch.first is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    raise RuntimeError("Connection closed by peer")


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_one_rank_fails_and_all_end_with_its_error_said_once(
    failing: int, capfd: pytest.CaptureFixture[str], quick: list[int]
) -> None:
    def work(watch: Watch) -> None:
        if watch.rank == failing:
            raise DiskError("cannot write: no space left on the disk", where="/run")
        wait_for_the_end(watch)

    errors = [future.exception() for future in on_every_rank(3, work)]
    assert [type(error) for error in errors] == [DiskError if rank == failing else OtherRankFailed for rank in range(3)]
    for rank, error in enumerate(errors):
        assert isinstance(error, DiskError | OtherRankFailed)
        assert error.exit_code == 74 and error.is_said and error.where == "/run"
        assert error.what == f"rank {failing}: {FULL.what}" if rank != failing else FULL.what
    assert capfd.readouterr().err == f"error: {FULL}\n"
    assert not quick


@pytest.fixture
def two_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks 0 and 2 share a terminal, 1 and 3 another."""

    def on_two_hosts(place: Ranks, *, token: str = "") -> Hello:
        return Hello(token, place.rank, f"host-{place.rank % 2}", "terminal")

    monkeypatch.setattr(peers, "this_rank", on_two_hosts)
    monkeypatch.setattr(meeting, "this_rank", on_two_hosts)


def test_it_is_said_once_wherever_errors_go(two_terminals: None, capfd: pytest.CaptureFixture[str]) -> None:
    def work(watch: Watch) -> None:
        if watch.rank == 2:
            raise DoesNotFit("out of device memory")
        wait_for_the_end(watch)

    on_every_rank(4, work)
    assert sorted(capfd.readouterr().err.splitlines()) == [
        "error: out of device memory",
        "error: rank 2: out of device memory",
    ]


def test_the_first_of_two_failures_counts(capfd: pytest.CaptureFixture[str]) -> None:
    def work(watch: Watch) -> None:
        if watch.rank == 1:
            raise DoesNotFit("out of device memory")
        while watch.first is None:
            time.sleep(0.005)
        raise DiskError("cannot write: another matter")

    first, second = (future.exception() for future in on_every_rank(2, work))
    assert isinstance(first, OtherRankFailed) and first.exit_code == 3 and isinstance(second, DoesNotFit)
    assert capfd.readouterr().err == "error: out of device memory\n"


def test_ranks_that_stop_together_keep_their_error_and_say_it_once(capfd: pytest.CaptureFixture[str]) -> None:
    meet_again = threading.Barrier(3)

    def work(watch: Watch) -> None:
        meet_again.wait()
        raise Interrupted("stopped on request; nothing is lost")

    errors = [future.exception() for future in on_every_rank(3, work)]
    assert {type(error) for error in errors} == {Interrupted}
    assert capfd.readouterr().err == "error: stopped on request; nothing is lost\n"


def test_an_error_of_no_class_of_ours_keeps_its_traceback_and_its_rank(capfd: pytest.CaptureFixture[str]) -> None:
    def work(watch: Watch) -> None:
        if watch.rank == 1:
            raise IndexError("a bug")
        wait_for_the_end(watch)

    first, second = (future.exception() for future in on_every_rank(2, work))
    assert isinstance(second, IndexError)
    assert isinstance(first, OtherRankFailed) and first.exit_code == 1 and first.what == "rank 1: IndexError: a bug"
    # Python prints the traceback of rank 1, at its end.
    assert capfd.readouterr().err == ""


def test_a_rank_that_is_killed_ends_the_others(capfd: pytest.CaptureFixture[str], quick: list[int]) -> None:
    places = ranks(3)

    def killed(place: Ranks) -> None:
        line = meeting.line_to_first(place)
        while watches[0] is None:
            time.sleep(0.005)
        line.close()  # as the system does with what a process held

    watches: list[Watch | None] = [None, None]

    def other(place: Ranks) -> object:
        watches[place.rank] = watch = meet(place)
        with ends_together(watch):
            if place.rank == 0:
                # gloo sees a closed connection before anybody has said what it means.
                raise RuntimeError("Connection closed by peer")
            wait_for_the_end(watch)
        return None

    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(killed if place.rank == 2 else other, place) for place in places]
        errors = [future.exception() for future in futures[:2]]
    for error in errors:
        assert isinstance(error, OtherRankFailed) and error.exit_code == Interrupted.exit_code
        assert error.what == "rank 2: ended without a word, and with it the run"
    assert capfd.readouterr().err.count("error: ") == 1
    # Neither has left its work: what stands in a collective of NCCL would never.
    time.sleep(0.5)
    assert quick == [75, 75]


def test_who_shares_a_terminal_with_a_killed_rank_speaks_for_it(
    two_terminals: None, capfd: pytest.CaptureFixture[str]
) -> None:
    have_met = threading.Event()

    def killed(place: Ranks) -> None:
        line = meeting.line_to_first(place)
        assert have_met.wait(10)
        line.close()  # as the system does with what a process held

    def other(place: Ranks) -> None:
        watch = meet(place)
        have_met.set()
        try:
            with ends_together(watch):
                wait_for_the_end(watch)
        finally:
            watch.leave()

    with ThreadPoolExecutor(4) as pool:
        for place in ranks(4):
            pool.submit(killed if place.rank == 1 else other, place)
    assert capfd.readouterr().err.count("error: rank 1: ended without a word") == 2


def test_a_good_end_is_no_failure(capfd: pytest.CaptureFixture[str], quick: list[int]) -> None:
    def work(watch: Watch) -> Watch:
        time.sleep(0.1 * watch.rank)
        return watch

    watches = [future.result() for future in on_every_rank(3, work)]
    time.sleep(0.5)
    assert all(isinstance(watch, Watch) and watch.first is None for watch in watches)
    assert capfd.readouterr().err == "" and not quick


def test_exit_codes_of_a_command_line_are_passed_on() -> None:
    def work(watch: Watch) -> None:
        if watch.rank == 1:
            sys.exit(2)
        wait_for_the_end(watch)

    first, second = (future.exception() for future in on_every_rank(2, work))
    assert isinstance(first, OtherRankFailed) and first.exit_code == 2 and isinstance(second, SystemExit)


def test_a_message_about_a_name_that_is_no_utf8_arrives(capfd: pytest.CaptureFixture[str]) -> None:
    def work(watch: Watch) -> None:
        if watch.rank == 1:
            raise DiskError("cannot write", where=Path(os.fsdecode(b"/run/caf\xe9")))
        wait_for_the_end(watch)

    first, _ = (future.exception() for future in on_every_rank(2, work))
    assert isinstance(first, OtherRankFailed) and first.where == "/run/caf\\udce9"


def test_a_rank_that_cannot_write_its_part_leaves_the_others_parts_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the first rank would find its folder gone, and that would be the error that is told."""
    folder = tmp_path / ".step_00000003.partial"
    folder.mkdir()
    (folder / "rank_0.safetensors").write_bytes(b"half")

    def full_disk(path: Path, tensors: object) -> None:
        path.write_bytes(b"half")
        raise DiskError("cannot write")

    monkeypatch.setattr(states, "write_tensors", full_disk)
    progress = replace(AT_START, step=3)
    with pytest.raises(DiskError):
        states.write_state(
            tmp_path,
            tensors={},
            progress=progress,
            run_key="key",
            rank=1,
            world_size=2,
            barrier=lambda: None,
            parameters={},
        )
    assert [item.name for item in folder.iterdir()] == ["rank_0.safetensors"]


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("", 0)) as listener:
        yield int(listener.getsockname()[1])


def test_a_port_that_is_taken_is_one_clear_error(taken_port: int) -> None:
    with pytest.raises(BadInput, match=f"MASTER_PORT={taken_port}") as refused:
        meet(Ranks(0, 2, 0, 2, ("127.0.0.1", taken_port)))
    assert "rank 0 of 2" in str(refused.value) and "main_process_port" in str(refused.value)


def test_something_else_that_listens_there_is_one_clear_error() -> None:
    def hang_up(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                listener.accept()[0].close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=hang_up, args=(listener,), daemon=True).start()
        port = listener.getsockname()[1]
        with pytest.raises(BadInput, match=f"cannot meet\n  where:    rank 1 of 2, .*MASTER_PORT={port}"):
            meet(Ranks(1, 2, 1, 2, ("127.0.0.1", port)))
        listener.shutdown(socket.SHUT_RDWR)


def test_an_address_that_is_none_is_one_clear_error() -> None:
    with pytest.raises(BadInput, match=r"MASTER_ADDR=no\.such\.host\.invalid"):
        meet(Ranks(1, 2, 1, 2, ("no.such.host.invalid", 29500)))


@pytest.mark.parametrize("here", [0, 1])
def test_ranks_that_do_not_come_are_waited_for_and_named(
    here: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(meeting, "MEET_S", 2.5)
    monkeypatch.setattr(meeting, "FIRST_NOTE_S", 0.5)
    with pytest.raises(BadInput, match="cannot meet") as refused:
        meet(Ranks(here, 3, here, 3, ("127.0.0.1", free_port())))
    missing = "ranks 1, 2" if here == 0 else "rank 0"
    assert f"no word of {missing} in 2 s" in str(refused.value)
    assert re.fullmatch(rf"(waiting for {missing} of 3\n)+", capfd.readouterr().err)


def test_a_stranger_is_not_admitted() -> None:
    places = ranks(2)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(meet, places[0])
        store = torch.distributed.TCPStore(*places[0].address, is_master=False)  # type: ignore[misc]
        port = int(store.get(meeting._key()).decode().split()[0])
        endless = b"x" * meeting._MOST_BYTES
        guess = b'{"token":"guess","rank":1,"host":"h","terminal":"t"}\n'
        for greeting in (b"GET / HTTP/1.1\r\n\r\n", guess, endless):
            with socket.create_connection(("127.0.0.1", port)) as stranger:
                stranger.sendall(greeting)
                assert stranger.recv(1) == b""
        assert not first.done()
        second = pool.submit(meet, places[1])
        for watch in (first.result(), second.result()):
            watch.leave()


def test_who_ends_anyway_is_not_disturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupt, "_ending", threading.Event())
    with pytest.raises(KeyboardInterrupt):
        interrupt.raise_interrupt(15, None)
    interrupt._raised.clear()
    interrupt.end_undisturbed()
    interrupt.raise_interrupt(15, None)
    assert not interrupt._raised
