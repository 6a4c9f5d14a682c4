"""The experiments' scripts in small, as a person would run them."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from mnist_flax import model
from mnist_flax.data import Dataset

EXPERIMENTS = Path(__file__).parent.parent / "experiments"


def run(script, *arguments):
    command = [sys.executable, str(EXPERIMENTS / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


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
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    import benchmark  # pyright: ignore[reportMissingImports]

    return benchmark


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


def test_the_plain_arithmetic_is_counted_by_hand(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    import limits  # pyright: ignore[reportMissingImports]

    convolutions = [20 * 20 * 9 * 64, 8 * 8 * 576 * 64, 2 * 2 * 576 * 64]
    dense = 64 * 64 + 64 * 32 + 32 * 10
    expected = 2 * (2 * convolutions[0] + 3 * (sum(convolutions[1:]) + dense))
    assert limits.plain_flops(22) == limits.plain_flops(28) == expected
    assert model.NUM_BLOCKS == 3
