"""Metrics of predictions, against cases counted by hand and textbook formulas."""

from statistics import NormalDist

import numpy as np
import pytest

from mnist_flax.core.config import Config
from mnist_flax.core.inference import cross_entropy, probabilities
from mnist_flax.engine.trained_model import TrainedModel
from mnist_flax.evaluate.metrics import Evaluation, evaluate_logits


def make_logits(predictions, confidence: float | list[float] = 0.999):
    """Logits [1, N, 10] of predictions with that confidence."""
    predictions = np.asarray(predictions)
    logits = np.zeros((1, len(predictions), 10), np.float32)
    odds = 9 * np.asarray(confidence) / (1 - np.asarray(confidence))
    logits[0, np.arange(len(predictions)), predictions] = np.log(odds)
    return logits


def evaluate(logits, labels, held_out=None, dataset="digits") -> Evaluation:
    model = TrainedModel(Config(dataset="digits"), step=46, params={})
    return evaluate_logits(model, dataset, "test", logits, labels, held_out)


LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 3], np.int32)
PREDICTIONS = np.array([0, 0, 0, 1, 1, 1, 0, 2, 3, 3], np.int32)


def test_the_evaluation_of_a_case_counted_by_hand():
    evaluation = evaluate(make_logits(PREDICTIONS), LABELS)
    assert (evaluation["step"], evaluation["epochs"], evaluation["seeds"]) == (46, 2.0, [0])
    assert (evaluation["dataset"], evaluation["split"]) == ("digits", "test")
    assert (evaluation["examples"], evaluation["correct"], evaluation["accuracy"]) == (10, 7, 0.7)
    zero = evaluation["per_class"][0]
    assert zero["examples"] == 4
    assert zero["recall"] == zero["precision"] == zero["f1"] == 0.75
    assert evaluation["per_class"][2] == {
        "class": 2, "precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "examples": 2
    }  # fmt: skip
    assert evaluation["per_class"][9]["f1"] == 0.0
    confusion = np.array(evaluation["confusion"])
    assert confusion.shape == (10, 10)
    assert confusion.sum() == 10
    assert confusion[0, 1] == confusion[1, 0] == confusion[2, 3] == 1
    assert sum(row["count"] for row in evaluation["top_confusions"]) == 3
    assert {(x["index"], x["label"], x["prediction"]) for x in evaluation["misclassified"]} == {
        (3, 0, 1), (6, 1, 0), (8, 2, 3)
    }  # fmt: skip


def test_class_scores_equal_those_of_scikit_learn():
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 9, 500).astype(np.int32)
    predictions = np.where(rng.random(500) < 0.7, labels, rng.integers(1, 9, 500))
    evaluation = evaluate(make_logits(predictions), labels)
    np.testing.assert_array_equal(
        evaluation["confusion"], confusion_matrix(labels, predictions, labels=range(10))
    )
    precision, recall, f1, examples = precision_recall_fscore_support(
        labels, predictions, labels=range(10), zero_division=0.0  # pyright: ignore
    )  # fmt: skip
    rows = evaluation["per_class"]
    assert [row["precision"] for row in rows] == pytest.approx(precision)
    assert [row["recall"] for row in rows] == pytest.approx(recall)
    assert [row["f1"] for row in rows] == pytest.approx(f1)
    assert [row["examples"] for row in rows] == list(examples)  # pyright: ignore


def test_the_confidence_interval_is_wilsons():
    interval = evaluate(make_logits(PREDICTIONS), LABELS)["accuracy_ci95"]
    z, n, p = NormalDist().inv_cdf(0.975), 10, 0.7
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    assert interval == pytest.approx([center - half, center + half])


def test_misclassified_images_are_sorted_by_loss():
    logits = make_logits(PREDICTIONS, [0.9, 0.9, 0.9, 0.6, 0.9, 0.9, 0.99, 0.9, 0.8, 0.9])
    misclassified = evaluate(logits, LABELS)["misclassified"]
    assert [x["index"] for x in misclassified] == [6, 8, 3]
    assert [x["confidence"] for x in misclassified] == pytest.approx([0.99, 0.8, 0.6])
    for x in misclassified:
        assert x["loss"] == pytest.approx(cross_entropy(logits[0], LABELS)[x["index"]])


def test_perfect_predictions_have_no_confusions():
    evaluation = evaluate(make_logits(LABELS), LABELS)
    assert evaluation["misclassified"] == evaluation["top_confusions"] == []
    assert evaluation["accuracy_ci95"][1] == 1.0


def test_calibration_error_is_the_gap_between_confidence_and_accuracy():
    """80 of 100 predictions are correct: calibrated at confidence 0.8, 0.15 off at 0.95."""
    labels = np.zeros(100, np.int32)
    predictions = np.where(np.arange(100) < 80, 0, 1)
    for confidence, ece in ((0.8, 0.0), (0.95, 0.15)):
        logits = make_logits(predictions, confidence)
        calibration = evaluate(logits, labels)["calibration"]
        assert calibration["ece"] == pytest.approx(ece, abs=1e-6)
        (row,) = calibration["bins"]
        assert row["low"] <= confidence <= row["high"]
        assert row["examples"] == 100
        assert row["accuracy"] == 0.8
        assert calibration["temperature"] is None


def test_the_temperature_corrects_overconfidence():
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(1, 20_000, 10)).astype(np.float32)
    probability = np.exp(logits[0].astype(np.float64))
    labels = np.array([rng.choice(10, p=p / p.sum()) for p in probability])
    half = 10_000
    calibration = evaluate(
        3 * logits[:, :half], labels[:half], (3 * logits[:, half:], labels[half:])
    )["calibration"]
    assert calibration["temperature"] == pytest.approx(3, rel=0.05)
    assert calibration["ece"] > 0.1
    assert calibration.get("ece_at_temperature", 1.0) < 0.02
    other = evaluate(logits[:, :half], labels[:half], (2 * logits[:, half:], labels[half:]))
    assert other["calibration"]["temperature"] == pytest.approx(2, rel=0.05)  # not of these images
    calibrated = evaluate(logits[:, :half], labels[:half])
    assert calibration.get("loss_at_temperature") == pytest.approx(calibrated["loss"], rel=0.01)
    # Of several networks it corrects the mean probability, which is less confident than they are.
    noisy = logits + 2 * rng.normal(size=(4, *logits.shape[1:]))
    ensemble = evaluate(noisy[:, :half], labels[:half], (noisy[:, half:], labels[half:]))
    mean = probabilities(noisy[:, :half])[np.arange(half), labels[:half]]
    assert ensemble["calibration"].get("loss_at_temperature", np.inf) < -np.log(mean).mean()


def test_several_networks_are_scored_separately_and_as_an_ensemble():
    logits = np.concatenate([make_logits([0, 1], [0.9, 0.6]), make_logits([1, 0], [0.6, 0.9])])
    evaluation = evaluate(logits, np.array([0, 0], np.int32))
    assert isinstance(evaluation["accuracy"], dict)
    assert evaluation["accuracy"]["per_seed"] == [0.5, 0.5]
    assert evaluation["correct"] == 2  # the correct predictions have the higher confidence
