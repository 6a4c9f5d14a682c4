"""The page and its figures."""

import io
import re
from typing import cast

import numpy as np
import pytest
from PIL import Image

from mnist_flax.core.config import Config
from mnist_flax.engine.seed_stats import aggregate
from mnist_flax.engine.workdir import MetricsRow, Summary
from mnist_flax.evaluate import plots
from mnist_flax.evaluate.metrics import Evaluation, Misclassified
from mnist_flax.evaluate.report import format_value, render_html, summary_lines
from tests.evaluate.test_metrics import LABELS, PREDICTIONS, evaluate, make_logits

CONFIG = Config(dataset="digits")
METRICS: list[MetricsRow] = [
    {
        "step": 12 * epoch,
        "epoch": epoch,
        "dataset": "digits",
        "learning_rate": 0.1,
        "train_loss": 1 / epoch,
        "validation_loss": 1.0,
        "validation_accuracy": 0.5,
        "test_loss": 2 / epoch,
        "test_accuracy": 1 - 1 / (epoch + 1),
        "seconds": 1.0,
        "images_per_second": 1437.0,
    }
    for epoch in (1, 2, 3)
]
TWO_SEEDS = [
    cast(
        MetricsRow, row | {name: aggregate([0.9, 0.92]) for name in ("test_loss", "test_accuracy")}
    )
    for row in METRICS
]
SUMMARY: Summary = {
    "dataset": "digits",
    "parameters": 81_066,
    "test_examples": 10,
    "test_accuracy": 0.7,
    "test_loss": 0.1,
    "epochs": 3,
    "steps": 36,
    "params_sha256": "0123456789abcdef" * 4,
    "seconds": {"total": 1.5},
    "environment": {"jax": "0.11.0", "<b>cores</b>": 2},
}


EVALUATION = evaluate(make_logits(PREDICTIONS), LABELS, dataset="<b>digits</b>")


def is_drawn(png):
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
    return pixels.min() < 100 and pixels.max() == 255


@pytest.mark.parametrize("rows", [METRICS, METRICS[:1], TWO_SEEDS], ids=["epochs", "one", "seeds"])
def test_learning_curves_are_drawn(rows):
    assert is_drawn(plots.curves(rows))


def test_all_other_figures_are_drawn():
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), np.uint8)
    maps = np.random.default_rng(1).random((10, 28, 28))
    for png in (
        plots.confusion(EVALUATION["confusion"]),
        plots.misclassified_grid(images, EVALUATION["misclassified"]),
        plots.reliability(EVALUATION["calibration"]),
        plots.filters(np.random.default_rng(2).normal(size=(3, 3, 1, 40))),
        plots.saliency(maps, maps),
        plots.robustness({"noise": [0.9, 0.8], "blur": [0.9, 0.7]}),
    ):
        assert is_drawn(png)


def test_the_page_is_self_contained_and_escaped():
    figures = {"confusion": b"png", "misclassified": b"png"}
    page = render_html(CONFIG, METRICS, SUMMARY, EVALUATION, figures)
    text = " ".join(page.split())
    assert "70.00% accuracy on 10 test images (95% confidence interval 39.68 to 89.22%)" in text
    assert "after 2 epochs, 81,066 parameters" in text
    assert "<td class=text>seconds: total</td><td class=text>1.5</td>" in "".join(page.split("\n"))
    assert "3 misclassified images" in text
    assert "<b>" not in page
    assert "&lt;b&gt;cores&lt;/b&gt;" in page
    assert not re.search(r"https?:|src=\"(?!data:)|href=\"(?!data:)", page)
    assert page.count("data:image/png;base64,") == 2


def test_the_page_shows_at_most_60_misclassified_images():
    row: Misclassified = {"index": 0, "label": 5, "prediction": 3, "confidence": 1.0, "loss": 9.0}
    evaluation: Evaluation = {**EVALUATION, "misclassified": [row] * 61}
    page = render_html(CONFIG, METRICS, SUMMARY, evaluation, {"misclassified": b"png"})
    expected = "61 misclassified images, the largest loss first, of which these are the first 60"
    assert expected in " ".join(page.split())


def test_the_page_reports_several_networks():
    evaluation = evaluate(np.concatenate([make_logits(PREDICTIONS), make_logits(LABELS)]), LABELS)
    page = render_html(CONFIG, TWO_SEEDS, SUMMARY, evaluation, {})
    text = " ".join(page.split())
    assert "85.00% ± 21.21 accuracy on 10 test images (mean and standard deviation of 2" in text
    ensemble = evaluation["correct"] / 10
    assert f"{ensemble:.2%} by their mean probability (95% confidence interval" in text


def test_the_page_of_an_unfinished_run_without_errors():
    evaluation = evaluate(make_logits(LABELS), LABELS)
    page = render_html(CONFIG, [], None, evaluation, {})
    assert "100.00% accuracy on 10 test images" in page
    assert summary_lines(evaluation)[0].startswith("0 of 10 test images misclassified")


def test_the_page_shows_temperature_robustness_and_mnist_c():
    evaluation = evaluate(make_logits(PREDICTIONS), LABELS)
    evaluation["calibration"]["temperature"] = 1.25
    evaluation["calibration"]["ece_at_temperature"] = 0.0123
    evaluation["mnist_c"] = {"fog": 0.5, "stripe": 1.0}
    page = render_html(CONFIG, [], None, evaluation, {"reliability": b"png", "robustness": b"png"})
    text = " ".join(page.split())
    assert "temperature 1.250, fitted on the validation split, it is 1.23 points" in text
    assert "<h2>Robustness</h2>" in page
    assert "with 2 corruptions of the test images: 75.00%" in text


def test_cells_show_statistics_numbers_and_other_values():
    assert format_value(aggregate([0.1, 0.3])) == "0.2 ± 0.14"
    assert format_value([{}, None, 0.5]) == "{}, null, 0.5"
