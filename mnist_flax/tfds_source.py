"""MNIST and its kin: downloaded and prepared once by TFDS, then read from a cache.

TFDS downloads, checks and stores the data, but its own MNIST reader needs TensorFlow.
`_builder` reads the same files without it; the URLs, checksums and what lies on disk stay
TFDS's own, so the stock `tfds.data_source("mnist")` reads the prepared folder too.
"""

import contextlib
import errno
import gzip
import io
import logging
import os
import sys
import threading
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from mnist_flax.config import UserError

SPLITS = ("train", "test")
FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
PROBE_SECONDS = 8.0
CACHE_NAME = "mnist_flax_decoded.npz"

Arrays = tuple[np.ndarray, np.ndarray]


def load_tfds(
    name: str, data_dir: Path | None, manual_dir: Path | None, log: Callable[[str], None]
) -> dict[str, Arrays]:
    """Images uint8 [N, 28, 28, 1] and labels int32 [N] of the splits `train` and `test`.

    Args:
      name: `mnist`, `fashion_mnist` or `kmnist`.
      data_dir: TFDS's data folder; its own default where None.
      manual_dir: a read-only folder with the four original `.gz` files; or None.
      log: told about each slow thing before it starts.

    Raises:
      DataUnavailable: neither prepared, nor in `manual_dir`, nor downloadable.
      UserError: a file is damaged, or a folder cannot be used.
    """
    try:
        folder = Path(_builder(name, data_dir).data_dir)
        cached = _read_cache(folder)
        if cached is None:
            with _lock(folder, log):
                cached = _read_cache(folder) or _make_cache(name, data_dir, manual_dir, log)
        return cached
    except OSError as error:
        raise UserError(f"cannot use the data folder: {error}") from error


def _make_cache(
    name: str, data_dir: Path | None, manual_dir: Path | None, log: Callable[[str], None]
) -> dict[str, Arrays]:
    with quiet_tfds():
        builder = _builder(name, data_dir)
        if not builder.is_prepared():
            _prepare(builder, manual_dir, log)
        log(f"reading {name} from {builder.data_dir} (only this once, about 10 s)")
        splits = {split: _decode(builder, split) for split in SPLITS}
        _write_cache(Path(builder.data_dir), splits)
        return splits


def _builder(name: str, data_dir: Path | None) -> Any:
    """A TFDS builder of the standard data set that needs no TensorFlow."""
    import PIL.Image
    from tensorflow_datasets.core import constants
    from tensorflow_datasets.image_classification import mnist as tfds_mnist

    bases = {
        "mnist": tfds_mnist.MNIST,
        "fashion_mnist": tfds_mnist.FashionMNIST,
        "kmnist": tfds_mnist.KMNIST,
    }

    class Builder(bases[name], skip_registration=True):  # pyright: ignore
        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            paths = dl_manager.download(
                {split: [self.URL + file for file in FILES[split]] for split in SPLITS}
            )
            return {split: self._generate_examples(*paths[split]) for split in SPLITS}

        def _generate_examples(self, images_path: Any, labels_path: Any) -> Iterator[Any]:
            images, labels = read_idx(images_path), read_idx(labels_path)
            if len(images) != len(labels):
                raise UserError(f"{images_path} and {labels_path} do not belong together")
            for index, (image, label) in enumerate(zip(images, labels, strict=True)):
                yield index, {"image": PIL.Image.fromarray(image), "label": int(label)}

    Builder.name = name
    try:
        return Builder(data_dir=data_dir, file_format="array_record")
    except ValueError:
        # Prepared already as TFRecord, which only TensorFlow reads; ours goes beside it.
        root = Path(data_dir or constants.DATA_DIR)
        return Builder(data_dir=root / "array_record", file_format="array_record")


def read_idx(path: os.PathLike[str]) -> np.ndarray:
    """The uint8 array in a gzipped IDX file (http://yann.lecun.com/exdb/mnist).

    Raises:
      UserError: it is not such a file.
    """
    try:
        with gzip.open(path) as file:
            content = file.read()
        if content[:3] != b"\0\0\x08":
            raise ValueError("not an IDX file of bytes")
        ndim = content[3]
        shape = np.frombuffer(content, ">u4", count=ndim, offset=4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * ndim).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise UserError(f"{path} is damaged: {error}") from error


def _prepare(builder: Any, manual_dir: Path | None, log: Callable[[str], None]) -> None:
    import tensorflow_datasets as tfds

    files = [file for split in SPLITS for file in FILES[split]]
    if manual_dir is None or not all((manual_dir / file).exists() for file in files):
        probe(builder.URL + files[0], builder.name, "the four original .gz files")
        log(f"downloading {builder.name} to {builder.data_dir}")
    log(f"preparing {builder.name} in {builder.data_dir} (only this once, about 15 s)")
    config = tfds.download.DownloadConfig(
        manual_dir=manual_dir, try_download_gcs=False, force_checksums_validation=True
    )
    with explaining_downloads(builder.name), contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_config=config)


def _decode(builder: Any, split: str) -> Arrays:
    from tqdm import tqdm

    source = builder.as_data_source(split)
    images = np.empty((len(source), *builder.info.features["image"].shape), np.uint8)
    labels = np.empty(len(source), np.int32)
    starts = range(0, len(source), 1000)
    for start in tqdm(starts, desc=f"reading {split}", disable=not sys.stderr.isatty()):
        indices = range(start, min(start + 1000, len(source)))
        for index, example in zip(indices, source.__getitems__(indices), strict=True):
            images[index], labels[index] = example["image"], example["label"]
    return images, labels


def _read_cache(folder: Path) -> dict[str, Arrays] | None:
    """The cached arrays, each checked by its CRC in the zip format; None if not all are right."""
    try:
        with (folder / CACHE_NAME).open("rb") as file, np.load(file, allow_pickle=False) as cache:
            return {split: (cache[f"{split}_images"], cache[f"{split}_labels"]) for split in SPLITS}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def _write_cache(folder: Path, splits: dict[str, Arrays]) -> None:
    arrays: dict[str, Any] = {}
    for split, (images, labels) in splits.items():
        arrays |= {f"{split}_images": images, f"{split}_labels": labels}
    # A read-only data folder works too, only slower.
    temporary = folder / f"{CACHE_NAME}.{os.getpid()}.tmp"
    with contextlib.suppress(OSError):
        try:
            with temporary.open("wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(folder / CACHE_NAME)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def quiet_tfds() -> Iterator[None]:
    """Keeps TFDS's notes off the screen, and its progress bars too where it is no screen."""
    import tensorflow_datasets as tfds

    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
