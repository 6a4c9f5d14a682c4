"""The lines of many runs, from their files alone."""

import dataclasses
import json
import os
import socket
from typing import Any

import pytest
from scipy import stats

from mnist_flax.core.config import Config
from mnist_flax.engine.seed_stats import aggregate
from mnist_flax.evaluate.leaderboard import (
    accuracy_interval,
    describe_accuracy,
    describe_rows,
    find_workdirs,
    is_running,
    read_leaderboard,
)
from tests.evaluate.test_charts import ROWS
from tests.evaluate.test_report import SUMMARY


def make_run(folder, dataset: Any = "digits", accuracy: Any = None, finished=True, **changes):
    """The files of a run, without a training."""
    folder.mkdir(parents=True)
    config = Config(dataset=dataset, epochs=5, **changes)
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    if accuracy is not None:
        row = ROWS[2] | {"test_accuracy": accuracy}
        (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        if finished:
            summary = SUMMARY | {"test_accuracy": accuracy, "epochs": 5}
            (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_the_best_run_of_each_dataset_comes_first(tmp_path):
    make_run(tmp_path / "a", accuracy=0.9)
    make_run(tmp_path / "deep" / "b", accuracy=aggregate([0.94, 0.96]), num_seeds=2)
    make_run(tmp_path / "c", accuracy=0.92, finished=False)
    make_run(tmp_path / "d")
    make_run(tmp_path / "e", dataset="mnist", accuracy=0.99)
    notes = []
    rows = read_leaderboard(tmp_path, notes.append)
    assert [row["name"] for row in rows] == ["deep/b", "c", "a", "d", "e"]
    assert [row["state"] for row in rows] == [
        "finished", "unfinished", "finished", "unfinished", "finished"
    ]  # fmt: skip
    assert rows[0]["interval95"] == aggregate([0.94, 0.96])["interval95"]  # type: ignore[index]
    assert rows[3]["test_accuracy"] is rows[3]["parameters"] is rows[3]["saved"] is None
    assert notes == []
    assert json.loads(json.dumps(rows)) == rows
    lines = describe_rows(rows)
    assert lines[0].split() == [
        "run", "dataset", "accuracy", "loss", "epochs", "parameters", "date", "recipe"
    ]  # fmt: skip
    assert "95.00% ± 1.41" in lines[1]
    assert " 3/5 " in lines[2]
    assert " unfinished  preset default" in lines[2]
    assert len({line.index("preset") for line in lines[1:]}) == 1


def test_a_workdir_itself_is_listed_and_is_not_searched(tmp_path):
    run = make_run(tmp_path / "run", accuracy=0.9)
    make_run(run / "checkpoints", accuracy=0.8)
    assert list(find_workdirs(tmp_path)) == [run]
    assert [row["name"] for row in read_leaderboard(run, print)] == ["run"]


def test_folders_that_cannot_be_read_are_skipped_with_a_note(tmp_path):
    make_run(tmp_path / "good", accuracy=0.9)
    (make_run(tmp_path / "damaged", accuracy=0.9) / "summary.json").write_text("{")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "bert"}')
    notes = []
    assert [row["name"] for row in read_leaderboard(tmp_path, notes.append)] == ["good"]
    assert len(notes) == 2
    assert all(note.startswith("note: skipped: ") for note in notes)


def test_a_run_is_running_while_its_process_lives(tmp_path):
    assert not is_running(tmp_path)
    lock = tmp_path / ".lock"
    for content, expected in (
        (f"process {os.getpid()} on {socket.gethostname()}", True),
        (f"process 999999999 on {socket.gethostname()}", False),
        ("process 1 on another-machine", True),
        ("", False),
        ("process x on y", False),
    ):
        lock.write_text(content)
        assert is_running(tmp_path) == expected, content
    lock.write_text(f"process {os.getpid()} on {socket.gethostname()}")
    os.utime(lock, (0, 0))  # of an earlier process with the same number
    assert not is_running(tmp_path)


@pytest.mark.parametrize("correct", [0, 1, 357, 360])
def test_the_interval_of_a_single_network_is_wilsons(correct):
    expected = stats.binomtest(correct, 360).proportion_ci(0.95, method="wilson")
    interval = accuracy_interval(correct / 360, "digits")
    assert interval == pytest.approx([expected.low, expected.high], abs=1e-6)
    assert accuracy_interval(None, "digits") is None


def test_the_interval_is_shown_where_there_are_no_seeds():
    row: Any = {"test_accuracy": 0.9943, "interval95": [0.9926, 0.9956]}
    assert describe_accuracy(row) == "99.43% (99.26 to 99.56)"
    row["test_accuracy"] = None
    assert describe_accuracy(row) == "-"
