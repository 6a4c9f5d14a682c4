"""MNIST and its kin: downloaded and prepared once by TFDS, then read from a cache.

TFDS downloads, checks and stores the data, but its own MNIST reader needs TensorFlow.
`_builder` reads the same files without it; the URLs, checksums and what lies on disk stay
TFDS's own, so the stock `tfds.data_source("mnist")` reads the prepared folder too.
"""

import contextlib
import gzip
import hashlib
import io
import logging
import sys
import textwrap
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mnist_flax.config import UserError
from mnist_flax.download import alone, bounded_downloads, check_original, probe
from mnist_flax.workdir import replacing, write_text

SPLITS = ("train", "test")
FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
CACHE_NAME = "mnist_flax_decoded.npz"
DIGEST_NAME = "mnist_flax_decoded.sha256"

REMOVE = "remove this folder, and the next run prepares it again"
AGAIN = "once there is room for it, the same command tries again"

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
        cached = _read_cache(name, folder)
        if cached is None:
            with alone(log, folder, _downloads(name, folder)):
                cached = _read_cache(name, folder) or _make_cache(name, data_dir, manual_dir, log)
        return cached
    except OSError as error:
        raise UserError(f"cannot use the data folder: {error}") from error


def _make_cache(
    name: str, data_dir: Path | None, manual_dir: Path | None, log: Callable[[str], None]
) -> dict[str, Arrays]:
    with quiet_tfds():
        builder = _builder(name, data_dir)
        folder = Path(builder.data_dir)
        if not builder.is_prepared():
            if folder.exists():
                raise UserError(f"{folder} is not whole; {REMOVE}")
            with _explaining_damage(folder, "prepared", AGAIN):
                _prepare(builder, manual_dir, log)
        log(f"reading {name} from {folder} (only this once, about 10 s)")
        with _explaining_damage(folder):
            splits = {split: _decode(builder, split) for split in SPLITS}
        digest, known = _digest(name, splits), _read_digest(folder)
        if known not in (None, digest):
            raise UserError(f"{folder} does not hold what was prepared there; {REMOVE}")
        _write_cache(folder, splits, digest)
        return splits


def _builder(name: str, data_dir: Path | None) -> Any:
    """A TFDS builder of the standard data set that needs no TensorFlow."""
    import PIL.Image
    from tensorflow_datasets.core import constants
    from tensorflow_datasets.core.download import checksums
    from tensorflow_datasets.image_classification import mnist as tfds_mnist

    bases = {
        "mnist": tfds_mnist.MNIST,
        "fashion_mnist": tfds_mnist.FashionMNIST,
        "kmnist": tfds_mnist.KMNIST,
    }

    class Builder(bases[name], skip_registration=True):  # pyright: ignore
        def _info(self) -> Any:
            info = super()._info()
            # It would find nothing, and leave an empty temporary folder behind.
            info.initialize_from_bucket = lambda: None
            return info

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            urls = {split: [self.URL + file for file in FILES[split]] for split in SPLITS}
            paths = dl_manager.download(urls)
            expected = checksums.get_all_url_infos()
            for split in SPLITS:
                for url, path in zip(urls[split], paths[split], strict=True):
                    check_original(path, expected[url].checksum)
            return {split: self._generate_examples(*paths[split]) for split in SPLITS}

        def _generate_examples(self, images_path: Any, labels_path: Any) -> Iterator[Any]:
            images, labels = read_idx(images_path), read_idx(labels_path)
            if images.shape != (*labels.shape, 28, 28) or labels.max(initial=0) > 9:
                raise UserError(f"{images_path} and {labels_path} are not digits and their labels")
            for index, (image, label) in enumerate(zip(images, labels, strict=True)):
                yield index, {"image": PIL.Image.fromarray(image), "label": int(label)}

    Builder.name = name
    root = Path(data_dir or constants.DATA_DIR).expanduser()
    with _explaining_damage(root / name / str(Builder.VERSION)):
        try:
            return Builder(data_dir=root, file_format="array_record")
        except ValueError as error:
            if "already set to FileFormat.TFRECORD" not in str(error):
                raise
            # Prepared for TensorFlow, which alone reads it; ours goes beside it.
            return Builder(data_dir=root / "array_record", file_format="array_record")


def read_idx(path: Path) -> np.ndarray:
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
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
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
    with bounded_downloads(builder.name), contextlib.redirect_stdout(io.StringIO()):
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


@contextlib.contextmanager
def _explaining_damage(folder: Path, what: str = "read", hint: str = REMOVE) -> Iterator[None]:
    """About damaged files or a full disk, TFDS, protobuf and array_record raise what they like."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        reason = textwrap.shorten(str(error), 200)
        raise UserError(f"{folder} cannot be {what} ({reason}); {hint}") from error


def _downloads(name: str, folder: Path) -> Path:
    """Where TFDS keeps the files that the data in `folder` is prepared from."""
    return folder.parents[1] / "downloads" / name


def _digest(name: str, splits: dict[str, Arrays]) -> str:
    """The SHA-256 of a data set: of its name, and of the arrays with their kinds and shapes."""
    digest = hashlib.sha256(name.encode())
    for array in (array for split in SPLITS for array in splits[split]):
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _read_digest(folder: Path) -> str | None:
    """The digest of what was once prepared in a folder; None where none was kept."""
    try:
        return (folder / DIGEST_NAME).read_text(errors="replace").strip()
    except FileNotFoundError:
        return None


def _read_cache(name: str, folder: Path) -> dict[str, Arrays] | None:
    """The cached arrays; None if they are not the ones whose digest was kept."""
    try:
        with (folder / CACHE_NAME).open("rb") as file, np.load(file, allow_pickle=False) as cache:
            splits = {s: (cache[f"{s}_images"], cache[f"{s}_labels"]) for s in SPLITS}
    except Exception:  # about damaged files, zipfile and NumPy raise whatever they please
        return None
    return splits if _digest(name, splits) == _read_digest(folder) else None


def _write_cache(folder: Path, splits: dict[str, Arrays], digest: str) -> None:
    arrays: dict[str, Any] = {}
    for split, (images, labels) in splits.items():
        arrays |= {f"{split}_images": images, f"{split}_labels": labels}
    # A read-only data folder works too, only slower.
    with contextlib.suppress(OSError):
        write_text(folder / DIGEST_NAME, f"{digest}\n")
        with replacing(folder / CACHE_NAME) as path, path.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)


@contextlib.contextmanager
def quiet_tfds() -> Iterator[None]:
    """Keeps the notes of TFDS off the screen, and its progress bars too where it is no screen."""
    import tensorflow_datasets as tfds

    loggers = [logging.getLogger(name) for name in ("absl", "urllib3")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
