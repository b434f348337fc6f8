"""Figures of a run, drawn from its files; no display is needed and no global state is touched."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def draw_lines(
    path: Path,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    marks: Mapping[str, float] | None = None,
    log_x: bool = False,
) -> None:
    """Line plots in one picture; `marks` puts a dot at an x of a series."""
    figure, axes = _figure()
    for name, (x, y) in series.items():
        (line,) = axes.plot(x, y, label=name, linewidth=1.4, marker="." if len(x) < 12 else None)
        if marks and name in marks and marks[name] in x:
            axes.plot([marks[name]], [y[list(x).index(marks[name])]], "o", color=line.get_color(), markersize=8)
    if log_x:
        axes.set_xscale("log")
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    if len(series) > 1:
        axes.legend(fontsize=8, ncols=2 if len(series) > 8 else 1)
    _save(figure, path)


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(str(path), metadata={"Software": None})
