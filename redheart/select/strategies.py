"""All selection strategies by name. A new one is a function from a search to a choice, and a line in `STRATEGIES`."""

from collections.abc import Callable

import numpy as np

from redheart.core.config import SelectConfig
from redheart.core.errors import BadInput
from redheart.select.descent import budget_evaluations, coordinate, epochs_alone, window, windows
from redheart.select.problem import Choice, GroupSpot, Score, SelectionProblem
from redheart.select.scoring import size_of
from redheart.select.search import Search
from redheart.snapshots.blend import Blend, mean_of, single, weighted

EMA_DECAY = 0.7
"""Weight of a snapshot relative to the next later one."""
# Two scores closer than this share of their size count as equal; the lower variance then decides.
_TIE = 1e-4


def design(search: Search) -> Choice:
    """The original design's procedure: every group at the epoch where its own modules' loss is lowest.

    Its faults are mended: the score is the group's own loss, each predictor's divided by its lowest, plus the
    overfit penalty max(0, validation - training); all snapshots are candidates for every group; ties go to the
    lower variance over the records; a group without a loss of its own takes the anchor, the best single snapshot.
    """
    problem, chosen = search.problem, {}
    for name, members in problem.units(search.settings.level).items():
        predictors = problem.measured(members)
        if not predictors:
            chosen[name] = GroupSpot(members, single(problem.best_epoch), "no loss of its own: the anchor")
            continue
        scores_E = np.mean([_penalised(problem, predictor) for predictor in predictors], axis=0)
        variances_E = np.mean([np.nanvar(problem.losses_EN[predictor], axis=1) for predictor in predictors], axis=0)
        tied = np.flatnonzero(scores_E <= scores_E.min() + _TIE * abs(scores_E.min()))
        best = int(tied[np.argmin(variances_E[tied])])
        reason = "lowest own loss" if len(tied) == 1 else f"lowest variance of {len(tied)} tied epochs"
        chosen[name] = GroupSpot(members, single(problem.epochs[best]), reason, _scores(problem, scores_E))
    return chosen


def best_single(search: Search) -> Choice:
    """The one snapshot with the lowest score."""
    problem = search.problem
    scores = _scores(problem, problem.scores_EN.mean(1))
    return everywhere(search, single(problem.best_epoch), "lowest score", scores)


def last(search: Search) -> Choice:
    """The last snapshot."""
    return everywhere(search, single(search.problem.epochs[-1]), "last epoch")


def last_k(search: Search) -> Choice:
    """The mean of the last `last_k` snapshots."""
    chosen = search.problem.epochs[-search.settings.last_k :]
    return everywhere(search, mean_of(chosen), f"mean of the last {len(chosen)}")


def uniform(search: Search) -> Choice:
    """The mean of all snapshots."""
    return everywhere(search, mean_of(search.problem.epochs), "mean of all")


def snapshot_ema(search: Search) -> Choice:
    """An exponential moving average over the snapshots; the run keeps none over its optimizer steps."""
    epochs = search.problem.epochs
    blend = weighted({epoch: EMA_DECAY**age for age, epoch in enumerate(reversed(epochs))})
    return everywhere(search, blend, f"moving average over snapshots, decay {EMA_DECAY}")


def everywhere(search: Search, blend: Blend, reason: str, scores: list[Score] | None = None) -> Choice:
    """The same mixture for every unit."""
    units = search.problem.units(search.settings.level)
    return {name: GroupSpot(members, blend, reason, scores or []) for name, members in units.items()}


def _scores(problem: SelectionProblem, scores_E: np.ndarray) -> list[Score]:
    return [Score(single(epoch), score) for epoch, score in zip(problem.epochs, scores_E.tolist(), strict=True)]


Strategy = Callable[[Search], Choice]

STRATEGIES: dict[str, Strategy] = {
    "design": design,
    "best-single": best_single,
    "last": last,
    "last-k": last_k,
    "snapshot-ema": snapshot_ema,
    "uniform": uniform,
    "window": window,
    "coordinate": coordinate,
}

BASELINES = ("last", "last-k", "snapshot-ema", "uniform", "design")
"""What every choice is shown beside: they cost one evaluation each."""


def most_evaluations(problem: SelectionProblem, settings: SelectConfig) -> float:
    """Full-model evaluations that a sweet spot may cost: a descent's budget, and what the choice is shown beside."""
    descents = {"coordinate": epochs_alone, "window": windows}
    candidates = descents.get(settings.strategy)
    budget = budget_evaluations(problem, settings, candidates(problem)) if candidates else 0.0
    # The best single snapshot and the choice too, where no descent has looked at them.
    return budget + len(BASELINES) + (0 if candidates else 2)


def strategy_named(name: str) -> Strategy:
    """The strategy called `name`.

    Raises:
        BadInput: there is none of that name.
    """
    if name not in STRATEGIES:
        raise BadInput(
            "unknown selection strategy", where="--select.strategy", got=name, expected=", ".join(STRATEGIES)
        )
    return STRATEGIES[name]


def _penalised(problem: SelectionProblem, predictor: str) -> np.ndarray:
    losses_E = problem.mean_losses_E(predictor)
    penalty_E = np.maximum(0.0, losses_E - problem.train_losses_E[predictor])
    return (losses_E + penalty_E) / size_of(losses_E.min())
