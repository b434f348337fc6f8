"""Predictions for people: one card a text, bars beside the numbers; and for machines: one JSON line a text."""

import json

from rich.bar import Bar
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from redheart.predict.predictor import Prediction

_BAR_CELLS = 30
_TITLE_CHARS = 60


def print_card(console: Console, prediction: Prediction, *, text: str) -> None:
    """Print what was predicted of a text; the shares of the distribution are sorted, the largest first."""
    parts: list[Text | Table] = []
    for task, values in prediction.tasks.items():
        table = Table.grid(padding=(0, 2))
        table.add_column(min_width=14)
        table.add_column(width=_BAR_CELLS)
        table.add_column(justify="right")
        is_distribution = task == "emotion"
        items = sorted(values.items(), key=lambda item: -item[1]) if is_distribution else values.items()
        for name, value in items:
            bar = Bar(1, 0, value, width=_BAR_CELLS, color="red" if is_distribution else "blue")
            table.add_row(name, bar, f"{value:.1%}" if is_distribution else f"{value:.2f}")
        parts += [Text(task, style="bold"), table]
    line = " ".join(text.split())
    title = Text(line if len(line) <= _TITLE_CHARS else line[: _TITLE_CHARS - 1] + "…")
    console.print(Panel(Group(*parts), title=title, title_align="left", width=min(console.width, 80)))


def json_line(prediction: Prediction) -> str:
    """`{"id": …, "emotion": {…}, …}` on one line."""
    return json.dumps({"id": prediction.id, **prediction.tasks}, ensure_ascii=False)
