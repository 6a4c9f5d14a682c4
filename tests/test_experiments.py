"""The experiments' scripts in small, as a person would run them."""

import importlib
import itertools
import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from mnist_flax import model
from mnist_flax.config import PRESETS
from mnist_flax.data import Dataset
from mnist_flax.run import parse
from tests.conftest import EXPERIMENTS


def run(script, *arguments):
    command = [sys.executable, str(EXPERIMENTS / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(autouse=True)
def _scripts_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))


def load(script):
    return importlib.import_module(script)


@pytest.mark.slow
def test_a_stopped_experiment_goes_on(tmp_path):
    command = [sys.executable, str(EXPERIMENTS / "accuracy.py"), "--dataset=digits", "--seeds=1"]
    command += ["--preset=best", f"--runs={tmp_path}", f"--output={tmp_path}"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # which gets the signal as a whole, as from a terminal
    ) as process:
        assert process.stdout
        before = "".join(itertools.takewhile(lambda line: "epoch 1/" not in line, process.stdout))
        os.killpg(process.pid, signal.SIGINT)
        after = process.stdout.read()
    assert process.returncode == 130
    assert "Traceback" not in before + after
    assert "epoch 60/60" not in after
    assert not list(tmp_path.glob("*.json"))
    finished = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "epoch 1/" not in finished
    assert "epoch 60/60" in finished
    assert json.loads((tmp_path / "accuracy_best.json").read_text())["n"] == 1


@pytest.mark.slow
def test_the_benchmark_compares_what_is_installed(tmp_path):
    run(
        "benchmark.py", "--dataset=digits", "--output", str(tmp_path), "--cores=2", "--rounds=2",
        "--images=256", "--seeds=1", "--peers", "ours", "flax_plain", "torch", "--race", "ours",
        "ours_quick_again",
        "--parts", "speed", "start", "accuracy",
    )  # fmt: skip
    result = json.loads((tmp_path / "benchmark.json").read_text())
    table = (tmp_path / "benchmark.md").read_text()
    peers = result["speed"]["peers"]
    assert set(peers) | set(result["missing"]) == {"ours", "flax_plain", "torch"}
    for name in result["missing"]:
        assert "Not installed, so not measured: PyTorch" in table, name
    for row in peers.values():
        assert len(row["rounds"]) == 2
        assert 0 < row["slowest"] <= row["images_per_second"] <= row["fastest"]
        assert row["epoch_seconds"] == 60_000 / row["images_per_second"]
        assert row["peak_bytes"] > 2**20
    ratios = peers["ours"]["epoch_against_fastest_peer"]["per_round"]
    rivals = [row["rounds"] for name, row in peers.items() if name != "ours"]
    for turn, ratio in enumerate(ratios):
        assert ratio == max(row[turn] for row in rivals) / peers["ours"]["rounds"][turn]
    for kind in ("cold", "warm"):
        laps = {name: lap["mean"] for name, lap in result["start"][kind].items()}
        assert laps.pop("total") == pytest.approx(sum(laps.values()))
    (curve,) = result["accuracy"]["ours"]["curves"]
    assert [point["seconds"] for point in curve] == sorted(point["seconds"] for point in curve)
    assert result["accuracy"]["ours"]["99.00%"]["reached"] in (0, 1)
    assert len(result["accuracy"]["ours_quick_again"]["curves"][0]) == 1
    assert "mnist_flax, reference recipe" in table
    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG")


def test_a_target_counts_only_when_every_seed_reaches_it(benchmark):
    low = [{"seconds": 1.0, "test_accuracy": 0.9}, {"seconds": 2.0, "test_accuracy": 0.985}]
    high = [{"seconds": 4.0, "test_accuracy": 0.991}]
    assert benchmark.reach([low, high], 0.98) == {
        "median": 3.0,
        "reached": 2,
        "per_seed": [2.0, 4.0],
    }
    assert benchmark.reach([low, high], 0.99) == {
        "median": None,
        "reached": 1,
        "per_seed": [None, 4.0],
    }


@pytest.fixture
def benchmark():
    return load("benchmark")


@pytest.mark.parametrize("name", ["ours", "ours_default", "flax_plain"])
def test_a_peer_is_the_same_network_and_learns(benchmark, digits: Dataset, name):
    peers = benchmark.peers
    peer = peers.PEERS[name](peers.Task(digits, 0.0, 28, 32, seed=0, cores=1))
    assert peer.parameters == peers.PARAMETERS
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(4):
            peer.train(len(digits.train[0]))
    assert peer.evaluate() > 0.8


