"""Long work tells how far it is, in a terminal or not, and stays silent while it is short."""

import io
import json
import sys
import threading
import time

import pytest

from redheart.core import progress
from redheart.core.progress import Display, Standing, Ticker


def wait_until(found: threading.Event) -> None:
    assert found.wait(20)


def test_a_ticker_speaks_when_nobody_else_did() -> None:
    told, spoken = [], threading.Event()

    def tell() -> None:
        told.append(time.monotonic())
        if len(told) == 3:
            spoken.set()

    start_s = time.monotonic()
    with Ticker(tell, quiet_s=0.05):
        wait_until(spoken)
    assert told[2] - start_s >= 0.15
    count = len(told)
    time.sleep(0.2)
    assert len(told) == count, "it speaks after its end"


def test_a_ticker_is_silent_while_others_speak() -> None:
    told: list[int] = []
    with Ticker(lambda: told.append(1), quiet_s=5) as ticker:
        for _ in range(20):
            ticker.said()
            time.sleep(0.01)
    assert told == []


def test_a_ticker_ends_where_nobody_reads() -> None:
    tried = threading.Event()

    def tell() -> None:
        tried.set()
        raise BrokenPipeError

    with Ticker(tell, quiet_s=0.01):
        wait_until(tried)


@pytest.mark.parametrize("form", ["bar", "json"])
@pytest.mark.parametrize("on_stderr", [False, True])
def test_a_line_says_share_and_time_left_where_there_is_no_terminal(
    form: str, on_stderr: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "QUIET_S", 0.05)
    monkeypatch.setattr(Ticker.__init__, "__kwdefaults__", {"quiet_s": 0.05})
    with Display(form, on_stderr=on_stderr).track("features", 200, unit="records") as advance:
        advance(50)
        deadline = time.monotonic() + 20
        captured = ""
        while "\n" not in captured and time.monotonic() < deadline:
            time.sleep(0.02)
            out = capsys.readouterr()
            captured += out.err if on_stderr else out.out
            assert (out.out if on_stderr else out.err) == ""
    line = captured.splitlines()[0]
    if form == "bar":
        assert line.startswith("features   25% of 200 records in 0 s, about 0 s left")
    else:
        found = json.loads(line)
        assert found["event"] == "progress" and found["share"] == 0.25 and found["left_s"] >= 0.1


@pytest.mark.parametrize("form", ["bar", "json", "off"])
def test_short_work_says_nothing(form: str, capfd: pytest.CaptureFixture[str]) -> None:
    with Display(form).track("features", 2, unit="records") as advance:
        advance(2)
    with Display(form).working("crossover"):
        pass
    assert capfd.readouterr() == ("", "")


def test_an_object_is_json_in_any_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="backslashreplace")
    monkeypatch.setattr(sys, "stdout", file)
    Display("json").say({"phase": "감정 é 😀"})
    file.seek(0)
    assert json.loads(file.read()) == {"phase": "감정 é 😀"}


def test_in_a_terminal_there_is_a_bar_and_a_name_is_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", Terminal())
    with Display("bar").track("[/red]", 4, unit="records") as advance:
        advance(4)
    shown = sys.stdout.getvalue()  # type: ignore[attr-defined]
    assert "[/red] (4 records)" in shown and "100%" in shown


def test_what_was_done_before_does_not_count_for_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, *[10.0] * 9])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    standing = Standing("train", 100, unit="steps", done=80)
    assert standing.left_s is None
    standing.done = 90
    assert standing.left_s == 10.0 and standing.text == "train      90% of 100 steps in 10 s, about 10 s left"
