"""Line charts and sparklines of text: two by four dots a character, in Unicode's Braille block."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from rich.text import Text

COLOURS = ("cyan", "yellow", "magenta", "green", "red", "blue")
_BRAILLE = 0x2800
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bit of the dot in a row and column of a character, from its top left (Unicode 16, chapter 21.1)."""
_BARS = "▁▂▃▄▅▆▇█"
_LABEL_CHARS = 10

Series = Mapping[str, tuple[Sequence[float], Sequence[float | None]]]


def line_chart(series: Series, *, width: int, height: int) -> Text:
    """Curves in one picture with the ranges at its edges; points that are no numbers are left out.

    Args:
        series: x and y by name; x rises.
        width: characters in all, the labels of the vertical axis included.
        height: lines of the picture; the names and the horizontal axis take one more each.
    """
    curves = {name: _finite(x, y) for name, (x, y) in series.items()}
    points = [point for curve in curves.values() for point in curve]
    if not points:
        return Text("nothing to draw yet", style="dim")
    columns = max(1, width - _LABEL_CHARS - 1)
    left, right = _range([x for x, _ in points])
    low, high = _range([y for _, y in points])
    cells = [[0] * columns for _ in range(height)]
    styles = [[""] * columns for _ in range(height)]
    for colour, curve in zip(_cycled(len(curves)), curves.values(), strict=True):
        dots = [
            (
                round((x - left) / (right - left) * (2 * columns - 1)),
                round((high - y) / (high - low) * (4 * height - 1)),
            )
            for x, y in curve
        ]
        for column, row in _joined(dots):
            cells[row // 4][column // 2] |= _DOTS[row % 4][column % 2]
            styles[row // 4][column // 2] = colour
    chart = Text()
    for name, colour in zip(curves, _cycled(len(curves)), strict=True):
        chart.append(f"{'':{_LABEL_CHARS + 1}}" if not chart.plain else "  ")
        chart.append(f"─ {name}", style=colour)
    for row in range(height):
        label = high if row == 0 else low if row == height - 1 else None
        chart.append("\n" + ("" if label is None else _label(label)).rjust(_LABEL_CHARS) + "│", style="dim")
        for bits, style in zip(cells[row], styles[row], strict=True):
            chart.append(chr(_BRAILLE + bits) if bits else " ", style=style)
    ends = f"{left:g}", f"{right:g}"
    chart.append("\n" + " " * (_LABEL_CHARS + 1) + ends[0] + ends[1].rjust(columns - len(ends[0])), style="dim")
    return chart


def sparkline(values: Sequence[float | None], *, width: int) -> str:
    """A row of bars from the lowest to the highest value; the last `width` where there are more."""
    shown = list(values)[-width:]
    numbers = [value for value in shown if value is not None and math.isfinite(value)]
    if not numbers:
        return ""
    low, high = min(numbers), max(numbers)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    bars = [
        _BARS[round((value - low) * scale)] if value is not None and math.isfinite(value) else " " for value in shown
    ]
    return "".join(bars)


def _label(value: float) -> str:
    """As many of four digits as there is room for."""
    return next(text for digits in (4, 3, 2, 1) if len(text := f"{value:.{digits}g}") <= _LABEL_CHARS)


def _finite(x: Sequence[float], y: Sequence[float | None]) -> list[tuple[float, float]]:
    return [(a, b) for a, b in zip(x, y, strict=True) if b is not None and math.isfinite(b)]


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _cycled(count: int) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(count)]


def _joined(dots: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The dots with those between them."""
    found = list(dots[:1])
    for (x0, y0), (x1, y1) in pairwise(dots):
        steps = max(abs(x1 - x0), abs(y1 - y0), 1)
        found += [(x0 + (x1 - x0) * n // steps, round(y0 + (y1 - y0) * n / steps)) for n in range(1, steps + 1)]
    return found
