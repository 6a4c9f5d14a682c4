"""What a run shows: aligned lines that fit a terminal, the same ones in a file."""

import dataclasses
import io
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
from rich.console import Console

from mnist_flax.core.config import PRESETS, Config
from mnist_flax.engine.environment import current_environment
from mnist_flax.engine.seed_stats import seed_statistics
from mnist_flax.run import display


def row(epoch, **values) -> Any:
    defaults = {
        "step": 10 * epoch,
        "epoch": epoch,
        "dataset": "mnist",
        "learning_rate": 0.1,
        "train_loss": 2.34567,
        "test_loss": 0.04,
        "test_accuracy": 0.9943,
        "seconds": 3.0,
        "images_per_second": 19_045.4,
    }
    return {**defaults, **values}


def header(config):
    params = {"Dense_0": {"bias": jnp.zeros((config.num_seeds, 7))}}
    return display.describe_start(config, Path("runs/exp1"), params, current_environment(), 0)[-1]


@pytest.mark.parametrize("epochs", [1, 60, 999])
@pytest.mark.parametrize("fraction", [0.0, 0.1])
def test_lines_are_aligned_below_their_names_and_fit_80_columns(epochs, fraction):
    config = Config(epochs=epochs, validation_fraction=fraction)
    held_out = {"validation_loss": 0.05, "validation_accuracy": 1.0} if fraction else {}
    names = header(config)
    for epoch in {1, epochs}:
        line = display.describe_row(row(epoch, **held_out), config)
        assert len(line) <= len(names) <= 80 + 2 * (epochs > 99 and fraction > 0)
        for name, value in (("train loss", "2.3457"), ("test acc", "99.43%"), ("s/s", "19,045")):
            end = names.index(name) + len(name)
            assert line[:end].endswith(value), name
        assert line.startswith(f"epoch {epoch:>{len(str(epochs))}}/{epochs}  ")


def test_a_line_says_how_long_it_takes_still():
    config = Config(epochs=60)
    assert display.describe_row(row(59), config).endswith("   0:03")
    assert display.describe_row(row(1), config).endswith("   3:06")
    assert display.describe_row(row(1, images_per_second=100.0), config).endswith("  9.8 h")
    assert display.describe_row(row(60), config).endswith("  19,045")


def test_the_start_names_recipe_data_network_device_and_folder():
    config = dataclasses.replace(PRESETS["best"], dataset="mnist", num_seeds=3, seed=4, epochs=7)
    params = {"Dense_0": {"bias": jnp.zeros((3, 7))}}
    environment = {"backend": "cpu", "cores": 2, "device_count": 1, "device_kind": "cpu"}
    lines = display.describe_start(config, Path("runs/exp1"), params, environment, 938)
    assert lines[:2] == [
        "recipe   preset best with --epochs 7",
        "dataset  mnist, 60,000 training images",
    ]
    assert "network  3 networks (seeds 4 to 6) of 7 parameters" in lines
    assert "epochs   each line shows the means of the networks" in lines
    assert "folder   runs/exp1" in lines
    assert "start    resuming from step 938 of 6,566" in lines
    assert "device   2 CPU cores" in lines


SUMMARY: Any = {
    "dataset": "mnist",
    "test_accuracy": seed_statistics([0.994, 0.995]),
    "test_loss": 0.0187,
    "seconds": {"train": 20.0, "total": 25.0},
}


def test_the_result_is_one_line_in_a_file_and_a_box_on_a_terminal(monkeypatch):
    shown = {}
    for is_terminal in (False, True):
        file = io.StringIO()
        console = Console(file=file, force_terminal=is_terminal, width=80, color_system=None)
        monkeypatch.setattr(display, "console", lambda console=console: console)
        display.print_result(SUMMARY, Path("runs/exp1/report/index.html"))
        shown[is_terminal] = file.getvalue().splitlines()
    assert " ".join(shown[False]) == (
        "mnist: test accuracy 99.45% ± 0.07 (mean of 2 networks), test loss 0.0187, 25 s; "
        "see runs/exp1/report/index.html"
    )
    assert shown[True][0].startswith("╭─")
    assert "99.45% ± 0.07, mean of 2 networks" in shown[True][1]
    assert any("runs/exp1/report/index.html" in line for line in shown[True])
    assert len({len(line) for line in shown[True]}) == 1


def test_the_model_summary_shows_the_shapes_and_counts_of_the_tutorial():
    table = display.model_summary(Config(input_size=28))
    outputs = re.findall(r"│ (\w+)_\d +│.*│ float32\[1,([\d,]+)\] +│ [^│]*│$", table, re.MULTILINE)
    assert outputs == [
        ("Conv", "13,13,64"),
        ("Conv", "5,5,64"),
        ("Conv", "1,1,64"),
        ("Dense", "64"),
        ("Dense", "32"),
        ("Dense", "10"),
    ]
    for count in ("640 ", "36,928 ", "4,160 ", "2,080 ", "330 ", "81,066 "):
        assert count in table
