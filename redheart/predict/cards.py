"""Predictions for people: one card a text, bars beside the numbers; and for machines: one JSON line a text."""

import json
import unicodedata

from rich.bar import Bar
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from redheart.predict.predictor import Prediction

_WIDTH, _BAR_CELLS, _TITLE_CHARS = 80, 30, 60
_OTHER_CELLS = 30
"""Of a line: the name, the number, frame and gaps."""


def print_card(console: Console, prediction: Prediction, *, text: str) -> None:
    """Print what was predicted of a text; the shares of the distribution are sorted, the largest first."""
    width = min(console.width, _WIDTH)
    is_ascii = console.options.ascii_only
    bar_cells = max(1, min(_BAR_CELLS, width - _OTHER_CELLS))
    parts: list[Text | Table] = []
    for task, values in prediction.tasks.items():
        table = Table.grid(padding=(0, 2))
        table.add_column(min_width=14, no_wrap=True)
        table.add_column(width=bar_cells)
        table.add_column(justify="right", no_wrap=True)
        is_distribution = task == "emotion"
        items = sorted(values.items(), key=lambda item: -item[1]) if is_distribution else values.items()
        for name, value in items:
            color = "red" if is_distribution else "blue"
            bar: Bar | Text = Bar(1, 0, value, width=bar_cells, color=color)
            if is_ascii:
                # A terminal without UTF-8 has no eighths of a block.
                bar = Text("#" * round(value * bar_cells))
            # A string would be read as rich's markup, in which `[neutral]` is nothing to be seen.
            table.add_row(Text(_on_a_line(name)), bar, f"{value:.1%}" if is_distribution else f"{value:.2f}")
        parts += [Text(task, style="bold"), table]
    line = _on_a_line(text)
    title = Text(line if len(line) <= _TITLE_CHARS else line[: _TITLE_CHARS - 1] + "…")
    console.print(Panel(Group(*parts), title=title, title_align="left", width=width))


def _on_a_line(text: str) -> str:
    """Without control characters: a terminal obeys them, and texts come from anywhere."""
    return "".join(character for character in " ".join(text.split()) if unicodedata.category(character) != "Cc")


def json_line(prediction: Prediction, *, ascii_only: bool = False) -> str:
    """`{"id": …, "emotion": {…}, …}` on one line; beside the id an `unread_script`, where there is one.

    `ascii_only` is for standard output, whose encoding may be any.
    """
    unread = {"unread_script": prediction.unread_script} if prediction.unread_script else {}
    return json.dumps({"id": prediction.id, **unread, **prediction.tasks}, ensure_ascii=ascii_only)
