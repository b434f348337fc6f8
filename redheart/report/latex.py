"""Tables for a paper: LaTeX that needs no package, and the same figures unrounded as CSV.

Names in other scripts than Latin's need XeLaTeX or LuaLaTeX, and a font that has them.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from redheart.core.files import write_bytes
from redheart.core.text import csv_table
from redheart.data.prepare import Manifest
from redheart.evaluate.evaluation import Evaluation
from redheart.report.tables import RECORDS, comparison_rows

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\n": " ",
    "\r": " ",
    "–": "--",
}


def write_tables(
    out: Path,
    *,
    manifest: Manifest,
    ledger_rows: Sequence[tuple[str, int]],
    evaluations: Mapping[str, Evaluation] | None,
) -> None:
    """Write `data`, `model` and, where there is an evaluation, `results` as `.tex` and `.csv`.

    `ledger_rows` are the numbers of parameters by module and in all, `evaluations` models and baselines by name.
    """
    data = [(part, getattr(manifest, part)) for part in RECORDS]
    texts = {}
    for name, heads, rows in (("data", ("", "records"), data), ("model", ("module", "parameters"), ledger_rows)):
        texts[f"{name}.tex"] = latex_table(heads, [[label, f"{number:,}"] for label, number in rows])
        texts[f"{name}.csv"] = csv_table((heads[0] or "part", heads[1]), rows)
    if evaluations:
        texts["results.tex"] = latex_table(["metric", *evaluations], comparison_rows(evaluations))
        texts["results.csv"] = _results_csv(evaluations)
    for name, text in texts.items():
        write_bytes(out / name, text.encode())


def latex_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A `tabular`; the first column is text, the others are aligned right."""
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\hline", _line(header), r"\hline"]
    return "\n".join([*lines, *[_line(row) for row in rows], r"\hline", r"\end{tabular}", ""])


def escaped(text: str) -> str:
    """Text that LaTeX prints as it stands."""
    plain = "".join(_SPECIAL.get(character, character) for character in text)
    # In text a minus would be set as a hyphen.
    return re.sub(r"(?<![\w.-])-(?=\d)", "$-$", plain)


def _line(cells: Sequence[str]) -> str:
    return " & ".join(escaped(cell) for cell in cells) + r" \\"


def _results_csv(evaluations: Mapping[str, Evaluation]) -> str:
    rows = [
        (name, task, metric, estimate.value, estimate.low, estimate.high)
        for name, evaluation in evaluations.items()
        for task, found in evaluation.tasks.items()
        for metric, estimate in found.items()
    ]
    return csv_table(["model", "task", "metric", "value", "low_95", "high_95"], rows)
