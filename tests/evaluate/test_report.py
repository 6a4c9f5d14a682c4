"""The page of a run, without a browser."""

import dataclasses
import re
from datetime import UTC, datetime
from html.parser import HTMLParser

import numpy as np
from markupsafe import Markup

from mnist_flax.core.config import Config
from mnist_flax.engine.seed_stats import aggregate
from mnist_flax.engine.workdir import Summary
from mnist_flax.evaluate import pages, report
from mnist_flax.evaluate.report import Report, render_html, summary_lines
from tests.evaluate.test_charts import ROWS, SEEDS
from tests.evaluate.test_metrics import LABELS, PREDICTIONS, evaluate, make_logits

SUMMARY: Summary = {
    "dataset": "digits",
    "parameters": 81_066,
    "test_examples": 10,
    "test_accuracy": 0.7,
    "test_loss": 0.1,
    "epochs": 3,
    "steps": 36,
    "params_sha256": "0123456789abcdef" * 4,
    "seconds": {"train": 61.2, "total": 76.8},
    "environment": {"jax": "0.11.0", "<b>cores</b>": 2},
}
NOTHING = np.zeros((10, 28, 28))


def make_page(evaluation, **changes) -> Report:
    """A report on an evaluation, with images of noise."""
    mistakes = evaluation["misclassified"][: report.MAX_MISTAKES]
    rng = np.random.default_rng(0)
    made = Report(
        config=Config(dataset="digits"),
        parameters=81_066,
        environment=SUMMARY["environment"],
        saved=datetime(2025, 1, 2, 3, 4, tzinfo=UTC),
        metrics=ROWS,
        summary=SUMMARY,
        evaluation=evaluation,
        mistakes=mistakes,
        images=rng.integers(0, 256, (len(mistakes), 28, 28, 1), np.uint8),
        mean_images=NOTHING,
        saliency=NOTHING,
        kernel=rng.normal(size=(3, 3, 1, 64)),
    )
    return dataclasses.replace(made, **changes)


EVALUATION = evaluate(make_logits(PREDICTIONS), LABELS, dataset="<b>digits</b>")


