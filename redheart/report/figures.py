"""Figures of a run, drawn from its files; no display is needed and no global state is touched."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from redheart.core.files import write_bytes

_LINE_STYLES = ("-", "--", ":")


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
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    for index, (name, (x, y)) in enumerate(series.items()):
        # Colours come round after ten lines.
        style = _LINE_STYLES[index // 10 % len(_LINE_STYLES)]
        (line,) = axes.plot(x, y, label=name, linewidth=1.4, linestyle=style, marker="." if len(x) < 12 else None)
        if marks and name in marks and marks[name] in x:
            axes.plot([marks[name]], [y[list(x).index(marks[name])]], "o", color=line.get_color(), markersize=8)
    if log_x:
        axes.set_xscale("log")
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    if len(series) > 1:
        axes.legend(fontsize=8, ncols=2 if len(series) > 8 else 1)
    save_png(figure, path)


def draw_heatmaps(
    path: Path,
    tables: Mapping[str, np.ndarray],
    *,
    labels: Sequence[str],
    title: str,
    xlabel: str,
    ylabel: str,
) -> None:
    """Square tables side by side in one picture, on one scale of colours around zero, with their values."""
    columns = min(4, len(tables))
    rows = -(-len(tables) // columns)
    figure = Figure(figsize=(2.4 * columns + 0.8, 2.5 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    bound = max(float(np.abs(table).max()) for table in tables.values()) or 1.0
    for axes in grid.flat[len(tables) :]:
        axes.set_visible(False)
    for axes, (name, table) in zip(grid.flat, tables.items(), strict=False):
        image = axes.imshow(table, cmap="RdBu", vmin=-bound, vmax=bound)
        axes.set_title(name, fontsize=9)
        axes.set_xticks(range(len(labels)), labels, fontsize=7)
        axes.set_yticks(range(len(labels)), labels, fontsize=7)
        if len(labels) <= 6:
            for (row, column), value in np.ndenumerate(table):
                colour = "white" if abs(value) > 0.6 * bound else "black"
                axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=6, color=colour)
    figure.colorbar(image, ax=grid, shrink=0.8)
    figure.suptitle(title, fontsize=10)
    figure.supxlabel(xlabel, fontsize=9)
    figure.supylabel(ylabel, fontsize=9)
    save_png(figure, path)


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, the same bytes at every call; raises as `write_bytes`."""
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content, metadata={"Software": None})
    write_bytes(path, content.getvalue())
