"""The page on trackers: its code follows a run that is killed and resumed, each row once."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "trackers.md"
NAMES = ("follow.py", "to_mlflow.py", "to_wandb.py")


def row(step: int, **values: Any) -> str:
    content = {"step": step, "epoch": step // 10, "dataset": "digits", "test_accuracy": 0.5}
    return json.dumps(content | values) + "\n"


@pytest.fixture
def scripts(tmp_path) -> Path:
    """A folder with the files of the page."""
    code = re.findall(r"^```py\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    for name, content in zip(NAMES, code, strict=True):
        compile(content, name, "exec")
        (tmp_path / name).write_text(content)
    return tmp_path


@pytest.fixture
def follow(scripts) -> SimpleNamespace:
    names: dict[str, Any] = {}
    exec((scripts / "follow.py").read_text(), names)
    return SimpleNamespace(**names)


def test_rows_of_an_interrupted_and_resumed_run_are_followed_once(follow, tmp_path):
    path, steps = tmp_path / "metrics.jsonl", []

    def collect() -> None:
        for found in follow.follow(tmp_path, seconds=0.001):
            steps.append(found["step"])

    def wait(count: int) -> None:
        deadline = time.monotonic() + 10
        while len(steps) < count:
            assert time.monotonic() < deadline
            time.sleep(0.001)

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    path.write_text(row(10) + row(20) + row(30) + row(40)[:9])  # killed while writing
    wait(3)
    path.write_text(row(10) + row(20))  # resumed from step 20
    path.write_text(row(10) + row(20) + row(30) + row(40) + row(50))
    (tmp_path / "summary.json").write_text("{}")
    thread.join(10)
    assert not thread.is_alive()
    assert steps == [10, 20, 30, 40, 50]
    assert [found["step"] for found in follow.follow(tmp_path, 30)] == [40, 50]


def test_several_seeds_are_passed_on_as_their_mean(follow):
    values = json.loads(row(10, test_loss={"mean": 0.5, "std": 0.1, "per_seed": [0.4, 0.6]}))
    assert follow.scalars(values) == {"epoch": 1, "test_accuracy": 0.5, "test_loss": 0.5}


@pytest.mark.slow
def test_mlflow_has_each_row_once(scripts, small_run):
    pytest.importorskip("mlflow")
    store = (scripts / "store").as_uri()
    environment = os.environ | {"MLFLOW_TRACKING_URI": store, "MLFLOW_ALLOW_FILE_STORE": "true"}
    command = [sys.executable, "to_mlflow.py", str(small_run)]
    for _ in range(2):  # the second time there is nothing left to do
        process = subprocess.run(
            command, cwd=scripts, env=environment, capture_output=True, text=True, check=False
        )
        assert process.returncode == 0, process.stderr
    (run,) = (scripts / "store").glob("*/*/metrics")
    logged = [line.split()[1:] for line in (run / "test_accuracy").read_text().splitlines()]
    expected = [json.loads(line) for line in (small_run / "metrics.jsonl").read_text().splitlines()]
    assert logged == [[str(x["test_accuracy"]), str(x["step"])] for x in expected]
    assert (run.parent / "params" / "batch_size").read_text() == "128"