class Outline(HTMLParser):
    """The headings of a page, its opened elements, and whether all are closed."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.headings, self.attributes = [], [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.attributes.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)
        if re.fullmatch(r"h\d", tag):
            self.headings.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def words(page: str) -> str:
    """The text of a page in one line, without its elements."""
    return " ".join(re.sub(r"<[^>]*>", " ", page).split())


def test_the_page_is_self_contained_and_escaped():
    page = render_html(make_page(EVALUATION))
    assert "<b>digits" not in page
    assert "&lt;b&gt;cores&lt;/b&gt;" in page
    assert not re.search(r"https?:|src=\"(?!data:)|href=\"(?!data:|#)|url\(", page)
    assert page.count('class="digit"') == 3 + 10


def test_the_page_has_the_structure_that_readers_of_screens_need():
    outline = Outline(render_html(make_page(EVALUATION)))
    assert outline.headings[0] == "h1"
    assert outline.headings.count("h1") == 1
    assert set(outline.headings) <= {"h1", "h2", "h3"}
    tags = [tag for tag, _ in outline.attributes]
    assert tags.count("main") == 1
    assert all(attributes.get("alt") for tag, attributes in outline.attributes if tag == "img")
    links = {x["href"] for tag, x in outline.attributes if tag == "a"}
    assert links == {f"#{x['id']}" for tag, x in outline.attributes if tag == "section"}


def test_the_headline_is_in_cards():
    text = words(render_html(make_page(EVALUATION)))
    expected = (
        "Accuracy 70.00% 95% interval 39.68% to 89.22%: 3 of 10 test images are misclassified"
    )
    assert expected in text
    assert "Parameters 81,066" in text
    assert "Time 77 s 61 s of it in training" in text
    assert f"Calibration error {EVALUATION['calibration']['ece']:.2%}" in text
    assert "Trained with seed 0 for 2 epochs: preset default" in text


def test_provenance_holds_what_is_known():
    text = words(render_html(make_page(EVALUATION)))
    command = (
        "python -m mnist_flax.run --workdir WORKDIR --preset default --dataset digits --seed 0"
    )
    assert f"Command {command}" in text
    assert "Saved 2025-01-02 03:04 UTC Versions jax 0.11.0" in text
    unknown = make_page(EVALUATION, saved=None, environment=None)
    text = words(render_html(unknown))
    assert "Saved" not in text
    assert "Versions" not in text


def test_the_page_shows_a_limited_number_of_mistakes_the_most_confident_first():
    count = report.MAX_MISTAKES + 1
    labels = np.ones(count, np.int32)
    logits = make_logits(np.zeros(count, int), np.linspace(0.5, 0.9, count).tolist())
    evaluation = evaluate(logits, labels)
    ordered = sorted(evaluation["misclassified"], key=lambda row: -row["confidence"])
    page = render_html(
        make_page(evaluation, mistakes=ordered[:-1], images=np.zeros((count - 1, 28, 28, 1)))
    )
    assert "241 of 241 test images are misclassified; these are the 240 of which it was" in words(
        page
    )
    shown = [float(x) for x in re.findall(r"<small>([\d.]+)%</small></figcaption>", page)]
    assert len(shown) == 240
    assert shown == sorted(shown, reverse=True)
    assert "<summary>180 more</summary>" in page
    assert len(page) < 1_000_000


def test_the_page_reports_several_networks():
    evaluation = evaluate(np.concatenate([make_logits(PREDICTIONS), make_logits(LABELS)]), LABELS)
    text = words(render_html(make_page(evaluation, metrics=SEEDS)))
    ensemble = evaluation["correct"] / 10
    assert "Accuracy 85.00% ± 21.21 mean and standard deviation of 2 networks" in text
    assert f"{ensemble:.2%} by their mean probability (95% interval" in text
    assert "the band around it goes from the lowest to the highest" in text


def test_the_training_loss_is_explained_by_what_was_done():
    moved = words(render_html(make_page(EVALUATION)))
    assert "the mean over an epoch in which the network was still learning" in moved
    assert "moved or distorted at random" in moved
    plain = Config(dataset="digits", shift_pixels=0)
    assert "moved or distorted" not in render_html(make_page(EVALUATION, config=plain))


def test_the_page_of_an_unfinished_run_without_mistakes():
    evaluation = evaluate(make_logits(LABELS), LABELS)
    page = render_html(make_page(evaluation, metrics=[], summary=None, environment=None))
    assert "100.00%" in page
    assert '<section id="mistakes">' not in page
    assert '<section id="curves">' not in page
    assert summary_lines(evaluation)[0].startswith("0 of 10 test images misclassified")


def test_the_page_shows_temperature_robustness_and_mnist_c():
    evaluation = evaluate(make_logits(PREDICTIONS), LABELS)
    evaluation["calibration"]["temperature"] = 1.25
    evaluation["calibration"]["ece_at_temperature"] = 0.0123
    evaluation["mnist_c"] = {"fog": 0.5, "dotted_line": 1.0}
    evaluation["robustness"] = {"noise": [0.9, 0.8]}
    page = render_html(make_page(evaluation))
    text = words(page)
    assert "divided by the temperature 1.250, fitted on the validation images, it is 1.23%" in text
    assert "<h2>Robustness</h2>" in page
    assert "with 2 corruptions of the test images: 75.00%" in text
    assert "dotted line 100.00%" in text


def test_the_drawing_pad_is_a_section_where_it_is_given():
    assert 'id="draw"' not in render_html(make_page(EVALUATION))
    page = render_html(make_page(EVALUATION, pad=Markup("<canvas></canvas>")))
    assert '<a href="#draw">' in page
    assert "<canvas></canvas>" in page


def test_classes_without_images_have_an_empty_picture(small_run, digits):
    import mnist_flax

    images, labels = digits.test
    chosen = labels < 2
    trained = mnist_flax.load(small_run)
    mean_images, maps = report.explain_classes(
        trained.first_params(), images[chosen], labels[chosen], trained.config
    )
    expected = images[labels == 1][:100, ..., 0].mean(axis=0)
    np.testing.assert_allclose(mean_images[1], expected)
    assert 0 < maps[1].max() <= 1
    assert not mean_images[2:].any()
    assert not maps[2:].any()


def test_values_have_one_format():
    assert pages.format_value(aggregate([0.1, 0.3])) == "0.2 ± 0.14"
    assert pages.format_value([{}, None, 0.5, 81_066, True]) == "{}, null, 0.5, 81,066, true"
    assert pages.format_loss(0.01819) == "0.0182"
    assert pages.format_loss(aggregate([0.02, 0.03])) == "0.0250 ± 0.0071"
    assert pages.format_range([0.9926, 0.99561]) == "99.26% to 99.56%"
    assert pages.format_points(-0.0031) == "-0.31"
    durations = [pages.format_duration(x) for x in (0.4, 77, 750, 7_500, 4e7)]
    assert durations == ["0 s", "77 s", "12.5 min", "2.1 h", "11,111.1 h"]
    assert pages.dataset_title("fashion_mnist") == "Fashion-MNIST"
