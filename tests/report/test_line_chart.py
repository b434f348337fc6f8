"""Charts of text are as wide and high as asked, and say their range."""

import math

from hypothesis import given
from hypothesis import strategies as st

from redheart.report.line_chart import line_chart, sparkline


def test_a_falling_line_goes_from_the_upper_left_to_the_lower_right() -> None:
    lines = line_chart({"loss": ([1.0, 2.0, 3.0], [3.0, 2.0, 1.0])}, width=20, height=3).plain.splitlines()
    assert lines[0].strip() == "─ loss"
    assert lines[1].startswith("         3│") and lines[3].startswith("         1│")
    first, last = lines[1].split("│")[1], lines[3].split("│")[1]
    assert first[0] != " " and first[-1] == " " and last[0] == " " and last[-1] != " "
    assert lines[4].split() == ["1", "3"]


def test_nothing_and_a_single_point_are_no_error() -> None:
    assert "nothing" in line_chart({"loss": ([], [])}, width=30, height=4).plain
    assert "nothing" in line_chart({"loss": ([1.0], [None])}, width=30, height=4).plain
    assert line_chart({"loss": ([1.0], [0.5])}, width=30, height=4).plain.count("\n") == 5


@given(
    values=st.lists(st.none() | st.floats(-1e6, 1e6) | st.just(math.nan), max_size=50),
    width=st.integers(24, 60),
    height=st.integers(1, 12),
)
def test_no_line_is_wider_than_asked(values: list[float | None], width: int, height: int) -> None:
    chart = line_chart({"x": ([float(n) for n in range(len(values))], values)}, width=width, height=height)
    lines = chart.plain.splitlines()
    if len(lines) > 1:
        assert len(lines) == height + 2
        assert max(map(len, lines)) <= width


def test_a_sparkline_spans_its_range_and_keeps_the_newest() -> None:
    assert sparkline([1.0, 1.1, None, 3.0], width=10) == "▁▁ █"
    assert sparkline([9.0, 1.0, 1.0], width=2) == "▁▁"
    assert sparkline([None], width=3) == ""
