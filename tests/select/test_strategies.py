"""Strategies see the select records only, cover every module, keep to their budget and find what is planted."""

import itertools

import numpy as np
import pytest
from synthetic import FINAL, Additive

from redheart.core.config import SelectConfig
from redheart.core.errors import BadInput
from redheart.report.selection_section import work_text
from redheart.select.descent import deal, epochs_alone, prior_E, windows
from redheart.select.maps import draw_maps
from redheart.select.problem import SelectionProblem, blends_of
from redheart.select.search import Modules, Search, Swap
from redheart.select.statistics import paired_gain
from redheart.select.strategies import STRATEGIES, strategy_named
from redheart.select.sweet_spot import _tried, find_sweet_spot
from redheart.snapshots.blend import mean_of, single

EPOCHS = (2, 4, 6)
MODULES = ("backbone", FINAL, "neural.a", "phases.b")


def stored(curves: dict[str, list[float]], *, train: dict[str, list[float]] | None = None) -> Search:
    """A search on stored losses alone."""
    random = np.random.default_rng(0)
    noise_N = random.normal(0, 0.01, 200)
    noise_N -= noise_N.mean()
    problem = SelectionProblem(
        epochs=EPOCHS,
        modules=MODULES,
        groups={"top": ("backbone", FINAL), "neural": ("neural.a",), "phases": ("phases.b",)},
        losses_EN={name: np.array(means)[:, None] + noise_N for name, means in curves.items()},
        train_losses_E={name: np.array((train or curves)[name]) for name in curves},
        finals=(FINAL,),
    )
    evaluator = Additive(MODULES, EPOCHS, num_records=200, noise=0.01, seed=0)
    return Search(problem, evaluator, SelectConfig())


def test_design_takes_each_group_at_its_own_best_and_the_anchor_where_it_has_no_loss() -> None:
    search = stored({FINAL: [1.0, 0.8, 0.9], "neural.a": [0.7, 0.8, 0.9]})
    choice = STRATEGIES["design"](search)
    assert search.problem.best_epoch == 4
    assert choice["top"].blend == single(4)
    assert choice["neural"].blend == single(2)
    assert choice["phases"].blend == single(4) and not choice["phases"].scores
    assert blends_of(choice) == {"backbone": single(4), FINAL: single(4), "neural.a": single(2), "phases.b": single(4)}


class Failing(Additive):
    """Models of several snapshots have no number on half of the records, and are the better on the others."""

    def losses(self, choice: Modules, *, base: Modules | None = None) -> dict[str, np.ndarray]:
        losses_N = super().losses(choice)[FINAL]
        if len(set(choice.values())) > 1 or len(next(iter(choice.values())).epochs) > 1:
            losses_N = np.where(np.arange(len(losses_N)) % 2, np.nan, 0.1 * losses_N)
        return {FINAL: losses_N}


@pytest.mark.parametrize("name", ["coordinate", "window"])
def test_a_model_without_a_finite_loss_where_there_is_a_target_is_not_chosen(name: str) -> None:
    evaluator = Failing(MODULES, EPOCHS, num_records=60, noise=0.1, seed=0)
    problem = evaluator.problem()
    problem.losses_EN[FINAL][:, :5] = np.nan
    spot = find_sweet_spot(problem, evaluator, SelectConfig(strategy=name, level="module"), seed=0)
    assert set(spot.modules.values()) == {single(problem.best_epoch)}
    assert spot.selection.gain.percent == 0 and spot.baselines["uniform"].high < 0


def test_losses_below_zero_turn_no_strategy_round() -> None:
    """Log densities are below zero: a smaller share of the best one's is not better."""
    search = stored({FINAL: [-1.0, -3.0, -2.0], "neural.a": [-2.0, -1.0, -3.0]})
    chosen = STRATEGIES["design"](search)
    assert chosen["top"].blend == single(4) and chosen["neural"].blend == single(6)
    assert prior_E(search.problem, ["neural.a"]).argsort().tolist() == [2, 0, 1]
    below = Additive(MODULES, EPOCHS, num_records=60, noise=0.1, seed=0)
    below.base_N -= 20
    search = below.search(map_epochs=3)
    maps = draw_maps(search)
    for name, table in maps.transplants.items():
        for (row, donor), (column, host) in itertools.product(enumerate(EPOCHS), enumerate(EPOCHS)):
            base = search.everywhere(single(host))
            gain_N = search.scores_N(base) - search.scores_N({**base, name: single(donor)})
            assert np.sign(table[row][column]) == np.sign(round(float(gain_N.mean()), 12))
    rises = [np.max(np.array(line.scores) - np.interp(line.shares, [0, 1], line.scores[::4])) for line in maps.lines]
    size = np.abs(maps.scores).max()
    assert [line.barrier_percent for line in maps.lines] == pytest.approx(
        [100 * rise / size for rise in rises], rel=0.1
    )


