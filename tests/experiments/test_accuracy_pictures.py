"""The pictures of accuracies, from predictions and from stored results."""

import json
import shutil
import sys

import numpy as np
import pytest

from experiments import ablation, accuracy, disputed_labels, ladder, learning_curves
from experiments.common.provenance import RESULTS
from mnist_flax.engine.seed_stats import seed_statistics


def test_networks_together_are_scored_by_their_mean_probability():
    p = np.full((2, 3, 10), 0.01)
    p[:, 0, 7] = 0.91  # both see a 7
    p[0, 1, 3], p[1, 1, 5] = 0.91, 0.61  # the first one is more certain
    p[0, 2, 4], p[1, 2, 9] = 0.91, 0.91
    p /= p.sum(axis=-1, keepdims=True)
    result = accuracy.score(np.log(p), np.array([7, 5, 0]))
    assert result["test_accuracy"] == 1 / 3
    chosen = [0.91 / 1.0, (0.01 + 0.61 / 0.7) / 2, 0.01]
    assert result["test_loss"] == pytest.approx(-np.log(chosen).mean())


def test_errors_are_counted_with_and_without_the_rejected_labels(tmp_path):
    labels = np.zeros(10_000, np.int64)
    right = np.zeros((2, 10_000), np.int64)
    wrong = right.copy()
    wrong[:, [5, 947]] = 9  # 947 is a rejected label
    wrong[0, 6] = 4
    predicted = {"quick": wrong, "best": wrong[:1]}
    result = disputed_labels.count_errors(predicted, labels)
    quick = result["presets"]["quick"]
    assert quick["wrong_by_all"] == [5, 947]
    np.testing.assert_allclose(quick["accuracy"]["per_seed"], [0.9997, 0.9998])
    kept = quick["accuracy_without_rejected"]["per_seed"]
    np.testing.assert_allclose(kept, [1 - 2 / 9985, 1 - 1 / 9985])
    assert result["wrong_by_all"] == [5, 947]
    assert result["rejected_and_wrong_by_all"] == [947]
    assert result["most_disputed"][:3] == [5, 947, 6]
    images = np.zeros((10_000, 28, 28, 1), np.uint8)
    disputed_labels.draw(images, labels, predicted, result["most_disputed"], tmp_path)
    assert (tmp_path / "disputed_labels.png").stat().st_size > 10_000


def test_answers_are_sorted_by_how_many_networks_give_them():
    assert disputed_labels.answers(np.array([4, 9, 9, 9])) == "9 (75%), 4 (25%)"
    assert disputed_labels.answers(np.array([7])) == "7 (100%)"


def test_rejected_labels_had_at_most_two_of_five_votes():
    assert len(disputed_labels.REJECTED) == 15
    for own, other, _ in disputed_labels.REJECTED.values():
        assert own <= 2
        assert own + other <= 5


def test_the_ladder_shows_widths_presets_and_published_networks(tmp_path):
    presets = [ladder.read_preset(name) for name in ladder.PRESETS]
    assert {row["name"]: row["parameters"] for row in presets}["best"] == 81_066
    run = {"parameters": 2_568, "test_accuracy": seed_statistics([0.5, 0.6])}
    widths = [ladder.make_row("1 channel", 2, 3.0, run)]
    rows = {"channels": widths, "presets": presets, "published": ladder.PUBLISHED}
    ladder.draw(rows, tmp_path)
    assert (tmp_path / "ladder.png").stat().st_size > 10_000


@pytest.mark.parametrize("experiment", [ablation, learning_curves])
def test_stored_results_are_drawn_again(experiment, tmp_path):
    name = experiment.__name__.rsplit(".", 1)[1]
    result = json.loads((RESULTS / f"{name}.json").read_text())
    experiment.draw(result, tmp_path)
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_the_ablation_measures_one_table_and_keeps_the_others(tmp_path, monkeypatch):
    path = tmp_path / "ablation.json"
    shutil.copy(RESULTS / path.name, path)
    stored = json.loads(path.read_text())
    rows = stored["path"]["rows"][:2]
    monkeypatch.setattr(ablation, "measure", lambda *_, **__: rows)
    command = ["ablation", "--tables", "around_default", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    ablation.main()
    result = json.loads(path.read_text())
    assert result["around_default"]["rows"] == rows
    assert result["around_default"]["command"].endswith(" ".join(command[1:]))
    assert {**result, "around_default": None} == {**stored, "around_default": None}
