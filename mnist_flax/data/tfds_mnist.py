"""MNIST and its kin: downloaded and prepared once, then read from a cache.

The prepared folder is TFDS's: the stock `tfds.data_source("mnist")` reads it too.
"""

import contextlib
import gzip
import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mnist_flax.core.config import DATASET_SIZES, IMAGE_SHAPE, UserError
from mnist_flax.data import Arrays
from mnist_flax.data.download import data_root, fetch, lock_folder, original_files

FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
SPLITS = tuple(FILES)
VERSION = "3.0.1"  # of all three data sets in TFDS
CACHE_NAME = "mnist_flax_decoded.npz"


def load_tfds(
    name: str, data_dir: Path | None, manual_dir: Path | None, log: Callable[[str], None]
) -> dict[str, Arrays]:
    """Images uint8 [N, 28, 28, 1] and labels int32 [N] of the splits `train` and `test`.

    Arguments and errors are those of `load_dataset`.
    """
    root = data_root(data_dir)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # missing or damaged
        info = json.loads((root / name / VERSION / "dataset_info.json").read_bytes())
        if info["fileFormat"] == "tfrecord":
            root /= "array_record"  # only TensorFlow can read the other one, which stays untouched
    folder = root / name / VERSION
    splits = _read_cache(name, folder)
    if splits is None:
        with lock_folder(folder, log):
            splits = _read_cache(name, folder)
            if splits is None:
                splits = _prepare(name, root, manual_dir, log)
                _write_cache(name, folder, splits)
    return splits


def _prepare(
    name: str, root: Path, manual_dir: Path | None, log: Callable[[str], None]
) -> dict[str, Arrays]:
    """Prepares TFDS's folder if it is missing, and reads it."""
    from mnist_flax.data import tfds_builder

    folder, originals = root / name / VERSION, None
    if not folder.exists():
        path = fetch(name, original_files(name, root), manual_dir, log)
        originals = {split: _read_originals(name, split, path) for split in SPLITS}
    try:
        if originals is not None:
            log(f"preparing {name} in {folder} (only this once, about 15 s)")
            tfds_builder.prepare(name, VERSION, originals, root)
        log(f"reading {name} from {folder} (only this once, about 10 s)")
        return {s: check_arrays(name, s, *tfds_builder.read_split(folder, s)) for s in SPLITS}
    except Exception as error:  # TFDS, protobuf and array_record have no common one
        hint = "remove this folder to prepare it again" if folder.exists() else "is the disk full?"
        reason = textwrap.shorten(str(error), 200)
        raise UserError(f"{folder} cannot be prepared or read ({reason}); {hint}") from error


def _read_originals(name: str, split: str, folder: Path) -> Arrays:
    images, labels = (read_idx(folder / file) for file in FILES[split])
    return check_arrays(name, split, images[..., np.newaxis], labels.astype(np.int32))


def check_arrays(name: str, split: str, images: np.ndarray, labels: np.ndarray) -> Arrays:
    """The arrays; raises a ValueError if the config expects others of this split of the dataset."""
    count = DATASET_SIZES[name][SPLITS.index(split)]
    actual = f"{images.dtype}{images.shape} and {labels.dtype}{labels.shape}"
    if actual != (expected := f"uint8{(count, *IMAGE_SHAPE)} and int32{(count,)}"):
        raise ValueError(f"{name} has {split} images and labels {actual}, not {expected}")
    if labels.min() < 0 or labels.max() > 9:
        raise ValueError(f"{name} has {split} labels outside 0 to 9")
    return images, labels


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array in a gzipped IDX file (http://yann.lecun.com/exdb/mnist)."""
    content = gzip.decompress(path.read_bytes())
    start = 4 + 4 * content[3]
    shape = np.frombuffer(content[4:start], ">u4")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _write_cache(name: str, folder: Path, splits: dict[str, Arrays]) -> None:
    arrays: dict[str, Any] = {"name": name}
    for split, (images, labels) in splits.items():
        arrays |= {f"{split}_images": images, f"{split}_labels": labels}
    temporary = folder / f"tmp_{CACHE_NAME}"  # removed by `lock_folder` if it stays behind
    with contextlib.suppress(OSError):  # a read-only data folder works too, only slower
        np.savez(temporary, **arrays)
        temporary.replace(folder / CACHE_NAME)


def _read_cache(name: str, folder: Path) -> dict[str, Arrays] | None:
    """The cached arrays; None if they are missing, damaged or of another data set."""
    try:
        # Reading an entry to its end checks its CRC-32.
        with (folder / CACHE_NAME).open("rb") as file, np.load(file, allow_pickle=False) as cache:
            arrays = {s: (cache[f"{s}_images"], cache[f"{s}_labels"]) for s in SPLITS}
            splits = {s: check_arrays(name, s, *arrays[s]) for s in SPLITS}
            return splits if cache["name"] == name else None
    except Exception:  # zipfile and NumPy have no common one for a damaged file
        return None
