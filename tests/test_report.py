"""The page and its pictures."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from mnist_flax import metrics, plots, report
from mnist_flax.spread import figure
from tests.test_metrics import ANSWERS, LABELS, sure

LINES = [
    {"step": 12 * epoch, "epoch": epoch, "dataset": "digits", "train_loss": 1 / epoch}
    | {"test_loss": 2 / epoch, "test_accuracy": 1 - 1 / (epoch + 1), "validation_loss": 1.0}
    | {"validation_accuracy": 0.5, "learning_rate": 0.1}
    | {"seconds": 1.0, "images_per_second": 1437.0}
    for epoch in (1, 2, 3)
]
SEEDS = [
    line | {"test_loss": figure([line["test_loss"], 1.0]), "test_accuracy": figure([0.9, 0.92])}
    for line in LINES
]
SUMMARY = {"epochs": 3, "parameters": 81_066, "seconds": {"total": 1.5}}
EVALUATION = {
    **{"step": 36, "epochs": 3.0, "dataset": "<b>digits</b>", "split": "test"},
    **metrics.assess(sure(ANSWERS), LABELS),
}


def is_a_picture(png):
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
    return pixels.min() < 100 and pixels.max() == 255


@pytest.mark.parametrize("lines", [LINES, LINES[:1], SEEDS], ids=["epochs", "one", "seeds"])
def test_curves_are_drawn(lines):
    assert is_a_picture(plots.curves(lines))


def test_every_picture_is_drawn():
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), np.uint8)
    maps = np.random.default_rng(1).random((10, 28, 28))
    for png in (
        plots.confusion(EVALUATION["confusion"]),
        plots.gallery(images, EVALUATION["mistakes"]),
        plots.reliability(EVALUATION["calibration"]),
        plots.filters(np.random.default_rng(2).normal(size=(3, 3, 1, 40))),
        plots.saliency(maps, maps),
        plots.robustness({"noise": [0.9, 0.8], "blur": [0.9, 0.7]}),
    ):
        assert is_a_picture(png)


def test_the_page_stands_alone_and_escapes():
    pictures = {"confusion": b"png", "mistakes": b"png"}
    page = report.page({"seed": 0}, LINES, SUMMARY, EVALUATION, pictures)
    assert "70.00% of 10 test images right (95% interval 39.68 to 89.22%), after 3 epochs" in page
    assert "81,066 parameters" in page
    assert "<td class=text>seconds: total</td><td class=text>1.5</td>" in page
    assert "3 wrong answers" in page
    assert "<b>" not in page
    assert not re.search(r"https?:|src=\"(?!data:)|href=\"(?!data:)", page)
    assert page.count("data:image/png;base64,") == 2


def test_the_page_says_that_more_mistakes_were_made_than_it_shows():
    some = {"label": 5, "answer": 3, "probability": 1.0}
    evaluation = EVALUATION | {"mistakes": [some] * 61}
    told = "61 wrong answers, the most certainly wrong first, of which these are the first 60"
    assert told in report.page({}, LINES, SUMMARY, evaluation, {"mistakes": b"png"})


def test_the_page_tells_of_several_networks():
    logits = np.concatenate([sure(ANSWERS), sure(LABELS)])
    evaluation = EVALUATION | metrics.assess(logits, LABELS)
    page = report.page({}, SEEDS, SUMMARY, evaluation, {})
    assert "85.00% ± 21.21 of 10 test images right (mean and standard deviation of 2" in page
    assert f"by their mean probability {evaluation['right'] / 10:.2%} (95% interval" in page


def test_a_perfect_network_has_a_page_too():
    evaluation = EVALUATION | metrics.assess(sure(LABELS), LABELS)
    assert "10 test images right" in report.page({}, LINES, SUMMARY, evaluation, {})
    assert report.in_short(evaluation)[0].startswith("0 of 10 test images wrong")


def test_cells_show_figures_and_whatever_else_a_damaged_file_holds():
    assert report._text(figure([0.1, 0.3])) == "0.2 ± 0.14"
    assert report._text([{}, None, 0.5]) == "{}, null, 0.5"
