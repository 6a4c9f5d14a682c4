"""The page of several runs, and their text, without networks."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_flax.core.config import Config
from mnist_flax.engine.seed_stats import aggregate
from mnist_flax.evaluate import comparison
from mnist_flax.evaluate.comparison import RunGroup, describe_group, render_comparison, run_letter
from mnist_flax.evaluate.leaderboard import accuracy_interval, read_row
from mnist_flax.evaluate.significance import compare_logits
from tests.evaluate.test_charts import ROWS
from tests.evaluate.test_report import Outline, words
from tests.evaluate.test_significance import IMAGES, LABELS, logits_with_errors


def make_group(*error_rates) -> RunGroup:
    """Runs of three seeds each, with error rates."""
    logits = [
        logits_with_errors([rate, rate + 0.001, rate + 0.002], seed)
        for seed, rate in enumerate(error_rates)
    ]
    rows = []
    for index, x in enumerate(logits):
        accuracy = aggregate((x.argmax(-1) == LABELS).mean(axis=1))
        row: Any = read_row(
            Path(f"runs/{index}" + "<b>" * (index == 1)), Config(dataset="mnist"), run_letter(index)
        )
        row |= {"epoch": 2.5, "parameters": 81_066, "test_accuracy": accuracy, "test_loss": 0.02}
        rows.append(row | {"seeds": 3, "interval95": accuracy_interval(accuracy, "mnist")})
    side: Any = {"workdir": "w", "step": 1, "seeds": [0, 1, 2]}
    return RunGroup(
        dataset="mnist",
        rows=rows,
        metrics=[ROWS] * len(rows),
        comparisons=[
            {"a": side, "b": side, **compare_logits(logits[0], x, LABELS, True, ("A", name))}
            for x, name in zip(logits[1:], "BC", strict=False)
        ],
        images=np.random.default_rng(0).integers(0, 256, (IMAGES, 28, 28, 1), np.uint8),
    )


@pytest.fixture(scope="module")
def three() -> RunGroup:
    return make_group(0.04, 0.07, 0.05)


def test_the_page_has_the_leaderboard_and_each_run_against_the_first(three):
    page = render_comparison(three)
    outline = Outline(page)
    assert outline.headings == ["h1"] + 4 * ["h2"]
    text = words(page)
    assert text.index("A 0 preset default") < text.index("B 1&lt;b&gt; preset default")
    assert "B against A" in text
    assert re.search(
        r"A is better by [\d.]+ points: neither other seeds nor other test images", text
    )
    assert "C against A" in text
    assert "2.5 of 5" in text
    assert "paired by seed" in text
    links = {x["href"] for tag, x in outline.attributes if tag == "a"}
    assert links == {f"#{x['id']}" for tag, x in outline.attributes if tag == "section"}


def test_the_page_shows_the_images_that_changed(three, monkeypatch):
    result = three.comparisons[0]
    only_a = result["only_a_correct"]
    page = render_comparison(make_group(0.04, 0.07))
    assert f"{len(only_a)} images that only A classifies correctly" in page
    first = only_a[0]
    assert f"A {first['label']} that B classifies as {first['prediction_b']}" in page
    assert "There is no image that only B classifies correctly." in page
    monkeypatch.setattr(comparison, "MAX_IMAGES", 16)
    page = render_comparison(three)
    assert "These are the first 4 images." in page
    assert page.count('class="digit"') < 16


def test_a_single_network_has_no_interval_over_seeds():
    single = logits_with_errors([0.04], 0)
    group = make_group(0.04, 0.06)
    result = {**group.comparisons[0], **compare_logits(single, single, LABELS, paired=False)}
    rows: Any = [{**row, "interval95": None} for row in group.rows]
    group = RunGroup("mnist", rows, [[], []], [result], group.images)  # type: ignore[list-item]
    text = words(render_comparison(group))
    assert "unknown: it takes more seeds" in text
    assert "No difference at all." in text
    assert "Learning curves" not in text


def test_the_text_of_many_runs_has_a_line_for_each(three):
    lines = describe_group(three).splitlines()
    assert lines[1].startswith("A  runs/0")
    assert lines[2].startswith("C  runs/2")
    assert lines[3].startswith("B  runs/1<b>")
    difference = 100 * three.comparisons[0]["difference"]
    assert lines[5].startswith(f"B - A  {difference:.3f} points; 95% over seeds -")
    assert lines[6] == three.comparisons[0]["verdict"]
    assert lines[8].startswith("C - A  ")
    assert lines[9].startswith("A is better by ")


def test_there_are_names_for_any_number_of_runs():
    assert [run_letter(index) for index in (0, 25, 26, 51, 52)] == ["A", "Z", "A1", "Z1", "A2"]
