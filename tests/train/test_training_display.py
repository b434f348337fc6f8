"""What training says when it is over."""

import errno
import io
import json
import os
import sys
from dataclasses import asdict
from typing import Literal

import pytest

from redheart.core.config import StudyConfig
from redheart.study.phases import overfit_text, say
from redheart.train.log.display import TrainingDisplay
from redheart.train.log.pace import Outcome


def test_a_run_that_overfits_is_told_so() -> None:
    epochs = [{"epoch": n, "val_loss": loss} for n, loss in enumerate((0.60, 0.58, 0.59, 0.61), start=1)]
    assert overfit_text(epochs) == (
        "the validation loss was 0.5800 after epoch 2 of 4 and is 5.2% higher now; try a larger --train.weight-decay"
    )
    assert overfit_text(epochs[:2]) is None


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


START = {"event": "start", "epochs": 2, "steps_per_epoch": 4, "steps": 7, "step": 4}
STEP = {"event": "step", "epoch": 2, "step": 6, "loss": 0.25}
EPOCH = {"event": "epoch", "epoch": 2, "val_loss": 0.5, "val_metrics": {"[/red]": 0.25, ":smile:": 1.0}}
END = {"event": "end", **asdict(Outcome(3.0, 0.5, None))}


def shown(form: Literal["bar", "json"], stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "stdout", stream)
    display = TrainingDisplay(form)
    for event in (START, STEP, EPOCH, END):
        display.write(event)
    display.close(exit_code=0)
    return stream.getvalue()


def test_a_person_sees_epochs_and_a_bar_where_there_is_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    lines = "epoch 2/2  val loss 0.5000  [/red] 0.2500  :smile: 1.0000\ntime       took 3 s\n"
    assert shown("bar", io.StringIO(), monkeypatch) == lines
    told = shown("bar", Terminal(), monkeypatch)
    assert all(line in told for line in lines.splitlines())


def test_a_program_is_told_every_event(monkeypatch: pytest.MonkeyPatch) -> None:
    told = shown("json", Terminal(), monkeypatch).splitlines()
    assert [json.loads(line) for line in told] == [START, STEP, EPOCH, END]


@pytest.mark.parametrize("form", ["bar", "json"])
def test_without_a_bar_a_line_says_where_training_stands(
    form: Literal["bar", "json"], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    display = TrainingDisplay(form)
    display.write(START)
    display.write(STEP)
    capsys.readouterr()
    display._tell()
    display.close(exit_code=0)
    told = capsys.readouterr().out
    if form == "json":
        found = json.loads(told)
        assert (found["event"], found["done"], found["total"]) == ("progress", 6, 7)
    else:
        assert told == "train      epoch 2/2, step 2 of 3, loss 0.2500, 0 s left\n"


class Full(io.StringIO):
    """Standard output that cannot be written to."""

    def __init__(self, number: int):
        super().__init__()
        self.number, self.tries = number, 0

    def write(self, text: str) -> int:
        self.tries += 1
        raise OSError(self.number, "planted")


@pytest.mark.parametrize("form", ["bar", "json"])
@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC, errno.EIO])
def test_what_cannot_be_written_ends_no_run(
    form: Literal["bar", "json"], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Full(number)
    shown(form, stream, monkeypatch)
    assert stream.tries == 1


def test_a_line_of_a_phase_that_cannot_be_written_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        say(StudyConfig(), "train", "done")
        # What is left goes to nowhere, so that Python's last flush does not fail either.
        stream.flush()


@pytest.mark.parametrize("form", ["bar", "json"])
def test_what_nobody_reads_ends_no_run(form: Literal["bar", "json"], monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    # Python flushes what is left when it closes it.
    with open(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        display = TrainingDisplay(form)
        for _ in range(3):
            display.write(START | {"val_loss": 0.5})
            display.write(EPOCH)
        display.close(exit_code=0)
