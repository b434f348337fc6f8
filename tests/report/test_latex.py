"""Tables for a paper: LaTeX that compiles whatever a name holds, and CSV that holds the run's figures exactly."""

import csv
import json
import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from redheart.core.text import csv_table
from redheart.report.latex import escaped, latex_table


def test_a_run_s_tables_hold_its_figures(finished_run: Path) -> None:
    tables = finished_run / "report" / "tables"
    assert {item.name for item in tables.iterdir()} == {
        f"{name}.{kind}" for name in ("data", "model", "results") for kind in ("tex", "csv")
    }
    found = json.loads((finished_run / "evaluation" / "evaluation.json").read_text())
    with (tables / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    evaluations = {**found["models"], **found["baselines"]}
    assert len(rows) == sum(len(metrics) for item in evaluations.values() for metrics in item["tasks"].values())
    for row in rows:
        estimate = evaluations[row["model"]]["tasks"][row["task"]][row["metric"]]
        assert float(row["value"]) == estimate["value"]
        assert (float(row["low_95"]) if row["low_95"] else None) == estimate["low"]
    with (tables / "model.csv").open() as file:
        counts = {row["module"]: int(row["parameters"]) for row in csv.DictReader(file)}
    assert counts.pop("total") == sum(counts.values()) > 100_000
    for path in tables.glob("*.tex"):
        lines = path.read_text().splitlines()
        (columns,) = re.findall(r"\\begin\{tabular\}\{(l r*|lr*)\}", lines[0])
        body = [line for line in lines if line.endswith(r" \\")]
        assert len(body) > 3 and all(len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1 for line in body)


@given(st.text(max_size=50))
def test_special_characters_are_escaped(text: str) -> None:
    found = escaped(text)
    depth = 0
    for token in re.findall(r"\\[a-z]+|\\.|.", found, re.DOTALL):
        assert token not in ("&", "%", "#", "_", "~", "^", "<", ">", "|", "\n", "\r")
        depth += {"{": 1, "}": -1}.get(token, 0)
        assert depth >= 0
    assert depth == 0 and found.count("$") % 2 == found.count(r"\$") % 2


def test_by_hand() -> None:
    assert escaped("50 % of a_b & -1.5 [-2, 3] e-mail 1e-5") == r"50 \% of a\_b \& $-$1.5 [$-$2, 3] e-mail 1e-5"
    assert escaped("a<b>|c") == r"a\textless{}b\textgreater{}\textbar{}c"
    assert latex_table(["a", "b"], [["x", "1"]]).splitlines() == [
        r"\begin{tabular}{lr}",
        r"\hline",
        r"a & b \\",
        r"\hline",
        r"x & 1 \\",
        r"\hline",
        r"\end{tabular}",
    ]
    assert csv_table(["a"], [[0.1], [None], ["x,y"]]) == 'a\n0.1\n""\n"x,y"\n'
