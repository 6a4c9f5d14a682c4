"""The data set as arrays: MNIST and its kin from TFDS, or scikit-learn's bundled digits."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mnist_flax.core.config import DATASET_SIZES, UserError
from mnist_flax.data import Arrays
from mnist_flax.data.download import DataUnavailable
from mnist_flax.data.tfds_mnist import load_tfds

FALLBACK_WARNING = """\
{line}
WARNING: {error}.
WARNING: using scikit-learn's bundled digits instead: 1,437 training and 360 test images of
WARNING: 8x8 pixels, enlarged. THE RESULTS ARE NOT MNIST RESULTS. To read digits right now, use
WARNING: the network that was trained on MNIST: mnist-flax predict IMAGE...
{line}"""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images uint8 [N, 28, 28, 1] and labels int32 [N] of each split; validation may be empty."""

    name: str
    train: Arrays
    validation: Arrays
    test: Arrays


def load_dataset(
    name: str,
    data_dir: Path | None = None,
    manual_dir: Path | None = None,
    validation_fraction: float = 0.0,
    log: Callable[[str], None] = print,
) -> Dataset:
    """Loads a data set; `auto` is MNIST or, if it is unavailable, the bundled digits.

    `data_dir` is TFDS's data folder, with its default if None; `manual_dir` is a read-only folder
    with the original `.gz` files. `validation_fraction` is the share of the training images, from
    their end, to hold out. `log` receives a line before each slow step. Raises DataUnavailable if
    the data set is neither prepared, nor in `manual_dir`, nor downloadable, and a UserError if a
    file is damaged, or a folder cannot be used.
    """
    if name != "digits" and manual_dir is not None and not manual_dir.is_dir():
        raise UserError(f"{manual_dir} is not a folder (--manual-dir or MNIST_FLAX_MANUAL_DIR)")
    dataset = "mnist" if name == "auto" else name
    try:
        splits = _digits() if name == "digits" else load_tfds(dataset, data_dir, manual_dir, log)
    except DataUnavailable as error:
        if name != "auto":
            raise
        print(FALLBACK_WARNING.format(line="!" * 88, error=error), file=sys.stderr, flush=True)
        dataset, splits = "digits", _digits()
    images, labels = splits["train"]
    kept = len(images) - int(len(images) * validation_fraction)
    train, validation = (images[:kept], labels[:kept]), (images[kept:], labels[kept:])
    return Dataset(dataset, train, validation, splits["test"])


def _digits() -> dict[str, Arrays]:
    """scikit-learn's digits in MNIST's format: a 20x20 digit inside 28x28.

    The last 360, in scikit-learn's order, are the test split. The digits are the test part
    of https://archive.ics.uci.edu/dataset/80.
    """
    from PIL import Image
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    small = np.round(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    resized = [Image.fromarray(image).resize((20, 20), Image.Resampling.BICUBIC) for image in small]
    images = np.pad(np.stack([np.asarray(image) for image in resized]), ((0, 0), (4, 4), (4, 4)))
    images, labels = images[..., np.newaxis], np.asarray(labels, np.int32)
    train = DATASET_SIZES["digits"][0]
    return {"train": (images[:train], labels[:train]), "test": (images[train:], labels[train:])}
