"""Figures about answers, against hand-made cases and the textbooks."""

from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from mnist_flax import metrics
from mnist_flax.inference import losses


def sure(answers, probability: Any = 0.999):
    """Logits [1, N, 10] that give each answer that probability."""
    answers = np.asarray(answers)
    logits = np.zeros((1, len(answers), 10), np.float32)
    probability = np.broadcast_to(probability, answers.shape)
    logits[0, np.arange(len(answers)), answers] = np.log(9 * probability / (1 - probability))
    return logits


LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 3], np.int32)
ANSWERS = np.array([0, 0, 0, 1, 1, 1, 0, 2, 3, 3], np.int32)


def test_the_figures_of_a_case_counted_by_hand():
    found = metrics.assess(sure(ANSWERS), LABELS)
    assert (found["examples"], found["right"], found["accuracy"]) == (10, 7, 0.7)
    zero = found["per_class"][0]
    assert zero["examples"] == 4
    assert zero["recall"] == zero["precision"] == zero["f1"] == 0.75
    assert found["per_class"][2] == {
        "class": 2, "precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "examples": 2
    }  # fmt: skip
    assert found["per_class"][9]["f1"] == 0.0
    confusion = np.array(found["confusion"])
    assert confusion.shape == (10, 10)
    assert confusion.sum() == 10
    assert confusion[0, 1] == confusion[1, 0] == confusion[2, 3] == 1
    assert sum(row["count"] for row in found["top_confusions"]) == 3
    assert {(row["index"], row["label"], row["answer"]) for row in found["mistakes"]} == {
        (3, 0, 1), (6, 1, 0), (8, 2, 3)
    }  # fmt: skip


def test_wilsons_interval_is_wilsons():
    found = metrics.assess(sure(ANSWERS), LABELS)["wilson95"]
    z, n, p = NormalDist().inv_cdf(0.975), 10, 0.7
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    assert found == pytest.approx([centre - half, centre + half])


def test_mistakes_come_most_certain_first():
    logits = sure(ANSWERS, [0.9, 0.9, 0.9, 0.6, 0.9, 0.9, 0.99, 0.9, 0.8, 0.9])
    found = metrics.assess(logits, LABELS)["mistakes"]
    assert [row["index"] for row in found] == [6, 8, 3]
    assert [row["probability"] for row in found] == pytest.approx([0.99, 0.8, 0.6])
    for row in found:
        assert row["loss"] == pytest.approx(losses(logits[0], LABELS)[row["index"]])


def test_all_right_has_no_mistakes():
    found = metrics.assess(sure(LABELS), LABELS)
    assert found["mistakes"] == found["top_confusions"] == []
    assert found["wilson95"][1] == 1.0


def test_calibration_error_is_the_gap_between_sure_and_right():
    """Of 100 answers 80 are right: at 80 % sure that is calibrated, at 95 % it is 15 points off."""
    labels = np.zeros(100, np.int32)
    answers = np.where(np.arange(100) < 80, 0, 1)
    for probability, ece in ((0.8, 0.0), (0.95, 0.15)):
        found = metrics.assess(sure(answers, probability), labels)["calibration"]
        assert found["ece"] == pytest.approx(ece, abs=1e-6)
        (row,) = found["bins"]
        assert row["low"] <= probability <= row["high"]
        assert row["examples"] == 100
        assert row["accuracy"] == 0.8
        assert found["temperature"] is None


def test_the_temperature_undoes_overconfidence():
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(1, 20_000, 10)).astype(np.float32)
    chance = np.exp(logits[0]) / np.exp(logits[0]).sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(10, p=p / p.sum()) for p in chance.astype(np.float64)])
    half = 10_000
    found = metrics.assess(
        3 * logits[:, :half], labels[:half], (3 * logits[:, half:], labels[half:])
    )["calibration"]
    assert found["temperature"] == pytest.approx(3, rel=0.05)
    assert found["ece"] > 0.1
    assert found["ece_at_temperature"] < 0.02
    calm = metrics.assess(logits[:, :half], labels[:half])
    assert found["loss_at_temperature"] == pytest.approx(calm["loss"], rel=0.01)


def test_several_networks_answer_together_and_are_scored_apart():
    logits = np.concatenate([sure([0, 1], [0.9, 0.6]), sure([1, 0], [0.6, 0.9])])
    found = metrics.assess(logits, np.array([0, 0], np.int32))
    assert found["accuracy"]["per_seed"] == [0.5, 0.5]
    assert found["right"] == 2  # together they are surer of the right answer
