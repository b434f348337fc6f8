"""What a person sees while a run trains: a bar per epoch with the loss and the time left, then one line."""

from types import TracebackType

from redheart.train.learner import Validation


class ProgressDisplay:
    """A rich progress bar, or nothing where it is not shown."""

    def __init__(self, *, shown: bool):
        self._progress = None
        self._epoch = ""
        if shown:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]:.4f}"),
                TimeRemainingColumn(),
                transient=True,
            )
            self._task = self._progress.add_task("", total=1, loss=float("nan"))

    def __enter__(self) -> "ProgressDisplay":
        if self._progress:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress:
            self._progress.stop()

    def start_epoch(self, epoch: int, epochs: int, steps: int, *, done: int) -> None:
        """A new bar."""
        self._epoch = f"epoch {epoch}/{epochs}"
        if self._progress:
            self._progress.reset(self._task, total=steps, completed=done, description=self._epoch, loss=float("nan"))

    def step(self, loss: float) -> None:
        """One optimizer step is done."""
        if self._progress:
            self._progress.update(self._task, advance=1, loss=loss)

    def end_epoch(self, validation: Validation | None) -> None:
        """Print the epoch's line."""
        if self._progress and validation:
            metrics = "  ".join(f"{name} {value:.4f}" for name, value in validation.metrics.items())
            self._progress.console.print(f"{self._epoch}  val loss {validation.loss:.4f}  {metrics}")
