"""Strategies that give every module the same mixture of snapshots."""

from redheart.select.problem import Choice, UnitChoice, choice_of
from redheart.select.search import Search
from redheart.snapshots.blend import Blend, mean_of, single, weighted

EMA_DECAY = 0.7
"""Weight of a snapshot relative to the next later one."""


def best_single(search: Search) -> Choice:
    """The one snapshot with the lowest score."""
    scores = {single(epoch): float(score) for epoch, score in _stored(search)}
    return everywhere(search, single(search.problem.best_epoch), "lowest score", scores)


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


def greedy_soup(search: Search) -> Choice:
    """Snapshots by score, each taken into the mean if that does not get worse (Wortsman et al. 2022)."""
    ranked = [epoch for epoch, _ in sorted(_stored(search), key=lambda pair: pair[1])]
    search.naive += len(ranked)
    soup = ranked[:1]
    best = float(search.scores_N(search.everywhere(single(ranked[0]))).mean())
    scores = {single(ranked[0]): best}
    for epoch in ranked[1:]:
        blend = mean_of([*soup, epoch])
        score = scores[blend] = float(search.scores_N(search.everywhere(blend)).mean())
        if score <= best:
            soup, best = [*soup, epoch], score
    return everywhere(search, mean_of(soup), f"soup of {len(soup)} of {len(ranked)}", scores)


def everywhere(search: Search, blend: Blend, reason: str, scores: dict[Blend, float] | None = None) -> Choice:
    """The same mixture for every unit."""
    units = search.problem.units(search.settings.level)
    return choice_of(units, {name: UnitChoice(blend, reason, scores or {}) for name in units})


def _stored(search: Search) -> list[tuple[int, float]]:
    problem = search.problem
    return list(zip(problem.epochs, problem.scores_EN.mean(1).tolist(), strict=True))
