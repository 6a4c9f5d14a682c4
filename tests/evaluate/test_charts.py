"""Charts hold each value, and are well-formed."""

import re
import xml.etree.ElementTree as ET
from typing import Any, cast

import pytest

from mnist_flax.engine.seed_stats import aggregate
from mnist_flax.evaluate import charts, curves

ROWS: list[Any] = [
    {
        "step": 12 * epoch,
        "epoch": epoch,
        "dataset": "digits",
        "learning_rate": 0.1,
        "train_loss": 1 / epoch,
        "test_loss": 2 / epoch,
        "test_accuracy": 1 - 1 / (epoch + 1),
        "seconds": 1.0,
        "images_per_second": 1437.0,
    }
    for epoch in (1, 2, 3)
]
SEEDS = [
    row | {name: aggregate([0.9, 0.92]) for name in ("test_loss", "test_accuracy")} for row in ROWS
]
PERFECT = [row | {"test_accuracy": 1.0, "test_loss": 0.0, "learning_rate": 0.0} for row in ROWS]


def titles(drawing) -> list[str]:
    """The hover texts of a drawing, which must be well-formed and have a description."""
    root = ET.fromstring(drawing)
    assert root.tag == "svg"
    assert root.get("aria-label")
    assert not re.search(r"\b(nan|inf)\b", drawing)
    return [cast(str, title.text) for title in root.iter("title")]


@pytest.mark.parametrize(
    "rows", [ROWS, ROWS[:1], SEEDS, PERFECT], ids=["epochs", "one", "seeds", "0"]
)
def test_learning_curves_are_drawn(rows):
    drawn = curves.draw_curves(rows)
    assert set(drawn) == {"loss", "error", "rate"}
    assert all(len(titles(drawing)) == len(rows) for drawing in drawn.values())


def test_learning_curves_name_each_value_and_the_range_over_seeds():
    assert titles(curves.draw_curves(ROWS)["loss"])[1] == "epoch 2\ntraining 0.5000\ntest 1.0000"
    drawn = curves.draw_curves(SEEDS)["error"]
    assert titles(drawn)[0] == "epoch 1\ntest 9.00% (8.00% to 10.00%)"
    assert "<polygon" in drawn
    assert "At last: test 9.00%." in drawn


def test_long_curves_are_thinned_and_keep_their_end():
    rows: list[Any] = [ROWS[0] | {"epoch": epoch} for epoch in range(1, 1002)]
    thinned = curves.thin(rows)
    assert len(thinned) <= curves.MAX_ROWS
    assert thinned[-1] == rows[-1]
    assert curves.thin(ROWS) == ROWS
    assert curves.draw_curves([]) == curves.overlay_curves({"A": []}) == {}
    assert len(curves.draw_curves(rows)["loss"]) < 40_000


def test_the_curves_of_several_runs_are_overlaid():
    drawn = curves.overlay_curves({"A": ROWS, "B": ROWS[1:], "C": []})
    assert titles(drawn["error"]) == [
        "epoch 1\nA 50.00%",
        "epoch 2\nA 33.33%\nB 33.33%",
        "epoch 3\nA 25.00%\nB 25.00%",
    ]
    assert "run0" in drawn["loss"]
    assert "run1" in drawn["loss"]


def test_the_confusion_matrix_names_each_cell():
    matrix = [[3, 1], [0, 1_234]]
    drawn = charts.confusion_chart(matrix)
    assert titles(drawn) == [
        "3 of 4 images of a 0 were classified correctly",
        "1 of 4 images of a 0 were classified as 1",
        "0 of 1,234 images of a 1 were classified as 0",
        "1,234 of 1,234 images of a 1 were classified correctly",
    ]
    assert "1,238 images, of which 1 are misclassified" in drawn
    assert "nan" not in charts.confusion_chart([[5, 0], [0, 0]])


def test_calibration_names_the_images_of_each_bin():
    bins: Any = [
        {"low": 0.8, "high": 0.9, "examples": 1, "confidence": 0.85, "accuracy": 0.0},
        {"low": 0.9, "high": 1.0, "examples": 1_200, "confidence": 0.99, "accuracy": 0.98},
    ]
    calibration: Any = {"ece": 0.1, "bins": bins, "temperature": None}
    expected = "confidence 90.00% to 100.00%\n1,200 images"
    assert titles(charts.confidence_chart(calibration))[1] == expected
    assert titles(charts.reliability_chart(calibration))[1] == f"{expected}\n98.00% of them correct"


def test_robustness_and_intervals_are_drawn():
    drawn = charts.severity_chart("noise", [0.99, 0.5, 0.0])
    assert titles(drawn)[2] == "severity 2\naccuracy 0.00%"
    assert "99.00% without, 0.00% at the worst" in drawn
    drawn = charts.interval_chart("Runs", [("A", 0.99, (0.98, 1.0)), ("B", 0.9, (0.9, 0.9))])
    assert titles(drawn)[0] == "A 99.00%\n95% interval 98.00% to 100.00%"
    assert titles(charts.interval_chart("One", [("A", 1.0, (1.0, 1.0))]))
