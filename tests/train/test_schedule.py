"""Learning rates of cycles with warm restarts, and of one decay after a warm-up."""

import pytest

from redheart.core.config import TrainConfig
from redheart.train.settings import RunSettings, rate_of


def rates(train: TrainConfig, peak: float, steps: range, **more: object) -> list[float]:
    settings = RunSettings(train, 1, peak, "key", **more)  # type: ignore[arg-type]
    return [rate_of(step, settings, steps_per_epoch=1) for step in steps]


def test_cycles_start_at_the_peak_and_grow() -> None:
    train = TrainConfig(eta_min=1e-6, cycle_epochs=10, cycle_growth=2)
    for step in (0, 10, 30):
        assert rates(train, 1e-3, range(step, step + 1)) == [pytest.approx(1e-3)]


def test_a_cycle_falls_as_a_cosine() -> None:
    found = rates(TrainConfig(eta_min=0.1, cycle_epochs=100, cycle_growth=1), 1.0, range(100))
    assert found == sorted(found, reverse=True)
    assert found[50] == pytest.approx(0.55) and found[-1] > 0.1


@pytest.mark.parametrize(("decay", "middle"), [("linear", 0.7), ("cosine", 0.1 + 0.9 * (1 + 0.5) / 2)])
def test_one_decay_rises_evenly_and_falls_over_the_run(decay: str, middle: float) -> None:
    found = rates(TrainConfig(eta_min=0.1), 1.0, range(13), decay=decay, warmup_steps=4, num_steps=13)
    assert found[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert found[7] == pytest.approx(middle) and found[4:] == sorted(found[4:], reverse=True)
    assert 0.1 < found[-1] < 0.25


def test_a_peak_below_the_lowest_rate_stays_where_it_is() -> None:
    assert rates(TrainConfig(eta_min=1e-6, cycle_epochs=5), 1e-7, range(5)) == [pytest.approx(1e-7)] * 5
