"""Selection strategies: each is one function from a problem to a choice."""

from collections.abc import Callable

import numpy as np

from redheart.core.errors import BadInput
from redheart.select.problem import Choice, GroupChoice, SelectionProblem

# Two scores closer than this share of their size count as equal; the lower variance then decides.
_TIE = 1e-4


def best_single(problem: SelectionProblem) -> Choice:
    """The one snapshot with the lowest final loss."""
    return _everywhere(problem, (_anchor(problem),), "lowest final loss")


def last(problem: SelectionProblem) -> Choice:
    """The last snapshot."""
    return _everywhere(problem, (problem.epochs[-1],), "last epoch")


def last_three(problem: SelectionProblem) -> Choice:
    """The mean of the weights of the last three snapshots."""
    return _everywhere(problem, problem.epochs[-3:], "mean of the last three")


def uniform(problem: SelectionProblem) -> Choice:
    """The mean of the weights of all snapshots."""
    return _everywhere(problem, problem.epochs, "mean of all")


def design(problem: SelectionProblem) -> Choice:
    """The original design's procedure: every group at the epoch where its own modules' loss is lowest.

    Its faults are mended: the score is the group's own loss, each predictor's divided by its lowest, plus the
    overfit penalty max(0, validation - training); all snapshots are candidates for every group; ties go to the
    lower variance over the records; a group without a loss of its own takes the anchor, the best single snapshot.
    """
    anchor = _anchor(problem)
    groups = {}
    for group, modules in problem.groups.items():
        predictors = problem.measured(modules)
        if not predictors:
            groups[group] = GroupChoice((anchor,), None, "no loss of its own: the anchor")
            continue
        scores_E = np.mean([_penalised(problem, name) for name in predictors], axis=0)
        variances_E = np.mean([np.nanvar(problem.losses_EN[name], axis=1) for name in predictors], axis=0)
        tied = np.flatnonzero(scores_E <= scores_E.min() * (1 + _TIE))
        best = int(tied[np.argmin(variances_E[tied])])
        reason = "lowest own loss" if len(tied) == 1 else f"lowest variance of {len(tied)} tied epochs"
        groups[group] = GroupChoice((problem.epochs[best],), tuple(scores_E.tolist()), reason)
    return Choice(anchor, groups)


STRATEGIES: dict[str, Callable[[SelectionProblem], Choice]] = {
    "design": design,
    "best-single": best_single,
    "last": last,
    "last-three": last_three,
    "uniform": uniform,
}


def strategy_named(name: str) -> Callable[[SelectionProblem], Choice]:
    """The strategy called `name`.

    Raises:
        BadInput: there is none of that name.
    """
    if name not in STRATEGIES:
        raise BadInput(
            "unknown selection strategy", where="--select.strategy", got=name, expected=", ".join(STRATEGIES)
        )
    return STRATEGIES[name]


def _anchor(problem: SelectionProblem) -> int:
    return problem.epochs[int(np.argmin(problem.final_losses_E()))]


def _everywhere(problem: SelectionProblem, epochs: tuple[int, ...], reason: str) -> Choice:
    return Choice(_anchor(problem), {group: GroupChoice(epochs, None, reason) for group in problem.groups})


def _penalised(problem: SelectionProblem, predictor: str) -> np.ndarray:
    losses_E = problem.mean_losses_E(predictor)
    penalty_E = np.maximum(0.0, losses_E - problem.train_losses_E[predictor])
    scores: np.ndarray = (losses_E + penalty_E) / losses_E.min()
    return scores
