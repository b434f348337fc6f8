"""What is left of a run, from a clock that the test holds."""

import pytest

from redheart.core.progress import duration_text
from redheart.train.log.pace import CHECK_STEPS, MIN_STEPS, Expected, Pace


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def run_steps(pace: Pace, clock: Clock, count: int, *, step_s: float) -> None:
    for _ in range(count):
        clock.now_s += step_s
        pace.step_done()


def test_the_first_step_of_a_process_does_not_count_and_the_end_of_an_epoch_does() -> None:
    clock = Clock()
    pace = Pace(expected=None, clock_s=clock)
    run_steps(pace, clock, 1, step_s=99.0)
    run_steps(pace, clock, MIN_STEPS - 1, step_s=2.0)
    assert pace.estimate(steps=10, epochs=2) is None
    run_steps(pace, clock, 1, step_s=2.0)
    before = pace.estimate(steps=10, epochs=2)
    assert before is not None and before.seconds == 20.0 and "not counted yet" in str(before)
    clock.now_s += 7.0
    pace.epoch_end_done()
    after = pace.estimate(steps=10, epochs=2)
    assert after is not None and after.seconds == 34.0


def test_a_few_steps_that_load_kernels_are_not_taken_for_the_pace() -> None:
    clock = Clock()
    pace = Pace(expected=None, clock_s=clock)
    for step_s in (9.0, 5.0, 1.0, 1.5, 1.0, 0.5):
        run_steps(pace, clock, 1, step_s=step_s)
    assert pace.step_s == 1.0
    run_steps(pace, clock, 15, step_s=1.0)
    assert pace.step_s == pytest.approx((5.0 + 4.0 + 15.0) / 20)


def test_it_is_said_once_and_the_outcome_is_held_against_it() -> None:
    clock = Clock()
    pace = Pace(expected=None, clock_s=clock)
    run_steps(pace, clock, MIN_STEPS + 1, step_s=1.0)
    said = pace.news(steps=10, epochs=0)
    assert said is not None and said.seconds == 10.0
    assert pace.news(steps=10, epochs=0) is None
    run_steps(pace, clock, 10, step_s=0.8)
    outcome = pace.outcome()
    assert (outcome.estimated_s, outcome.took_s, outcome.estimate_error_percent) == (10.0, 8.0, 25.0)
    assert outcome.seconds == 14.0


@pytest.mark.parametrize(("step_s", "is_said_again"), [(1.1, False), (2.0, True)])
def test_an_expectation_is_said_at_once_and_again_only_if_the_steps_are_otherwise(
    step_s: float, is_said_again: bool
) -> None:
    clock = Clock()
    pace = Pace(expected=Expected(1.0, 5.0, "before"), clock_s=clock)
    first = pace.news(steps=100, epochs=2)
    assert first is not None and first.seconds == 110.0 and first.basis == "before"
    said = []
    for left in range(99, 80, -1):
        run_steps(pace, clock, 1, step_s=step_s)
        said.append(pace.news(steps=left, epochs=2))
    found = [estimate for estimate in said if estimate]
    assert len(found) == is_said_again
    if is_said_again:
        assert found[0].seconds == pytest.approx(found[0].steps * step_s + 10)


def test_behind_the_last_step_there_is_no_news() -> None:
    clock = Clock()
    pace = Pace(expected=None, clock_s=clock)
    run_steps(pace, clock, MIN_STEPS + 1, step_s=1.0)
    assert pace.news(steps=0, epochs=1) is None


def test_no_estimate_no_error() -> None:
    clock = Clock()
    pace = Pace(expected=None, clock_s=clock)
    run_steps(pace, clock, 2, step_s=3.0)
    assert pace.outcome().estimate_error_percent is None and pace.outcome().seconds == 6.0


@pytest.mark.parametrize(("seconds", "text"), [(3, "3 s"), (89, "89 s"), (120, "2 min"), (7560, "2.1 h")])
def test_durations_are_said_in_the_unit_that_people_think_in(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_an_estimate_from_before_the_run_is_held_against_its_first_steps_once() -> None:
    clock = Clock()
    pace = Pace(expected=Expected(2.0, None, "simulated"), clock_s=clock)
    run_steps(pace, clock, CHECK_STEPS, step_s=1.6)
    assert pace.check() is None, "the first one warms up"
    run_steps(pace, clock, 1, step_s=1.6)
    found = pace.check()
    assert found is not None and found.step_s == pytest.approx(1.6) and found.error_percent == 25.0
    assert pace.check() is None
    without = Pace(expected=None, clock_s=clock)
    run_steps(without, clock, CHECK_STEPS + 1, step_s=1.0)
    assert without.check() is None
