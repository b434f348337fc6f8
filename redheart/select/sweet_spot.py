"""The sweet spot of every module group, as a file."""

import msgspec

from redheart.select.problem import SelectionProblem
from redheart.select.strategies import strategy_named


class GroupSpot(msgspec.Struct, frozen=True):
    """What was chosen for one group."""

    modules: list[str]
    epochs: list[int]
    reason: str
    scores: list[float] | None


class SweetSpot(msgspec.Struct, frozen=True):
    """The result of one strategy."""

    strategy: str
    epochs: list[int]
    anchor_epoch: int
    num_candidates: int
    """Scores that were compared, over all groups."""
    groups: dict[str, GroupSpot]
    modules: dict[str, list[int]]
    curves: dict[str, list[float]]
    """Mean loss on the select records by predictor and snapshot."""


def find_sweet_spot(problem: SelectionProblem, strategy: str) -> SweetSpot:
    """Apply a strategy to a problem.

    Raises:
        BadInput: there is no such strategy.
    """
    choice = strategy_named(strategy)(problem)
    return SweetSpot(
        strategy=strategy,
        epochs=list(problem.epochs),
        anchor_epoch=choice.anchor_epoch,
        num_candidates=sum(len(group.scores_E or ()) for group in choice.groups.values()) + len(problem.epochs),
        groups={
            name: GroupSpot(
                list(problem.groups[name]), list(group.epochs), group.reason, list(group.scores_E or ()) or None
            )
            for name, group in choice.groups.items()
        },
        modules=choice.epochs_of_modules(problem),
        curves={name: problem.mean_losses_E(name).tolist() for name in problem.measured(tuple(problem.losses_EN))},
    )
