"""Axes of the charts."""

import math

import pytest

from mnist_flax.evaluate.svg import Axis, element, linear_ticks, log_ticks, whole_ticks

EXTREMES = [
    (0.0, 0.0),
    (5.0, 5.0),
    (0.0, 5e-324),
    (-9e18, 9e18),
    (1e-310, 2e-310),
    (0.9931, 0.9945),
]


@pytest.mark.parametrize(("low", "high"), EXTREMES)
def test_linear_ticks_enclose_the_values(low, high):
    ticks = linear_ticks(low, high)
    assert 2 <= len(ticks) <= 6
    assert ticks == sorted(ticks)
    assert ticks[0] <= low + 1e-12
    assert ticks[-1] >= high - 1e-12


def test_ticks_are_round():
    assert linear_ticks(0, 0.006) == pytest.approx([0, 0.002, 0.004, 0.006])
    assert log_ticks([0.018, 0.4]) == pytest.approx([0.01, 0.02, 0.05, 0.1, 0.2, 0.5])
    assert log_ticks([0.0, 0.03]) == pytest.approx([0.02, 0.05])
    assert whole_ticks(1, 5) == [1, 2, 3, 4, 5]
    assert whole_ticks(1, 80) == [1, 20, 40, 60, 80]
    assert whole_ticks(3, 3) == [2.5, 3, 3.5]


@pytest.mark.parametrize("values", [[], [0.0], [-1.0], [1.0], [5e-324, 9e18], [1e-3, 1e-3]])
def test_logarithmic_ticks_enclose_what_is_positive(values):
    ticks = log_ticks(values)
    assert 2 <= len(ticks) <= 9
    assert all(ticks[0] <= max(value, 1e-100) * 1.001 for value in values if value > 0)
    assert all(ticks[-1] >= value * 0.999 for value in values)


def test_values_outside_an_axis_are_drawn_at_its_edge():
    axis = Axis([0.01, 1], 100, 0, log=True)
    assert axis(0.1) == pytest.approx(50)
    assert [axis(0.0), axis(-3), axis(7)] == [100, 100, 0]
    assert math.isclose(Axis([0, 10], 0, 1)(2.5), 0.25)


def test_elements_escape_their_content():
    drawn = element("text", "<b>", class_="a", stroke_width=1.26, title='"')
    assert drawn == '<text class="a" stroke-width="1.3" title="&#34;">&lt;b&gt;</text>'
