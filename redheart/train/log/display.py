"""What a person or a program sees while a run trains: a bar and a line an epoch, lines alone, or JSON."""

import io
import json
import sys
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal, TextIO

from redheart.core.progress import Standing, Ticker, duration_text, silence_stdout
from redheart.train.log.pace import Estimate, Outcome

if TYPE_CHECKING:
    from rich.progress import Progress


class TrainingDisplay:
    """A sink that prints what happens; where there is no bar also where the training stands, when nothing came.

    The form `bar` is one in a terminal and lines elsewhere, `json` every event as an object a line.
    """

    wants_past = False

    def __init__(self, form: Literal["bar", "json"]):
        self._is_json, self._output = form == "json", _Output(sys.stdout)
        self._standing, self._line = Standing("train", 0, unit="steps"), "train      starting"
        self._bar = _bar(self._output) if sys.stdout.isatty() and not self._is_json else None
        self._task = self._bar.add_task("", total=1, loss=float("nan"), left="") if self._bar else None
        self._ticker: Ticker | None = None

    def write(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "start":
            self._epochs, self._steps = event["epochs"], event["steps_per_epoch"]
            self._total = event["steps"]
            self._standing = Standing("train", self._total, unit="steps", done=event["step"])
            if self._bar:
                self._bar.start()
            else:
                self._ticker = Ticker(self._tell).start()
        elif event["event"] == "step":
            self._standing.done = event["step"]
        if self._is_json:
            self._print(json.dumps(event))
        elif event["event"] == "step":
            self._show_step(event)
        elif event["event"] == "epoch":
            metrics = "  ".join(f"{name} {value:.4f}" for name, value in event["val_metrics"].items())
            self._print(f"epoch {event['epoch']}/{self._epochs}  val loss {event['val_loss']:.4f}  {metrics}")
        elif event["event"] in ("estimate", "end"):
            kind = Estimate if event["event"] == "estimate" else Outcome
            told = kind(**{field.name: event[field.name] for field in fields(kind)})
            self._print(f"{'time':<11}{told}")

    def close(self, *, exit_code: int) -> None:
        if self._ticker:
            self._ticker.close()
        if self._bar:
            self._bar.stop()

    def _show_step(self, event: Mapping[str, Any]) -> None:
        name, before = f"epoch {event['epoch']}/{self._epochs}", (event["epoch"] - 1) * self._steps
        done, steps = event["step"] - before, min(self._steps, self._total - before)
        loss = float("nan") if event["loss"] is None else event["loss"]
        left = "" if self._standing.left_s is None else f"{duration_text(self._standing.left_s)} left"
        self._line = f"train      {name}, step {done} of {steps}, loss {loss:.4f}" + f", {left}" * bool(left)
        if self._bar and self._task is not None:
            shown = {"completed": done, "total": steps, "description": name, "loss": loss, "left": left}
            self._bar.update(self._task, **shown)

    def _tell(self) -> None:
        self._print(json.dumps(self._standing.fields) if self._is_json else self._line)

    def _print(self, text: str) -> None:
        if self._bar:
            self._bar.console.print(text, soft_wrap=True, highlight=False, markup=False, emoji=False)
        else:
            print(text, file=self._output, flush=True)
        if self._ticker:
            self._ticker.said()


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


def _bar(output: _Output) -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TextColumn("{task.fields[left]}"),
        console=Console(file=output),  # type: ignore[arg-type]
        transient=True,
    )
