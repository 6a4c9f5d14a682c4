"""The experiments with little data, run as a user would."""

import argparse
import importlib.metadata
import itertools
import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments import ablation, learning_curves, roofline, tutorial_baseline
from experiments.benchmark.__main__ import time_to_target
from experiments.benchmark.frameworks import FRAMEWORKS, PARAMETERS, Task, versions
from experiments.common.runs import load_result
from mnist_flax.core import model
from mnist_flax.core.config import PRESETS, Config
from mnist_flax.data.dataset import Dataset
from mnist_flax.run.command import parse
from tests.conftest import ROOT


def run(name, *arguments):
    command = [sys.executable, "-m", f"experiments.{name}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


@pytest.mark.nightly
def test_interrupted_experiments_resume(tmp_path):
    command = [sys.executable, "-m", "experiments.accuracy", "--dataset=digits", "--seeds=2"]
    command += ["--preset=best", f"--runs={tmp_path}", f"--output={tmp_path}"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        start_new_session=True,  # all of it receives the signal, as from a terminal
    ) as process:
        assert process.stdout
        before = "".join(
            itertools.takewhile(lambda line: "epoch  1/40" not in line, process.stdout)
        )
        os.killpg(process.pid, signal.SIGINT)
        after = process.stdout.read()
    assert process.returncode == 130
    assert "Traceback" not in before + after
    assert "epoch 40/40" not in after
    assert not list(tmp_path.glob("*.json"))
    finished = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert "epoch  1/40" not in finished
    assert "epoch 40/40" in finished
    result = json.loads((tmp_path / "accuracy_best.json").read_text())
    assert result["n"] == 2
    assert result["command"].startswith("python -m experiments.accuracy --dataset=digits")


@pytest.mark.nightly
def test_benchmark_compares_installed_frameworks(tmp_path):
    run(
        "benchmark", "--dataset=digits", "--output", str(tmp_path), "--cores=2", "--rounds=2",
        "--images=256", "--seeds=1", "--peers", "ours", "ours_bfloat16", "flax_plain", "torch",
        "--race", "ours", "ours_quick_again",
        "--parts", "speed", "start", "accuracy",
    )  # fmt: skip
    result = json.loads((tmp_path / "benchmark.json").read_text())
    assert result["command"].startswith("python -m experiments.benchmark --dataset=digits")
    table = (tmp_path / "benchmark.md").read_text()
    peers = result["speed"]["peers"]
    assert set(peers) | set(result["missing"]) == {"ours", "ours_bfloat16", "flax_plain", "torch"}
    assert "epoch_against_fastest_peer" not in peers["ours_bfloat16"]  # against float32
    for name in result["missing"]:
        assert "Not installed, so not measured: PyTorch" in table, name
    for row in peers.values():
        assert len(row["rounds"]) == 2
        assert 0 < row["slowest"] <= row["images_per_second"] <= row["fastest"]
        assert row["epoch_seconds"] == 60_000 / row["images_per_second"]
        assert row["peak_bytes"] > 2**20
    ratios = peers["ours"]["epoch_against_fastest_peer"]["per_round"]
    rivals = [row["rounds"] for name, row in peers.items() if not name.startswith("ours")]
    for turn, ratio in enumerate(ratios):
        assert ratio == max(row[turn] for row in rivals) / peers["ours"]["rounds"][turn]
    for kind in ("cold", "warm"):
        phases = {name: phase["mean"] for name, phase in result["start"][kind].items()}
        assert phases.pop("total") == pytest.approx(sum(phases.values()))
    (curve,) = result["accuracy"]["ours"]["curves"]
    assert [point["seconds"] for point in curve] == sorted(point["seconds"] for point in curve)
    assert result["accuracy"]["ours"]["99.00%"]["reached"] in (0, 1)
    assert len(result["accuracy"]["ours_quick_again"]["curves"][0]) == 1
    assert "mnist_flax, reference recipe" in table
    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG")


def test_median_time_to_target_needs_all_seeds():
    low = [{"seconds": 1.0, "test_accuracy": 0.9}, {"seconds": 2.0, "test_accuracy": 0.985}]
    high = [{"seconds": 4.0, "test_accuracy": 0.991}]
    assert time_to_target([low, high], 0.98) == {
        "median": 3.0,
        "reached": 2,
        "per_seed": [2.0, 4.0],
    }
    assert time_to_target([low, high], 0.99) == {
        "median": None,
        "reached": 1,
        "per_seed": [None, 4.0],
    }


@pytest.mark.nightly
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_frameworks_train_the_same_network(digits: Dataset, name):
    try:
        versions(name)
    except importlib.metadata.PackageNotFoundError as error:
        pytest.skip(f"{error} is not installed")
    trainer = FRAMEWORKS[name].make(Task(digits, 0.0, cores=1, batch_size=32))
    assert trainer.parameters == PARAMETERS
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(4):
            trainer.train(len(digits.train[0]))
    assert trainer.evaluate() > 0.8


@pytest.mark.nightly
def test_roofline_is_measured_and_stored(tmp_path, digits):
    flags = ("--dataset=digits", "--seeds=2", "--epochs=1", "--batch-size=50")
    run("roofline", *flags, "--output", str(tmp_path))
    result = json.loads((tmp_path / "roofline_cpu_float32.json").read_text())
    (row,) = result["trainings"]
    assert row["n"] == len(row["test_accuracy"]["per_seed"]) == 2
    assert result["config"]["batch_size"] == 50
    assert 0 < result["machine_limits"]["compiled_arithmetic_share_of_limit"] < 2
    assert result["same_bits_again"] == {"default": True, "deterministic": True}
    many = roofline.time_many_seeds(Config(dataset="digits"), digits, 2, 1000.0)
    assert many["times_as_fast_as_one_after_the_other"] == many["images_per_second"] / 1000


def test_plain_flops_equal_a_count_by_hand():
    convolutions = [20 * 20 * 9 * 64, 8 * 8 * 576 * 64, 2 * 2 * 576 * 64]
    dense = 64 * 64 + 64 * 32 + 32 * 10
    expected = 2 * (2 * convolutions[0] + 3 * (sum(convolutions[1:]) + dense))
    for size in (22, 28):
        assert roofline.plain_flops(Config(input_size=size)) == expected
    assert roofline.plain_flops(Config(channels=1)) < expected / 60
    assert model.NUM_BLOCKS == 3


@pytest.mark.nightly
def test_experiments_train_store_and_draw(tmp_path):
    """As README.md describes them, on little data; the second time without training."""
    common = ("--dataset=digits", "--runs", str(tmp_path / "runs"), "--output", str(tmp_path))
    run("tutorial_baseline", "--seeds=2", *common)
    run("unseen_border", "--seeds=2", *common)
    (tmp_path / "tutorial_baseline.json").unlink()
    assert "which is finished" in run("tutorial_baseline", "--seeds=2", *common)
    baseline = json.loads((tmp_path / "tutorial_baseline.json").read_text())
    border = json.loads((tmp_path / "unseen_border.json").read_text())
    run("accuracy", "--preset=reference", "--seeds=2", *common)
    accuracy = json.loads((tmp_path / "accuracy_reference.json").read_text())
    per_seed = baseline["reference"]["test_accuracy"]["per_seed"]
    assert accuracy["test_accuracy"]["per_seed"] == per_seed
    for variant in ("reference", "notebook"):
        assert len(baseline[variant]["test_accuracy"]["per_seed"]) == 2
    assert border["unseen_rows"] == border["unseen_columns"] == [22, 23, 24, 25, 26, 27]
    assert border["largest_logit_change_when_replaced"] == 0.0
    assert 0 == border["ink_lost"]["center_crop"] < border["ink_lost"]["reference"] < 0.5
    comparison = border["crop_against_whole"]
    assert comparison["paired"]
    assert comparison["accuracy_a"]["per_seed"] == per_seed
    assert isinstance(comparison["only_a_correct"], int)
    for name in ("tutorial_baseline", "unseen_border"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_ablation_leads_from_one_preset_to_the_other():
    flags = list(ablation.PATH.values())
    assert parse([*flags[0].split(), "--workdir", "w"]).config == PRESETS["reference"]
    assert parse([*flags[-1].split(), "--workdir", "w"]).config == PRESETS["default"]
    for table, preset in ((ablation.AROUND_DEFAULT, "default"), (ablation.WITHOUT_BEST, "best")):
        for name, changes in table.items():
            config = parse(["--preset", preset, *changes.split(), "--workdir", "w"]).config
            assert (config == PRESETS[preset]) == (not changes), name


def test_normalized_columns_have_unit_length():
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), np.uint8)
    images[0, :, 5] = 0
    normalized = tutorial_baseline.normalize_columns(images)
    lengths = np.sqrt((normalized.astype(float) ** 2).sum(axis=1)) / 255
    assert not normalized[0, :, 5].any()
    np.testing.assert_allclose(np.delete(lengths[0], 5, axis=0), 1, atol=0.01)


