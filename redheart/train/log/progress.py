"""What a person sees while a run trains: a bar per epoch with the loss and the run's time left, then one line."""

import io
import sys
from types import TracebackType
from typing import Any, TextIO

from redheart.core.progress import Ticker, duration_text, silence_stdout
from redheart.train.learner import Validation
from redheart.train.log.events import Event

_OVERFIT_RISE = 0.005
"""Rise of the validation loss over its best, relative, that is worth a word; noise stays below."""


def overfit_text(epochs: list[Event]) -> str | None:
    """What there is to say if the validation loss of these `epoch` events has risen since it was lowest."""
    best = min(epochs, key=lambda event: event["val_loss"])
    rise = epochs[-1]["val_loss"] / best["val_loss"] - 1
    if rise <= _OVERFIT_RISE:
        return None
    return (
        f"the validation loss was {best['val_loss']:.4f} after epoch {best['epoch']} of {len(epochs)} and is "
        f"{rise:.1%} higher now; try a larger --train.weight-decay"
    )


class _Output:
    """Standard output for as long as it can be written to: a run must not end by it, nor by what rich makes of it."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._give_up()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._give_up()

    def _give_up(self) -> None:
        silence_stdout()
        self._stream = io.StringIO()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class ProgressDisplay:
    """A rich progress bar; elsewhere than in a terminal a line when none has come for a while; or nothing."""

    def __init__(self, *, shown: bool):
        self._progress = None
        self._epoch = self._standing = ""
        self._ticker: Ticker | None = None
        if shown:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]:.4f}"),
                TextColumn("{task.fields[left]}"),
                console=Console(file=_Output(sys.stdout)),  # type: ignore[arg-type]
                transient=True,
            )
            self._task = self._progress.add_task("", total=1, loss=float("nan"), left="")
            if not self._progress.console.is_terminal:
                self._ticker = Ticker(lambda: self.note("train", self._standing or "starting"))

    def __enter__(self) -> "ProgressDisplay":
        if self._progress:
            self._progress.start()
        if self._ticker:
            self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ticker:
            self._ticker.close()
        if self._progress:
            self._progress.stop()

    def note(self, name: str, text: str) -> None:
        """Print a line that stays, in the form of the other phases' lines."""
        if self._progress:
            self._progress.console.print(
                f"{name:<11}{text}", soft_wrap=True, highlight=False, markup=False, emoji=False
            )
        if self._ticker:
            self._ticker.said()

    def start_epoch(self, epoch: int, epochs: int, steps: int, *, done: int) -> None:
        """A new bar."""
        self._epoch, self._steps, self._step = f"epoch {epoch}/{epochs}", steps, done
        if self._progress:
            task, name = self._task, self._epoch
            self._progress.reset(task, total=steps, completed=done, description=name, loss=float("nan"), left="")

    def step(self, loss: float, *, left_s: float | None) -> None:
        """One optimizer step is done; the run takes `left_s` more seconds, if that is known."""
        if self._progress:
            left = "" if left_s is None else f"{duration_text(left_s)} left"
            self._step += 1
            self._standing = f"{self._epoch}, step {self._step} of {self._steps}, loss {loss:.4f}" + f", {left}" * bool(
                left
            )
            self._progress.update(self._task, advance=1, loss=loss, left=left)

    def end_epoch(self, validation: Validation | None) -> None:
        """Print the epoch's line."""
        if self._progress and validation:
            metrics = "  ".join(f"{name} {value:.4f}" for name, value in validation.metrics.items())
            line = f"{self._epoch}  val loss {validation.loss:.4f}  {metrics}"
            self._progress.console.print(line, markup=False, emoji=False)
        if self._ticker:
            self._ticker.said()
