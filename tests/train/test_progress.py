"""What training says when it is over."""

import errno
import io
import os
import sys

import pytest
from rich.console import Console

from redheart.core.config import StudyConfig
from redheart.core.errors import DiskError
from redheart.study.phases import say
from redheart.train.learner import Validation
from redheart.train.log.json_lines import JsonLines
from redheart.train.log.progress import ProgressDisplay, overfit_text


def test_a_run_that_overfits_is_told_so() -> None:
    epochs = [{"epoch": n, "val_loss": loss} for n, loss in enumerate((0.60, 0.58, 0.59, 0.61), start=1)]
    assert overfit_text(epochs) == (
        "the validation loss was 0.5800 after epoch 2 of 4 and is 5.2% higher now; try a larger --train.weight-decay"
    )
    assert overfit_text(epochs[:2]) is None


@pytest.mark.parametrize("name", ["[/red]", "[bold]x[/]", ":smile:"])
def test_what_looks_like_markup_is_printed_as_it_is(name: str) -> None:
    display = ProgressDisplay(shown=True)
    assert display._progress is not None
    file = io.StringIO()
    display._progress.live.console = Console(file=file, width=120)
    display.note("wandb", f"offline in {name}")
    display.end_epoch(Validation(0.5, {}, {}, {name: 0.25}, {}))
    assert f"offline in {name}\n" in file.getvalue() and f"{name} 0.2500" in file.getvalue()


class Full(io.StringIO):
    """Standard output that cannot be written to."""

    def __init__(self, number: int):
        super().__init__()
        self.number, self.tries = number, 0

    def write(self, text: str) -> int:
        self.tries += 1
        raise OSError(self.number, "planted")


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC, errno.EIO])
def test_lines_that_cannot_be_written_end_no_run(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Full(number)
    monkeypatch.setattr(sys, "stdout", stream)
    lines = JsonLines()
    for step in range(3):
        lines.write({"event": "step", "step": step})
    lines.close(exit_code=0)
    assert stream.tries == 1


def test_a_bar_that_cannot_be_written_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Full(errno.ENOSPC)
    monkeypatch.setattr(sys, "stdout", stream)
    with ProgressDisplay(shown=True) as display:
        display.note("time", "an hour")
        display.end_epoch(Validation(0.5, {}, {}, {}, {}))
    assert stream.tries == 1


def test_a_bar_on_a_full_disk_hides_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Full(errno.ENOSPC))
    with pytest.raises(DiskError), ProgressDisplay(shown=True):
        raise DiskError("cannot write: no space left on the disk")


def test_a_line_of_a_phase_that_cannot_be_written_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        say(StudyConfig(), "train", "done")
        # What is left goes to nowhere, so that Python's last flush does not fail either.
        stream.flush()


def test_a_bar_that_nobody_reads_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    # Python flushes what is left when it closes it.
    with open(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with ProgressDisplay(shown=True) as display:
            for _ in range(3):
                display.note("time", "an hour")
