"""The sweet spot of every module group, as a file."""

from collections.abc import Callable

import msgspec
import numpy as np

from redheart.core.config import SelectConfig
from redheart.core.seeds import stream_seed
from redheart.select.problem import GroupSpot, SelectionProblem, blends_of
from redheart.select.search import Evaluator, Search, Swap
from redheart.select.statistics import (
    Gain,
    fewest_labelled,
    holm,
    one_sided_p,
    out_of_bag_gain,
    percent_of,
    scored_gain,
)
from redheart.select.strategies import BASELINES, strategy_named
from redheart.snapshots.blend import Blend


class TriedSwap(msgspec.Struct, frozen=True):
    """A change of one group that was tried on the model at hand."""

    group: str
    blend: Blend
    percent: float
    """Gain on the select records."""
    z: float | None
    """None where every record gains the same."""
    p_holm: float
    """Chance of such a gain from nothing, corrected for all swaps that were tried."""


class Work(msgspec.Struct, frozen=True):
    """What was computed."""

    evaluations: float
    """Full-model evaluations, by floating-point operations of matrix products."""


class Selection(msgspec.Struct, frozen=True):
    """The chosen model on the select records, over the best single snapshot; optimistic, since it was chosen there."""

    gain: Gain
    percent_out_of_bag: float | None
    """Gain of the best candidate of a resample on the records that it left out: without the optimism of the last choice
    among the candidates, which the search itself had found on all these records. None where the strategy has evaluated
    no candidates."""
    percent_in_bag: float | None
    """Its gain on the resample itself."""


class SweetSpot(msgspec.Struct, frozen=True):
    """The result of one strategy."""

    strategy: str
    level: str
    epochs: list[int]
    best_epoch: int
    """The best single snapshot, which everything is compared with."""
    groups: dict[str, GroupSpot]
    modules: dict[str, Blend]
    curves: dict[str, list[float]]
    """Mean loss on the select records by predictor and snapshot, each in the model that it was trained in."""
    scales: dict[str, float]
    """What each task's loss is divided by before the mean over tasks is taken."""
    num_candidates: int
    """Different models that were compared: single snapshots by their stored outputs, the others by evaluation."""
    num_reused: int
    """Of the evaluated ones, those that an earlier call had evaluated."""
    evaluations: float
    """What the search cost, in full-model evaluations by the floating-point operations of matrix products."""
    evaluations_naive: float
    """What it would cost with every candidate evaluated as a whole model."""
    work: Work
    """Of the whole call, with the comparisons around the search."""
    selection: Selection
    swaps: list[TriedSwap]
    """Best first."""
    baselines: dict[str, Gain]
    """Other strategies on the select records, over the best single snapshot."""
    computed_in: str = "fp32"
    """What the compared models were computed in."""


def find_sweet_spot(
    problem: SelectionProblem,
    evaluator: Evaluator,
    settings: SelectConfig,
    *,
    seed: int,
    on_trial: Callable[[float], None] = lambda _: None,
) -> SweetSpot:
    """Apply the strategy of the settings, and show it beside the baselines.

    Who keeps losses between calls or computes in another type fills in `num_reused` and `computed_in`.

    Raises:
        BadInput: there is no such strategy.
    """
    strategy = strategy_named(settings.strategy)
    search = Search(problem, evaluator, settings, on_trial=on_trial)
    choice = strategy(search)
    # Of the search alone, before the comparisons around it.
    evaluations, candidates = search.spent, list(search.scores.values())
    reference_N = search.scores_N(search.best_single)
    chosen_N = search.scores_N(blends_of(choice))
    outside, inside, labelled_TN = None, None, problem.labelled_TN
    if candidates:
        candidates_CN = np.stack(candidates)
        outside, inside = out_of_bag_gain(candidates_CN, reference_N, seed=stream_seed(seed, "out of bag"))
    baselines = {}
    for name in BASELINES:
        other_N = search.scores_N(blends_of(strategy_named(name)(search)))
        baselines[name] = scored_gain(
            reference_N, other_N, labelled_TN, seed=stream_seed(seed, "gain", "baseline", name)
        )
    return SweetSpot(
        strategy=settings.strategy,
        level=settings.level,
        epochs=list(problem.epochs),
        best_epoch=problem.best_epoch,
        groups=choice,
        modules=blends_of(choice),
        curves={name: problem.mean_losses_E(name).tolist() for name in problem.measured(tuple(problem.losses_EN))},
        scales=problem.scales,
        num_candidates=len(problem.epochs) + len(candidates),
        num_reused=0,
        evaluations=evaluations,
        evaluations_naive=search.naive,
        work=Work(evaluator.evaluations),
        selection=Selection(
            scored_gain(reference_N, chosen_N, labelled_TN, seed=stream_seed(seed, "gain", "val_select")),
            outside,
            inside,
        ),
        swaps=_tried(search.swaps, reference_N, labelled_TN),
        baselines=baselines,
    )


def _tried(swaps: list[Swap], reference_N: np.ndarray, labelled_TN: np.ndarray) -> list[TriedSwap]:
    # A descent that comes round again tries the same on the same model: that is one comparison.
    swaps = list(dict.fromkeys(swaps))
    adjusted = holm([one_sided_p(swap.z, fewest_labelled(labelled_TN)) for swap in swaps])
    scale = percent_of(reference_N)
    found = [
        TriedSwap(swap.unit, swap.blend, swap.gain * scale, swap.z if np.isfinite(swap.z) else None, p)
        for swap, p in zip(swaps, adjusted, strict=True)
    ]
    return sorted(found, key=lambda swap: -swap.percent)
