"""Cosine cycles in optimizer steps."""

import pytest

from redheart.train.schedule import cycle_position, learning_rate


def test_cycles_start_at_the_peak_and_grow() -> None:
    starts = [s for s in range(70) if cycle_position(s, first_cycle_steps=10, growth=2).fraction == 0]
    assert starts == [0, 10, 30]
    for step in starts:
        assert learning_rate(step, peak=1e-3, eta_min=1e-6, first_cycle_steps=10, growth=2) == pytest.approx(1e-3)


def test_rate_falls_within_a_cycle_to_the_half_way_mean_and_almost_to_the_end() -> None:
    rates = [learning_rate(s, peak=1.0, eta_min=0.1, first_cycle_steps=100, growth=1) for s in range(100)]
    assert rates == sorted(rates, reverse=True)
    assert rates[50] == pytest.approx(0.55)
    assert 0.1 < rates[99] < 0.101