def test_overfit_penalty_counts_only_validation_above_training() -> None:
    curves = {FINAL: [1.0, 1.0, 1.0], "neural.a": [0.80, 0.79, 0.81]}
    penalised = stored(curves, train={FINAL: [1.0] * 3, "neural.a": [0.80, 0.60, 0.95]})
    assert STRATEGIES["design"](penalised)["neural"].blend == single(2)


def test_ties_go_to_the_lower_variance() -> None:
    tied = stored({FINAL: [1.0, 0.9, 1.0], "neural.a": [0.5, 0.5, 0.5]})
    tied.problem.losses_EN["neural.a"][0] += np.tile([0.2, -0.2], 100)
    tied.problem.losses_EN["neural.a"][2] += np.tile([0.1, -0.1], 100)
    chosen = STRATEGIES["design"](tied)["neural"]
    assert chosen.blend == single(4) and "variance" in chosen.reason


@pytest.mark.parametrize("level", ["group", "module"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_covers_every_module_and_is_repeatable(name: str, level: str) -> None:
    spots = []
    for _ in range(2):
        evaluator = Additive(MODULES, EPOCHS, num_records=50, noise=0.1, seed=3)
        settings = SelectConfig(strategy=name, level=level)
        spots.append(find_sweet_spot(evaluator.problem(), evaluator, settings, seed=1))
    assert spots[0] == spots[1]
    assert set(spots[0].modules) == set(MODULES)
    assert all(set(blend.epochs) <= set(EPOCHS) for blend in spots[0].modules.values())
    searched = name in ("coordinate", "window")
    assert (spots[0].num_candidates > len(EPOCHS)) == searched and spots[0].num_candidates >= len(EPOCHS)
    assert ("from stored outputs; " in work_text(spots[0])) != searched
    assert set(spots[0].baselines) >= {"last", "uniform"}


@pytest.mark.parametrize("name", ["coordinate", "window"])
def test_what_searches_is_never_worse_on_the_select_records_than_the_best_single_snapshot(name: str) -> None:
    for seed in range(5):
        evaluator = Additive(MODULES, EPOCHS, num_records=50, noise=0.1, seed=seed)
        search = evaluator.search()
        chosen = blends_of(STRATEGIES[name](search))
        assert search.scores_N(chosen).mean() <= search.scores_N(search.best_single).mean() + 1e-12


@pytest.mark.parametrize(
    ("name", "own", "cost"), [("coordinate", True, 0.1), ("window", True, 0.1), ("coordinate", False, 0.05)]
)
def test_a_planted_module_and_epoch_are_found(name: str, own: bool, cost: float) -> None:
    epochs = tuple(range(2, 62, 2))
    modules = (*(f"m{index}" for index in range(8)), FINAL)
    for seed in range(5):
        random = np.random.default_rng(seed)
        module, epoch = str(random.choice(modules[:-1])), int(random.choice(epochs))
        # The snapshot that holds the good module is otherwise a bad one.
        damaged = modules[(modules.index(module) + 1) % len(modules)]
        planted = {(module, epoch): -0.2, (damaged, epoch): 1.0}
        evaluator = Additive(
            modules,
            epochs,
            num_records=400,
            noise=0.05,
            planted=planted,
            seed=seed,
            costs=dict.fromkeys(modules, cost),
        )
        search = evaluator.search(own=own)
        choice = blends_of(STRATEGIES[name](search))
        assert choice[module] == single(epoch)
        assert epoch not in choice[damaged].epochs
        best = max(search.swaps, key=lambda swap: swap.z)
        assert (best.unit, best.blend) == (module, single(epoch))
        assert search.spent <= 0.05 * search.naive
        gain = paired_gain(evaluator.confirm_N(search.best_single), evaluator.confirm_N(choice), seed=seed)
        assert gain.is_evidence


def test_the_budget_is_kept_and_cheap_modules_see_every_epoch() -> None:
    epochs = tuple(range(2, 62, 2))
    modules = ("backbone", *(f"m{index}" for index in range(16)), FINAL)
    costs = {"backbone": 1.0, FINAL: 0.002, **{f"m{index}": 0.08 for index in range(16)}}
    evaluator = Additive(modules, epochs, num_records=100, noise=0.1, seed=0, costs=costs)
    search = evaluator.search(level="module")
    choice = STRATEGIES["coordinate"](search)
    assert search.naive == 18 * 30 * 2
    assert search.spent <= 0.05 * search.naive
    # At least the second pass of the cheapest module sees all of them.
    assert len(choice[FINAL].scores) == 30
    assert 3 <= len(choice["backbone"].scores) < 30


def test_candidates_are_dealt_out_by_price_within_the_budget() -> None:
    shares = {"a": 1.0, "b": 0.25, "c": 0.0001}
    counts = deal(10.0, shares, most=29)
    assert counts["b"] == pytest.approx(2 * counts["a"], abs=1) and counts["c"] == 29
    assert sum(shares[name] * number for name, number in counts.items()) <= 10.0
    assert deal(0.0, shares, most=29)["a"] == 0


def test_a_threshold_keeps_what_is_within_the_noise_where_it_is() -> None:
    evaluator = Additive(MODULES, EPOCHS, num_records=100, noise=0.1, seed=1)
    moved = blends_of(STRATEGIES["coordinate"](evaluator.search()))
    held = blends_of(STRATEGIES["coordinate"](evaluator.search(min_z=4.0)))
    assert set(held.values()) == {single(evaluator.problem().best_epoch)} and moved != held


def test_windows_and_their_neighbours() -> None:
    evaluator = Additive(MODULES, (1, 2, 3, 4, 5), num_records=20, noise=0.1, seed=0)
    spans = windows(evaluator.problem())
    assert len(spans.blends) == 5 + 3 + 1 and mean_of((1, 2, 3)) in spans.blends
    near = spans.neighbours[spans.blends.index(mean_of((2, 3, 4)))]
    assert {spans.blends[index] for index in near} == {
        mean_of((1, 2, 3)),
        mean_of((3, 4, 5)),
        mean_of((1, 2, 3, 4, 5)),
        single(3),
    }
    assert epochs_alone(evaluator.problem()).neighbours[0] == (1,)


def test_an_average_can_be_the_anchor() -> None:
    class Bent(Additive):
        def all_losses_N(self, choice: Modules) -> np.ndarray:
            averaged = all(len(blend.epochs) == 3 for blend in choice.values())
            return super().all_losses_N(choice) - (1.0 if averaged else 0.0)

    evaluator = Bent(MODULES, EPOCHS, num_records=50, noise=0.1, seed=0)
    choice = blends_of(STRATEGIES["coordinate"](evaluator.search(anchor="average")))
    assert set(choice.values()) == {mean_of(EPOCHS)}
    assert mean_of(EPOCHS) not in blends_of(STRATEGIES["coordinate"](evaluator.search())).values()


def test_strategies_of_unknown_names_and_ema_are_refused_with_a_way_out() -> None:
    with pytest.raises(BadInput, match="unknown selection strategy"):
        strategy_named("luck")
    with pytest.raises(BadInput, match="snapshot-ema"):
        strategy_named("ema")


def test_tasks_count_alike_whatever_their_size_and_absent_targets_do_not_count() -> None:
    losses_EN = {
        "heads.a": np.array([[1.0, 3.0, np.nan, np.nan], [2.0, 2.0, np.nan, np.nan]]),
        "heads.b": np.array([[0.01, 0.01, 0.01, 0.01], [0.02, 0.02, 0.02, 0.02]]),
        "heads.c": np.full((2, 4), np.nan),
    }
    problem = SelectionProblem(
        epochs=(1, 2),
        modules=("m",),
        groups={"m": ("m",)},
        losses_EN=losses_EN,
        train_losses_E={},
        finals=("heads.a", "heads.b", "heads.c"),
        floors_N={"heads.a": np.array([1.0, 1.0, 0.0, 0.0])},
    )
    assert problem.scales == {"heads.a": 1.0, "heads.b": 0.01}
    assert problem.scores_EN.mean(1).tolist() == pytest.approx([1.0, 1.5])
    assert problem.best_epoch == 1


def test_a_swap_that_is_tried_again_on_the_same_model_is_one_comparison() -> None:
    swaps = [Swap("a", single(2), 0.1, 2.5), Swap("b", single(2), -0.1, -1.0), Swap("a", single(4), 0.1, 2.5)]
    reference_N, labelled_TN = np.ones(40), np.ones((1, 40), dtype=bool)
    once = _tried(swaps, reference_N, labelled_TN)
    assert _tried([*swaps, *swaps], reference_N, labelled_TN) == once and len(once) == 3
