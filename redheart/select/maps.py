"""Pictures of a run's snapshots: what a module of one does in another, and what lies between two of them."""

from collections.abc import Sequence

import msgspec
import numpy as np

from redheart.select.scoring import size_of
from redheart.select.search import Search
from redheart.snapshots.blend import single, weighted

SHARES = (0.25, 0.5, 0.75)


class Line(msgspec.Struct, frozen=True):
    """The straight line in weight space from one snapshot to another (Frankle et al. 2020)."""

    epochs: tuple[int, int]
    shares: list[float]
    """Of the second snapshot."""
    scores: list[float]
    barrier_percent: float
    """Highest rise above the straight line between the ends' scores, in percent of their mean's size; 0 where none."""


class Maps(msgspec.Struct, frozen=True):
    """All on the select records; scores as in the sweet spot."""

    epochs: list[int]
    scores: list[float]
    """Of these snapshots as they are."""
    transplants: dict[str, list[list[float]]]
    """By group, row i and column j: percent by which snapshot j's loss falls with this group taken from snapshot i."""
    lines: list[Line]
    """From the best single snapshot to every other one."""
    evaluations: float
    """What they cost, in full-model evaluations as in the sweet spot."""


def draw_maps(search: Search) -> Maps:
    """Evaluate the transplants between, and the lines to, some snapshots spread evenly over the run."""
    epochs = spread_epochs(search.problem.epochs, search.problem.best_epoch, number=search.settings.map_epochs)
    units = search.problem.units(search.settings.level)
    scores = {}
    transplants = {name: [[0.0] * len(epochs) for _ in epochs] for name in units}
    for column, host in enumerate(epochs):
        base = search.everywhere(single(host))
        scores[host] = float(search.scores_N(base).mean())
        for name, members in units.items():
            for row, donor in enumerate(epochs):
                if donor != host:
                    changed = {**base, **dict.fromkeys(members, single(donor))}
                    score = float(search.scores_N(changed, base=base).mean())
                    transplants[name][row][column] = 100 * (scores[host] - score) / size_of(scores[host])
    best = search.problem.best_epoch
    lines = [_line(search, (best, epoch), (scores[best], scores[epoch])) for epoch in epochs if epoch != best]
    return Maps(list(epochs), [scores[epoch] for epoch in epochs], transplants, lines, search.spent)


def map_evaluations(search: Search) -> float:
    """Full-model evaluations that `draw_maps` costs, known once the search's evaluator has started."""
    number = min(search.settings.map_epochs, len(search.problem.epochs))
    units = search.problem.units(search.settings.level)
    transplants = number * (number - 1) * sum(search.cost(members) for members in units.values())
    return number + transplants + len(SHARES) * (number - 1)


def spread_epochs(epochs: Sequence[int], best: int, *, number: int) -> tuple[int, ...]:
    """The first, the last and evenly spread epochs between them; the nearest one gives way to the best."""
    chosen = {epochs[index] for index in np.linspace(0, len(epochs) - 1, min(number, len(epochs))).round().astype(int)}
    if best not in chosen:
        chosen.remove(min(chosen, key=lambda epoch: abs(epoch - best)))
        chosen.add(best)
    return tuple(sorted(chosen))


def _line(search: Search, ends: tuple[int, int], end_scores: tuple[float, float]) -> Line:
    blends = [weighted({ends[0]: 1 - share, ends[1]: share}) for share in SHARES]
    inner = [float(search.scores_N(search.everywhere(blend)).mean()) for blend in blends]
    shares, scores = [0.0, *SHARES, 1.0], [end_scores[0], *inner, end_scores[1]]
    straight = np.interp(shares, [0.0, 1.0], end_scores)
    rise = float(np.max(np.array(scores) - straight))
    return Line(ends, shares, scores, max(0.0, 100 * rise / size_of(float(np.mean(end_scores)))))
