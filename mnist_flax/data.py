"""The data set as arrays: MNIST and its kin from TFDS, or scikit-learn's bundled digits."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mnist_flax.config import DATASET_SIZES, IMAGE_SHAPE, UserError
from mnist_flax.download import DataUnavailable
from mnist_flax.tfds_source import SPLITS, Arrays, load_tfds


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images uint8 [N, 28, 28, 1] and labels int32 [N] of each split, and their name.

    `validation` is empty unless a share of the training images was held out.
    """

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
    """Loads a data set; `auto` is MNIST or, where that cannot be had, the bundled digits.

    Args:
      name: a name in `DATASET_SIZES`, or `auto`.
      data_dir: TFDS's data folder; its own default where None.
      manual_dir: a read-only folder with the four original `.gz` files; or None.
      validation_fraction: share of the training images, from their end, to hold out.
      log: told about each slow thing before it starts.

    Raises:
      DataUnavailable: it is neither prepared, nor in `manual_dir`, nor downloadable.
      UserError: a file is damaged, or a folder cannot be used.
    """
    if manual_dir is not None and not manual_dir.is_dir():
        raise UserError(f"--manual-dir {manual_dir} is not a folder")
    if name == "digits":
        splits = _digits()
    else:
        try:
            splits = load_tfds("mnist" if name == "auto" else name, data_dir, manual_dir, log)
            name = "mnist" if name == "auto" else name
        except DataUnavailable as error:
            if name != "auto":
                raise
            print(_fallback_warning(error), file=sys.stderr, flush=True)
            name, splits = "digits", _digits()
    for split, count in zip(SPLITS, DATASET_SIZES[name], strict=True):
        _check(name, splits[split], count)
    images, labels = splits["train"]
    kept = len(images) - int(len(images) * validation_fraction)
    return Dataset(
        name=name,
        train=(images[:kept], labels[:kept]),
        validation=(images[kept:], labels[kept:]),
        test=splits["test"],
    )


def _fallback_warning(error: Exception) -> str:
    return (
        f"{'!' * 88}\n"
        f"WARNING: {error}.\n"
        "WARNING: training on scikit-learn's bundled digits instead: 1,437 training and 360 test\n"
        "WARNING: images of 8x8 pixels, enlarged. THE RESULTS ARE NOT MNIST RESULTS.\n"
        f"{'!' * 88}"
    )


def _check(name: str, arrays: Arrays, count: int) -> None:
    images, labels = arrays
    if images.shape != (count, *IMAGE_SHAPE) or images.dtype != np.uint8:
        raise UserError(f"{name} has images {images.dtype}{images.shape}, not uint8 of {count:,}")
    if labels.shape != (count,) or labels.dtype != np.int32:
        raise UserError(f"{name} has labels {labels.dtype}{labels.shape}, not int32 of {count:,}")
    if labels.min() < 0 or labels.max() > 9:
        raise UserError(f"{name} has labels outside 0 to 9")


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
