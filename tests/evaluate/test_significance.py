"""Comparisons detect a planted difference, and no difference where there is none."""

import numpy as np
import pytest
from scipy import stats

from mnist_flax.evaluate.significance import LEVEL, compare_logits, seed_interval

IMAGES = 2000
LABELS = np.random.default_rng(0).integers(0, 10, IMAGES).astype(np.int32)


def logits_with_errors(error_rates, seed):
    """Logits [seeds, N, 10] of networks with those error rates.

    The same images are hard for all networks; each network adds its own noise.
    """
    rng = np.random.default_rng(seed)
    hardness = np.random.default_rng(1).permutation(IMAGES) / IMAGES
    logits = np.zeros((len(error_rates), IMAGES, 10), np.float32)
    for network, rate in zip(logits, error_rates, strict=True):
        wrong = hardness + 0.01 * rng.standard_normal(IMAGES) > 1 - rate
        network[np.arange(IMAGES), (LABELS + wrong) % 10] = 5.0
    return logits


def test_a_planted_difference_is_detected():
    seed_effects = np.random.default_rng(3).normal(0, 0.001, 8)
    a = logits_with_errors(0.06 + seed_effects, 10)
    b = logits_with_errors(0.04 + seed_effects, 11)
    for paired in (True, False):
        result = compare_logits(a, b, LABELS, paired)
        assert result["difference"] == pytest.approx(0.02, abs=0.003)
        assert result["verdict"].startswith("B is better by 1.9")
        assert result["mcnemar_p"] < 1e-6
        for interval in (result["interval95_over_seeds"], result["interval95_over_images"]):
            assert interval is not None
            low, high = interval
            assert 0 < low < result["difference"] < high < 0.04
        swapped = compare_logits(b, a, LABELS, paired)
        assert swapped["difference"] == -result["difference"]
        assert swapped["verdict"].startswith("A is better by 1.9")


@pytest.mark.nightly
def test_halves_of_the_same_seeds_are_within_noise():
    """At the 95 % level one comparison in twenty may err; the limit here is twice that."""
    trials, detected = 60, 0
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        logits = logits_with_errors(0.05 + rng.normal(0, 0.003, 10), 100 + trial)
        result = compare_logits(logits[:5], logits[5:], LABELS, paired=False)
        detected += "Within noise" not in result["verdict"]
    assert detected <= trials / 10


def test_intervals_and_p_values_follow_the_textbook():
    a = logits_with_errors([0.06, 0.05, 0.07], 1)
    b = logits_with_errors([0.05, 0.05, 0.06], 2)
    result = compare_logits(a, b, LABELS, paired=True)
    accuracy_a, accuracy_b = ((x.argmax(-1) == LABELS).mean(axis=1) for x in (a, b))
    difference = accuracy_b - accuracy_a
    half = stats.t.ppf((1 + LEVEL) / 2, 2) * difference.std(ddof=1) / 3**0.5
    expected = [difference.mean() - half, difference.mean() + half]
    assert result["interval95_over_seeds"] == pytest.approx(expected)
    only_a, only_b = len(result["only_a_correct"]), len(result["only_b_correct"])
    assert result["mcnemar_p"] == stats.binomtest(only_a, only_a + only_b).pvalue
    assert isinstance(result["accuracy_a"], dict)
    assert result["accuracy_a"]["per_seed"] == pytest.approx(accuracy_a)
    for x in result["only_a_correct"]:
        assert x["label"] == LABELS[x["index"]] == x["prediction_a"] != x["prediction_b"]


@pytest.mark.parametrize(
    ("a", "b", "paired", "interval"),
    [
        ([0.99, 0.98], [0.98, 0.97], True, None),  # no more than two equal differences
        ([0.99, 0.99], [0.98, 0.98], False, None),
        ([0.99], [0.98, 0.98], False, None),
        ([0.99, 0.98], [0.99, 0.98], True, [0, 0]),
    ],
)
def test_seeds_without_variation_have_no_interval(a, b, paired, interval):
    assert seed_interval(np.array(a), np.array(b), paired) == interval


def test_single_seeds_have_no_interval_over_seeds():
    a, b = logits_with_errors([0.06], 1), logits_with_errors([0.03], 2)
    result = compare_logits(a, b, LABELS, paired=False)
    assert result["interval95_over_seeds"] is None
    assert "train more seeds to compare the recipes" in result["verdict"]
    same_rate = compare_logits(a, logits_with_errors([0.06], 5), LABELS, paired=False)
    assert same_rate["verdict"].startswith("Within noise")
    three = logits_with_errors([0.06, 0.061, 0.062], 4)
    against_three = compare_logits(three, b, LABELS, paired=False)
    assert against_three["verdict"].startswith("B is better by")
