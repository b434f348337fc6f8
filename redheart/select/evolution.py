"""Interpolation weights of every group over a few snapshots, by CMA-ES (Hansen 2016)."""

import numpy as np

from redheart.core.errors import extra
from redheart.core.seeds import stream_seed
from redheart.select.problem import Choice, UnitChoice, choice_of
from redheart.select.search import Search
from redheart.snapshots.blend import Blend, single, weighted

_STEP = 0.2
_START = 0.1
"""Share of each further snapshot in the first mean."""


def cma(search: Search) -> Choice:
    """Every unit's own mixture of the best few snapshots; `cma_evaluations` models are evaluated, each of them whole.

    The unknowns are the shares of the further snapshots; what they leave is the best single snapshot's.
    """
    with extra("cma", library="cma", purpose="the strategy `cma`"):
        from cma import CMAEvolutionStrategy

    problem, settings = search.problem, search.settings
    units = problem.units(settings.level)
    order = np.argsort(problem.scores_EN.mean(1), kind="stable")[: settings.cma_anchors]
    anchors = [problem.epochs[index] for index in order]
    search.naive += settings.cma_evaluations

    def blends(shares: np.ndarray) -> dict[str, Blend]:
        table = shares.reshape(len(units), len(anchors) - 1)
        return {name: _blend(anchors, row) for name, row in zip(units, table, strict=True)}

    def choice(found: dict[str, Blend], reason: str) -> Choice:
        return choice_of(units, {name: UnitChoice(blend, reason) for name, blend in found.items()})

    best = {name: single(anchors[0]) for name in units}
    best_score = float(search.scores_N(choice(best, "").modules).mean())
    if len(anchors) == 1:
        return choice(best, "the only snapshot")
    random = np.random.default_rng(stream_seed(search.seed, "cma"))
    strategy = CMAEvolutionStrategy(
        np.full(len(units) * (len(anchors) - 1), _START),
        _STEP,
        {
            "bounds": [0, 1],
            "verbose": -9,
            # No global seed: numbers come from the stream above.
            "seed": float("nan"),
            "randn": lambda *shape: random.standard_normal(shape),
            "verb_log": 0,
        },
    )
    evaluated = 1
    while not strategy.stop() and evaluated < settings.cma_evaluations:
        asked = strategy.ask()
        scores = []
        for shares in asked[: settings.cma_evaluations - evaluated]:
            found = blends(np.asarray(shares))
            score = float(search.scores_N(choice(found, "").modules).mean())
            scores.append(score)
            if score < best_score:
                best, best_score = found, score
        evaluated += len(scores)
        if len(scores) < len(asked):
            break
        strategy.tell(asked, scores)
    return choice(best, f"best of {evaluated} mixtures of {', '.join(map(str, sorted(anchors)))}")


def _blend(anchors: list[int], shares: np.ndarray) -> Blend:
    shares = np.clip(shares, 0, None)
    rest = max(0.0, 1 - float(shares.sum()))
    return weighted(dict(zip(anchors, (rest, *shares.tolist()), strict=True)))
