"""MNIST-C (https://arxiv.org/abs/1906.02337): MNIST's test images with 15 kinds of corruption."""

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mnist_flax.core.config import UserError
from mnist_flax.data import Arrays
from mnist_flax.data.download import data_root, fetch, original_files

FILE = "mnist_c.zip"


def load_mnist_c(
    data_dir: Path | None, manual_dir: Path | None, log: Callable[[str], None]
) -> dict[str, Arrays]:
    """Test images uint8 [10,000, 28, 28, 1] and labels int32 [10,000] of each corruption.

    Arguments and errors are those of `load_dataset`; `manual_dir` may hold `mnist_c.zip`.
    """
    originals = original_files("mnist_corrupted", data_root(data_dir))
    path = fetch("MNIST-C (247 MB)", originals, manual_dir, log) / FILE
    try:
        with zipfile.ZipFile(path) as archive:
            kinds = {Path(name).parent.name for name in archive.namelist()}
            kinds -= {"identity", "mnist_c", ""}
            return {kind: _read(archive, f"mnist_c/{kind}") for kind in sorted(kinds)}
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, KeyError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}") from error


def _read(archive: zipfile.ZipFile, folder: str) -> Arrays:
    images, labels = (
        np.load(archive.open(f"{folder}/test_{part}.npy")) for part in ("images", "labels")
    )
    if images.shape != (len(labels), 28, 28, 1) or images.dtype != np.uint8:
        raise ValueError(f"{folder} holds {images.dtype}{images.shape}")
    return images, labels.astype(np.int32)
