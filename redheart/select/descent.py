"""Conditional coordinate descent: one group at a time gets other weights, given the weights of all the others.

Every candidate costs what it changes and all that lies downstream of it, so a backbone costs a whole evaluation and a
head next to nothing. The budget is dealt out accordingly: a unit whose candidates cost c is given about 1 / sqrt(c) of
them, cheap units see every epoch, expensive ones a shortlist. A shortlist is coarse to fine: first the epochs that
look best in the stored outputs, then the neighbours of the best one found so far.

Shape suffix: C candidates.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from redheart.core.config import SelectConfig
from redheart.select.problem import Choice, GroupSpot, Score, SelectionProblem, blends_of
from redheart.select.scoring import size_of
from redheart.select.search import Search
from redheart.snapshots.blend import Blend, mean_of, single

WINDOW_WIDTHS = (1, 3, 5)
# Candidates of an earlier pass that a later one begins with; the one at work is among them.
_TRIED_AGAIN = 3


@dataclass(frozen=True)
class Candidates:
    """What a unit may be given."""

    blends: tuple[Blend, ...]
    neighbours: tuple[tuple[int, ...], ...]
    """By candidate, those that are next to it."""
    priors_C: Callable[[Sequence[str]], np.ndarray]
    """How good each looks for these modules before it is tried; lower is better."""


def coordinate(search: Search) -> Choice:
    """Every unit from the epoch that is best given the others."""
    return descend(search, epochs_alone(search.problem))


def window(search: Search) -> Choice:
    """Every unit from the window of 1, 3 or 5 neighbouring snapshots whose mean is best given the others."""
    return descend(search, windows(search.problem))


def windows(problem: SelectionProblem, widths: Sequence[int] = WINDOW_WIDTHS) -> Candidates:
    """Means over so many neighbouring snapshots; neighbours are one snapshot on, or one width up or down."""
    number = len(problem.epochs)
    spans = [(start, width) for width in widths if width <= number for start in range(number - width + 1)]
    index_of = {span: index for index, span in enumerate(spans)}
    near = []
    for start, width in spans:
        beside = [(start - 1, width), (start + 1, width), (start - 1, width + 2), (start + 1, width - 2)]
        near.append(tuple(index_of[span] for span in beside if span in index_of))

    def priors_C(members: Sequence[str]) -> np.ndarray:
        looks_E = prior_E(problem, members)
        return np.array([looks_E[start : start + width].mean() for start, width in spans])

    blends = tuple(mean_of(problem.epochs[start : start + width]) for start, width in spans)
    return Candidates(blends, tuple(near), priors_C)


def epochs_alone(problem: SelectionProblem) -> Candidates:
    """Single snapshots."""
    return windows(problem, (1,))


def prior_E(problem: SelectionProblem, members: Sequence[str]) -> np.ndarray:
    """How good each snapshot looks for some modules: their own losses where they predict, else the whole model's."""
    predictors = problem.measured(members)
    if not predictors:
        return problem.scores_EN.mean(1)
    curves = [problem.mean_losses_E(name) for name in predictors]
    return np.mean([curve / size_of(curve.min()) for curve in curves], axis=0)


def descend(search: Search, candidates: Candidates) -> Choice:
    """Improve an anchor unit by unit; a change is kept if it lowers the mean score, by more than `min_z` errors."""
    settings = search.settings
    units = search.problem.units(settings.level)
    search.naive += naive_evaluations(search.problem, settings, candidates)
    budget = budget_evaluations(search.problem, settings, candidates)
    anchor = find_anchor(search)
    chosen = {name: GroupSpot(members, anchor, "the anchor") for name, members in units.items()}
    current = blends_of(chosen)
    search.scores_N(current)
    # What later passes begin with: the conditional scores that were seen, or else the look of the stored outputs.
    seen: dict[str, dict[int, float]] = {name: {} for name in units}
    for turn in range(settings.passes):
        # The first pass finds, the later ones look around what was found: they share a third.
        later = settings.passes - 1 - turn
        limit = search.spent + (budget - search.spent) * (2 / 3 if turn == 0 and later else 1 / (later + 1))
        shares = {name: max(search.cost(units[name]), 1e-6) for name in units}
        counts = deal(limit - search.spent, shares, most=len(candidates.blends) - 1)
        for name, members in units.items():
            found = _improve(search, name, members, candidates, current, seen[name], counts[name], limit)
            if found is not None:
                chosen[name] = found
                current = blends_of(chosen)
    for name in units:
        scores = [Score(candidates.blends[index], score) for index, score in sorted(seen[name].items())]
        chosen[name] = msgspec.structs.replace(chosen[name], scores=scores)
    return chosen


