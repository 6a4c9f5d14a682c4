"""Statistics over seeds, and how they are formatted."""

import numpy as np
import pytest
from scipy import stats

from mnist_flax.engine.seed_stats import (
    aggregate,
    format_percent,
    mean_of,
    per_seed,
    seed_statistics,
)


def test_statistics_agree_with_scipy():
    values = [0.991, 0.994, 0.9925, 0.9931]
    result = seed_statistics(values)
    error = stats.sem(values)
    assert result["mean"] == pytest.approx(np.mean(values))
    assert result["std"] == pytest.approx(np.std(values, ddof=1))
    expected = stats.t.interval(0.95, 3, loc=np.mean(values), scale=error)
    assert result["interval95"] == pytest.approx(expected)
    assert result["per_seed"] == values


def test_a_single_value_has_no_deviation_and_no_interval():
    result = seed_statistics([2])
    assert result == {"mean": 2.0, "std": None, "interval95": None, "per_seed": [2.0]}
    assert format_percent(result) == "200.00%"


def test_one_seed_is_a_number_and_several_are_statistics():
    one, several = aggregate(np.array([0.98765])), aggregate(np.array([0.99, 0.98]))
    assert (mean_of(one), per_seed(one), format_percent(one)) == (0.98765, [0.98765], "98.77%")
    assert per_seed(several) == [0.99, 0.98]
    assert (mean_of(several), format_percent(several)) == (pytest.approx(0.985), "98.50% ± 0.71")
