"""Markdown tables, and names that stand in Markdown as they are."""

import re
from collections.abc import Mapping, Sequence

from rich.cells import cell_len

from redheart.evaluate.evaluation import Estimate, Evaluation

RECORDS = ("read", "invalid", "duplicates", "train", "val_select", "val_confirm", "test")
"""Counts of a data set's manifest, as tables of records have them."""


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown, in columns as it stands too; the first is text, the others are aligned right."""
    cells = [[cell.replace("|", r"\|") for cell in row] for row in (header, *rows)]
    widths = [max(3, *map(cell_len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        gaps = [" " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)]
        aligned = [row[0] + gaps[0], *(gap + cell for gap, cell in zip(gaps[1:], row[1:], strict=True))]
        lines.append(f"| {' | '.join(aligned)} |")
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([lines[0], f"| {' | '.join(rule)} |", *lines[1:]])


def plain(text: str) -> str:
    """Markdown that reads as this text on one line, whatever is in it."""
    # Inside a word `_` means nothing, and most names have it there.
    return re.sub(r"([\\`*<>\[\]&~$#]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """Text between code marks, whatever is in it."""
    text = " ".join(text.split())
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"


def estimate_text(estimate: Estimate | None) -> str:
    """A metric with its interval; a dash where it was not measured."""
    if estimate is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def comparison_table(evaluations: Mapping[str, Evaluation]) -> str:
    """Models and baselines side by side, one row per metric."""
    rows = [[plain(name), *values] for name, *values in comparison_rows(evaluations)]
    return markdown_table(["metric", *evaluations], rows)


def comparison_rows(evaluations: Mapping[str, Evaluation]) -> list[list[str]]:
    """By metric: its name, then its value in every evaluation."""
    metrics = {
        (task, metric): None
        for evaluation in evaluations.values()
        for task, found in evaluation.tasks.items()
        for metric in found
    }
    return [
        [f"{task}: {metric}", *[estimate_text(item.tasks.get(task, {}).get(metric)) for item in evaluations.values()]]
        for task, metric in metrics
    ]
