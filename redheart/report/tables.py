"""Markdown tables."""

from collections.abc import Sequence

from redheart.evaluate.evaluation import Estimate, Evaluation


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the first column is text, the others are aligned right."""
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join(["---", *["--:"] * (len(header) - 1)]) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def estimate_text(estimate: Estimate | None) -> str:
    """A metric with its interval; a dash where it was not measured."""
    if estimate is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def comparison_table(evaluations: dict[str, Evaluation]) -> str:
    """Models and baselines side by side, one row per metric."""
    rows = []
    metrics: dict[tuple[str, str], None] = {}
    for evaluation in evaluations.values():
        for task, found in evaluation.tasks.items():
            metrics |= {(task, metric): None for metric in found}
    for task, metric in metrics:
        values = [evaluation.tasks.get(task, {}).get(metric) for evaluation in evaluations.values()]
        rows.append([f"{task}: {metric}", *[estimate_text(value) for value in values]])
    return markdown_table(["metric", *evaluations], rows)
