"""Means, spreads and how they are shown."""

import numpy as np
import pytest
from scipy import stats

from mnist_flax.spread import figure, mean_of, percent, seeds_of, spread


def test_the_spread_is_scipys():
    values = [0.991, 0.994, 0.9925, 0.9931]
    found = spread(values)
    error = stats.sem(values)
    assert found["mean"] == pytest.approx(np.mean(values))
    assert found["std"] == pytest.approx(np.std(values, ddof=1))
    expected = stats.t.interval(0.95, 3, loc=np.mean(values), scale=error)
    assert found["interval95"] == pytest.approx(expected)
    assert found["per_seed"] == values


def test_a_single_value_claims_no_spread():
    assert spread([2], "per_round") == {
        "mean": 2.0, "std": None, "interval95": None, "per_round": [2.0]
    }  # fmt: skip


def test_one_seed_is_a_number_and_many_are_a_spread():
    one, many = figure(np.array([0.98765])), figure(np.array([0.99, 0.98]))
    assert (mean_of(one), seeds_of(one), percent(one)) == (0.98765, [0.98765], "98.77%")
    assert seeds_of(many) == [0.99, 0.98]
    assert (mean_of(many), percent(many)) == (pytest.approx(0.985), "98.50% ± 0.71")
