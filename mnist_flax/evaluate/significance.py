"""Whether two models differ in accuracy, or whether chance explains the difference.

Chance enters twice: by the seeds that were drawn, and by the test images that were drawn.
"""

from typing import TypedDict

import numpy as np
from scipy import stats

from mnist_flax.core.inference import probabilities
from mnist_flax.engine.seed_stats import SeedValue, aggregate

LEVEL = 0.95


class ChangedImage(TypedDict):
    """A test image that only one of two models classifies correctly."""

    index: int
    label: int
    prediction_a: int
    prediction_b: int


class Comparison(TypedDict):
    """How the accuracy of B differs from that of A."""

    test_examples: int
    accuracy_a: SeedValue
    accuracy_b: SeedValue
    difference: float
    paired: bool
    interval95_over_seeds: list[float] | None
    interval95_over_images: list[float]
    mcnemar_p: float
    only_a_correct: list[ChangedImage]
    only_b_correct: list[ChangedImage]
    verdict: str


class ComparedRun(TypedDict):
    """One of two compared runs."""

    workdir: str
    step: int
    seeds: list[int]


class RunComparison(Comparison):
    """The comparison of two runs."""

    a: ComparedRun
    b: ComparedRun


def compare_logits(
    a: np.ndarray,
    b: np.ndarray,
    labels: np.ndarray,
    paired: bool,
    names: tuple[str, str] = ("A", "B"),
) -> Comparison:
    """Compares the accuracy of two models, each of one network or several.

    The intervals are of the difference of the mean accuracies: over seeds as in `seed_interval`,
    over images by the bootstrap's percentiles. McNemar's exact test is of the ensembles
    (https://doi.org/10.1007/BF02295996).

    Logits are float32 [seeds, N, 10], labels int32 [N]. If `paired`, seed i of A and seed i of B
    share their randomness. The verdict calls them by `names`.
    """
    correct_a, correct_b = ((logits.argmax(axis=-1) == labels).astype(float) for logits in (a, b))
    accuracy_a, accuracy_b = correct_a.mean(axis=1), correct_b.mean(axis=1)
    predictions = np.stack([probabilities(logits).argmax(axis=-1) for logits in (a, b)], axis=1)
    ensemble_correct = predictions == labels[:, None]
    only_a, only_b = (ensemble_correct & ~ensemble_correct[:, ::-1]).T
    changed = int((only_a | only_b).sum())
    mcnemar_p = float(stats.binomtest(int(only_b.sum()), changed).pvalue) if changed else 1.0
    differences = correct_b.mean(axis=0) - correct_a.mean(axis=0)
    rng = np.random.default_rng(0)
    bootstrap = stats.bootstrap((differences,), np.mean, batch=100, method="percentile", rng=rng)
    result: Comparison = {
        "test_examples": len(labels),
        "accuracy_a": aggregate(accuracy_a),
        "accuracy_b": aggregate(accuracy_b),
        "difference": float(accuracy_b.mean() - accuracy_a.mean()),
        "paired": paired,
        "interval95_over_seeds": seed_interval(accuracy_a, accuracy_b, paired),
        "interval95_over_images": [float(end) for end in bootstrap.confidence_interval],
        "mcnemar_p": mcnemar_p,
        "only_a_correct": _list_images(only_a, labels, predictions),
        "only_b_correct": _list_images(only_b, labels, predictions),
        "verdict": "",
    }
    result["verdict"] = verdict(result, *names)
    return result


def seed_interval(a: np.ndarray, b: np.ndarray, paired: bool) -> list[float] | None:
    """The 95 % interval, by Student's t, of the mean of B minus that of A; one value per seed.

    Of the differences if `paired`, else Welch's. A single seed is assumed to vary as much as
    those of the other model. Without any variation there is no interval, unless all are equal.
    """
    variation = np.ptp(b - a) if paired else max(np.ptp(a), np.ptp(b))
    if variation < 1e-9:
        return [0.0, 0.0] if len(a) > 1 and np.array_equal(a, b) else None
    same_variance = 1 in (len(a), len(b))
    test = stats.ttest_rel(b, a) if paired else stats.ttest_ind(b, a, equal_var=same_variance)
    return [float(end) for end in test.confidence_interval(LEVEL)]


def verdict(result: Comparison, a: str, b: str) -> str:
    """The conclusion from the tests, in a sentence or two, on runs with these names."""
    points = f"{100 * abs(result['difference']):.2f} points"
    better, worse = (b, a) if result["difference"] > 0 else (a, b)
    if not (result["difference"] or result["only_a_correct"] or result["only_b_correct"]):
        return "No difference at all."
    if result["interval95_over_seeds"] is None:
        if result["mcnemar_p"] >= 1 - LEVEL:
            return "Within noise: chance alone can explain this difference between these networks."
        return (
            f"{better} is better than {worse} by {points}, more than chance explains, for these "
            "networks; train more seeds to compare the recipes."
        )
    intervals = {
        "other seeds": result["interval95_over_seeds"],
        "other test images": result["interval95_over_images"],
    }
    doubts = [name for name, (low, high) in intervals.items() if low <= 0 <= high]
    if doubts:
        return f"Within noise: {' or '.join(doubts)} could reverse it."
    return f"{better} is better by {points}: neither other seeds nor other test images reverse it."


def _list_images(
    selected: np.ndarray, labels: np.ndarray, predictions: np.ndarray
) -> list[ChangedImage]:
    """The selected images: bool [N], labels [N], predictions [N, 2]."""
    columns = np.column_stack((np.arange(len(labels)), labels, predictions))
    return [
        {"index": index, "label": label, "prediction_a": a, "prediction_b": b}
        for index, label, a, b in columns[selected].tolist()
    ]