def naive_evaluations(problem: SelectionProblem, settings: SelectConfig, candidates: Candidates) -> int:
    """Full-model evaluations of every candidate of every unit and pass as a whole model."""
    return len(problem.units(settings.level)) * len(candidates.blends) * settings.passes


def budget_evaluations(problem: SelectionProblem, settings: SelectConfig, candidates: Candidates) -> float:
    """Full-model evaluations that a descent may cost."""
    return max(settings.budget_share * naive_evaluations(problem, settings, candidates), settings.budget_evaluations)


def find_anchor(search: Search) -> Blend:
    """The best single snapshot, or with `anchor = average` the best of it and some averages."""
    best = single(search.problem.best_epoch)
    if search.settings.anchor == "single":
        return best
    epochs = search.problem.epochs
    averages = {mean_of(epochs[-k:]) for k in (3, 5, len(epochs)) if k <= len(epochs)}
    return min(
        [best, *sorted(averages, key=str)], key=lambda blend: float(search.scores_N(search.everywhere(blend)).mean())
    )


def deal(budget: float, shares: Mapping[str, float], *, most: int) -> dict[str, int]:
    """How many candidates each unit is given, as many as the budget pays for.

    With a return that falls with the number of candidates looked at, a unit's best number goes with the inverse root
    of their price (as in Neyman's allocation); all are scaled together.
    """

    def counts(scale: float) -> dict[str, int]:
        return {name: min(most, int(scale / share**0.5)) for name, share in shares.items()}

    low, high = 0.0, most * max(shares.values()) ** 0.5 + 1.0
    for _ in range(40):
        middle = (low + high) / 2
        price = sum(number * shares[name] for name, number in counts(middle).items())
        low, high = (middle, high) if price <= budget else (low, middle)
    return counts(low)


def _improve(
    search: Search,
    unit: str,
    members: tuple[str, ...],
    candidates: Candidates,
    current: Mapping[str, Blend],
    seen: dict[int, float],
    number: int,
    limit: float,
) -> GroupSpot | None:
    """Try candidates for one unit; the best one, if it is to be kept."""
    held = current[members[0]]
    best_swap, tried = None, {index for index, blend in enumerate(candidates.blends) if blend == held}
    shortlist = _ranked(candidates.priors_C(members), seen)
    seen.update(dict.fromkeys(tried, float(search.scores_N(current).mean())))
    best_index = next(iter(tried), shortlist[0])
    share = search.cost(members)
    for turn in range(number):
        fresh = [index for index in shortlist if index not in tried]
        near = [index for index in candidates.neighbours[best_index] if index not in tried]
        if not fresh:
            break
        # The second half looks around the best so far.
        index = near[0] if near and turn >= (number + 1) // 2 else fresh[0]
        tried.add(index)
        blend = candidates.blends[index]
        changed = {**current, **dict.fromkeys(members, blend)}
        if not search.is_known(changed) and search.spent + share > limit + 1e-9:
            break
        swap = search.try_swap(unit, members, blend, current)
        seen[index] = float(search.scores_N(changed).mean())
        if best_swap is None or swap.gain > best_swap.gain:
            best_swap = swap
            if swap.gain > 0:
                best_index = index
    if best_swap is None or best_swap.gain <= 0 or best_swap.z <= search.settings.min_z:
        return None
    return GroupSpot(members, best_swap.blend, f"best of {len(tried)} given the others (z = {best_swap.z:.1f})")


def _ranked(priors_C: np.ndarray, seen: Mapping[int, float]) -> list[int]:
    """Candidates in the order in which to try them: the best of those seen in an earlier pass, since what is around
    them has changed; then those not seen yet, by their looks; then the others that were seen."""
    again = sorted(seen, key=lambda index: (seen[index], index))
    fresh = sorted((index for index in range(len(priors_C)) if index not in seen), key=lambda index: priors_C[index])
    return [*again[:_TRIED_AGAIN], *fresh, *again[_TRIED_AGAIN:]]