@pytest.mark.slow
def test_limits_are_measured_and_stored(tmp_path):
    run("limits.py", "--dataset=digits", "--seeds=2", "--epochs=1", "--output", str(tmp_path))
    result = json.loads((tmp_path / "limits_cpu_float32.json").read_text())
    (budget,) = result["budgets"]
    assert budget["n"] == len(budget["test_accuracy"]["per_seed"]) == 2
    assert 0 < result["machine_limits"]["compiled_arithmetic_of_best"] < 2


def test_the_plain_arithmetic_is_counted_by_hand():
    limits = load("limits")
    convolutions = [20 * 20 * 9 * 64, 8 * 8 * 576 * 64, 2 * 2 * 576 * 64]
    dense = 64 * 64 + 64 * 32 + 32 * 10
    expected = 2 * (2 * convolutions[0] + 3 * (sum(convolutions[1:]) + dense))
    assert limits.plain_flops(22) == limits.plain_flops(28) == expected
    assert model.NUM_BLOCKS == 3


@pytest.mark.slow
def test_the_experiments_run_from_training_to_picture(tmp_path):
    """Each as its README says, on little data; a second time without training again."""
    common = ("--dataset=digits", "--runs", str(tmp_path / "runs"), "--output", str(tmp_path))
    run("reference.py", "--seeds=2", *common)
    run("blind_border.py", "--seeds=2", *common)
    (tmp_path / "reference.json").unlink()
    assert "finished already" in run("reference.py", "--seeds=2", *common)
    reference = json.loads((tmp_path / "reference.json").read_text())
    border = json.loads((tmp_path / "blind_border.json").read_text())
    run("accuracy.py", "--preset=reference", "--seeds=2", *common)
    accuracy = json.loads((tmp_path / "accuracy_reference.json").read_text())
    same = reference["paper"]["test_accuracy"]["per_seed"]
    assert accuracy["test_accuracy"]["per_seed"] == same
    for variant in ("paper", "notebook"):
        assert len(reference[variant]["test_accuracy"]["per_seed"]) == 2
    assert border["blind_rows"] == border["blind_columns"] == [22, 23, 24, 25, 26, 27]
    assert border["largest_change_of_a_logit_when_they_are_replaced"] == 0.0
    assert 0 == border["ink_lost"]["centred_window"] < border["ink_lost"]["reference"] < 0.5
    worth = border["window_against_whole"]
    assert worth["paired"]
    assert worth["accuracy_a"]["per_seed"] == same
    for name in ("reference", "blind_border"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_the_ablation_goes_from_one_preset_to_the_other():
    ablation = load("ablation")
    flags = list(ablation.cumulative(ablation.PATH).values())
    assert parse([*flags[0], "--workdir", "w"]).config == PRESETS["reference"]
    assert parse([*flags[-1], "--workdir", "w"]).config == PRESETS["default"]
    for table, preset in (("AROUND_DEFAULT", "default"), ("WITHOUT_BEST", "best")):
        for name, changes in getattr(ablation, table).items():
            config = parse(["--preset", preset, *changes, "--workdir", "w"]).config
            assert (config == PRESETS[preset]) == (not changes), name


def test_the_notebooks_images_have_unit_columns():
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), np.uint8)
    images[0, :, 5] = 0
    scaled = load("reference").unit_columns(images)
    lengths = np.sqrt((scaled.astype(float) ** 2).sum(axis=1)) / 255
    assert not scaled[0, :, 5].any()
    np.testing.assert_allclose(np.delete(lengths[0], 5, axis=0), 1, atol=0.01)


def test_a_budget_of_images_keeps_them_and_the_number_of_steps(tmp_path, monkeypatch):
    budget = load("budget")
    configs = {}

    class Trainer:
        dataset = "mnist"

        def train(self, *flags):
            config = parse(["--dataset", "mnist", *flags, "--workdir", "w"]).config
            configs[config.train_examples] = config
            return tmp_path

    monkeypatch.setattr(budget.training, "summary", lambda _: dict.fromkeys(
        ("config", "environment", "test_accuracy", "test_loss")
    ))  # fmt: skip
    for images in budget.IMAGES:
        budget.by_images(Trainer(), images, 2)
        config = configs[images]
        assert config.total_steps == pytest.approx(PRESETS["default"].total_steps, rel=0.01)
        assert config.num_seeds == 2
