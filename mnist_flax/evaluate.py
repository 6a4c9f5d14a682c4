"""The command `python -m mnist_flax.evaluate`: how good a trained run is, and where it fails.

From a checkpoint alone; nothing of training is imported.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from mnist_flax import command, workdir
from mnist_flax.command import OptionalPath, path_from_environment
from mnist_flax.config import DATASET_SIZES, UserError
from mnist_flax.spread import mean_of, percent

PROG = "python -m mnist_flax.evaluate"


@dataclasses.dataclass(frozen=True)
class Options:
    """Tells how good a trained run is: accuracy, confusions, calibration, robustness."""

    workdir: OptionalPath = None
    """The run's workdir. Required."""

    checkpoint: str = "latest"
    """Which checkpoint: `latest`, `best` (by the validation accuracy) or a step."""

    split: Literal["test", "validation", "train"] = "test"
    """Which images."""

    dataset: Literal["as trained", "mnist", "fashion_mnist", "kmnist", "digits"] = "as trained"
    """Of which data set."""

    seed_index: int | None = None
    """Which of several networks. Default: all, answering together by their mean probability."""

    corruptions: bool = False
    """Also with images that are noisy, blurred, moved, turned, covered, and so on."""

    json: bool = False
    """Print everything as JSON, with every mistake."""

    no_report: bool = False
    """Do not write the report page anew."""

    data_dir: OptionalPath = None
    """TFDS's data folder. Default: TFDS_DATA_DIR, else TFDS's own."""

    manual_dir: OptionalPath = dataclasses.field(
        default_factory=lambda: path_from_environment("MNIST_FLAX_MANUAL_DIR")
    )
    """Read-only folder with the four original .gz files. Default: MNIST_FLAX_MANUAL_DIR."""
