"""A run in the terminal: where it stands, its curves, memory, time left and last events."""

import time
from collections.abc import Callable

from rich.box import SIMPLE
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from redheart.core.progress import duration_text
from redheart.report.line_chart import line_chart, sparkline
from redheart.study.status import RunStatus

GIB = 1 << 30
COLOURS = {"running": "green", "finished": "bold green", "stopped": "red", "silent": "yellow", "waiting": "dim"}
CHART_LINES = 10
SPARK_CHARS = 24


def watch(read: Callable[[], RunStatus], *, name: str, every_s: float) -> None:
    """Show a run until it has finished or stopped, or Ctrl-C."""
    console = Console()
    with Live(console=console, auto_refresh=False) as live:
        while True:
            status = read()
            live.update(frame(status, name=name, width=console.width), refresh=True)
            if status.state in ("finished", "stopped"):
                return
            time.sleep(every_s)


def print_once(status: RunStatus, *, name: str) -> None:
    """One frame on standard output."""
    console = Console()
    console.print(frame(status, name=name, width=console.width))


def frame(status: RunStatus, *, name: str, width: int) -> RenderableType:
    """Everything that is known of a run, `width` characters wide."""
    parts: list[RenderableType] = [_head(status, name)]
    if status.trials and not status.step:
        parts.append(_trials(status))
    if status.step:
        parts.append(_figures(status))
        parts.append(_curves(status, width))
    if status.val_module_loss:
        parts.append(_modules(status))
    parts += [Text(line, style="dim", no_wrap=True, overflow="ellipsis") for line in status.last_events]
    return Group(*parts)


def _head(status: RunStatus, name: str) -> Text:
    text = Text(f"{name}  ", style="bold")
    text.append(status.state, style=COLOURS[status.state])
    if status.why:
        text.append(f": {status.why}")
    if status.step:
        text.append(f"   epoch {status.epoch}/{status.epochs}, step {status.step:,}/{status.steps:,}")
    if status.time_left_s is not None:
        text.append(f"   {duration_text(status.time_left_s)} left", style="bold")
    text.append("\n")
    for phase, is_done in status.phases.items():
        text.append(f"{'●' if is_done else '○'} {phase}  ", style="green" if is_done else "dim")
    return text


def _figures(status: RunStatus) -> Columns:
    cells = {
        "learning rate": status.learning_rate and f"{status.learning_rate:.3g}",
        "gradient norm": status.grad_norm and f"{status.grad_norm:.3g}",
        "step": status.step_s and f"{status.step_s:.2f} s",
        "records a second": status.samples_per_s and f"{status.samples_per_s:.1f}",
        "host memory": _gib(status.host_rss_bytes),
        "host peak": _gib(status.host_peak_bytes),
        "device memory": _gib(status.device_used_bytes),
        "device peak": _gib(status.device_peak_bytes),
        "device busy": None if status.device_busy_percent is None else f"{status.device_busy_percent:.0f} %",
        "best epoch": status.best_epoch and str(status.best_epoch),
        **{name: f"{value:.4f}" for name, value in status.val_metrics.items()},
    }
    shown = [Text.assemble((label, "dim"), f" {value}") for label, value in cells.items() if value]
    return Columns(shown, padding=(0, 3))


def _curves(status: RunStatus, width: int) -> RenderableType:
    if len(status.val_loss) < 2:
        steps = [float(step) for step in range(1, len(status.step_loss) + 1)]
        return line_chart({"loss of every step": (steps, status.step_loss)}, width=width, height=CHART_LINES)
    epochs = [float(epoch) for epoch in range(1, len(status.val_loss) + 1)]
    return line_chart(
        {"training loss": (epochs, status.train_loss), "validation loss, by epoch": (epochs, status.val_loss)},
        width=width,
        height=CHART_LINES,
    )


def _modules(status: RunStatus) -> Table:
    table = Table(box=SIMPLE, padding=(0, 1))
    for heading in ("module", "validation loss", "best", "epoch"):
        table.add_column(heading, justify="left" if heading == "module" else "right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for name, losses in status.val_module_loss.items():
        known = [(loss, epoch) for epoch, loss in enumerate(losses, start=1) if loss is not None]
        best, last = min(known), known[-1]
        table.add_row(
            Text(name), f"{last[0]:.4f}", f"{best[0]:.4f}", str(best[1]), sparkline(losses, width=SPARK_CHARS)
        )
    return table


def _trials(status: RunStatus) -> Table:
    table = Table(box=SIMPLE, padding=(0, 1))
    for heading in ("learning rate", "epochs", "validation loss"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for trial in status.trials:
        loss = "" if trial.val_loss is None else f"{trial.val_loss:.4f}"
        table.add_row(f"{trial.rate}", str(trial.epochs), loss, Text(trial.stopped or ""))
    return table


def _gib(size: int | None) -> str | None:
    return None if size is None else f"{size / GIB:.2f} GiB"