def test_learning_curves_keep_the_number_of_images_and_steps(tmp_path, monkeypatch):
    configs = {}

    def train(options, *flags):
        config = parse(["--dataset", "mnist", *flags, "--workdir", "w"]).config
        configs[config.train_examples] = config
        return tmp_path

    monkeypatch.setattr(learning_curves, "train", train)
    monkeypatch.setattr(learning_curves, "load_result", lambda _: dict.fromkeys(
        ("config", "environment", "test_accuracy", "test_loss")
    ))  # fmt: skip
    for images in learning_curves.IMAGES:
        options = argparse.Namespace(dataset="mnist", seeds=2)
        learning_curves.measure_images(options, images)
        config = configs[images]
        assert config.total_steps == pytest.approx(PRESETS["default"].total_steps, rel=0.01)
        assert config.num_seeds == 2


@pytest.mark.slow
def test_more_seeds_join_a_stored_result(tmp_path):
    common = ("--dataset=digits", "--preset=reference", "--seeds=2")
    common += ("--runs", str(tmp_path / "runs"), "--output", str(tmp_path))
    path = tmp_path / "accuracy_reference.json"
    with pytest.raises(subprocess.CalledProcessError) as refused:
        run("accuracy", "--first-seed=2", *common)
    assert refused.value.returncode == 2
    assert "no result of the 2 seeds before" in refused.value.stderr
    run("accuracy", *common)
    before = json.loads(path.read_text())
    run("accuracy", "--first-seed=2", *common)
    result = json.loads(path.read_text())
    assert result["config"] == before["config"] | {"num_seeds": 4}
    assert (result["n"], result["seeds"]) == (4, [0, 1, 2, 3])
    (origin,) = result["earlier"]
    for key in ("command", "commit", "machine", "environment", "seeds"):
        assert origin[key] == before[key]
    runs = [load_result(workdir) for workdir in (tmp_path / "runs").iterdir()]
    runs.sort(key=lambda run: run["config"]["seed"])
    for name in ("test_accuracy", "test_loss"):
        expected = [value for run in runs for value in run[name]["per_seed"]]
        assert result[name]["per_seed"] == pytest.approx(expected, rel=1e-5)
        assert result[name]["per_seed"][:2] == before[name]["per_seed"]
        assert result[name]["mean"] == pytest.approx(np.mean(expected), rel=1e-5)
