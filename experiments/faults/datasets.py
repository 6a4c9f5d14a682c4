"""Damaged data, on small files that stand in for MNIST's.

After each fault the dataset is loaded: the correct arrays, or one line that says what is wrong.
"""

import atexit
import contextlib
import functools
import gzip
import itertools
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pooch

from experiments.faults.fault import Fault, Outcome, repeated
from mnist_flax.core.config import DATASET_SIZES, UserError
from mnist_flax.data import download, tfds_mnist
from mnist_flax.data.dataset import Dataset, load_dataset
from mnist_flax.data.tfds_mnist import CACHE_NAME, FILES, SPLITS, VERSION

COUNTS = {"train": 300, "test": 70}
NAMES = tuple(file for split in SPLITS for file in FILES[split])


def idx(array: np.ndarray, magic: bytes = b"\0\0\x08", count: int | None = None) -> bytes:
    """A gzipped IDX file; `count` is a wrong number of examples."""
    shape = (len(array) if count is None else count, *array.shape[1:])
    header = magic + bytes([array.ndim]) + np.array(shape, ">u4").tobytes()
    return gzip.compress(header + array.tobytes(), 1)


def write_originals(folder: Path, seed: int) -> None:
    """Writes the four files of a small dataset of noise."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for split, count in COUNTS.items():
        images, labels = FILES[split]
        (folder / images).write_bytes(idx(rng.integers(0, 256, (count, 28, 28), np.uint8)))
        (folder / labels).write_bytes(idx(rng.integers(0, 10, count, np.uint8)))


@contextlib.contextmanager
def expecting(folder: Path, url: str = "http://127.0.0.1:9/") -> Iterator[None]:
    """Makes the files in a folder, as they are now, the originals, which a server offers."""
    registry = {path.name: pooch.file_hash(path) for path in folder.iterdir()}

    def original_files(name: str, root: Path) -> pooch.Pooch:
        path = root / "downloads" / "mnist_flax" / name
        retries = download.RETRIES
        return pooch.create(path, base_url=url, registry=registry, retry_if_failed=retries)

    sizes = dict.fromkeys(("mnist", "fashion_mnist"), tuple(COUNTS.values()))
    with (
        mock.patch.object(tfds_mnist, "original_files", original_files),
        mock.patch.dict(DATASET_SIZES, sizes),
    ):
        yield


def load(folder: Path, manual: Path | None = None, name: str = "mnist") -> Dataset:
    """A dataset, as every command loads it."""
    return load_dataset(name, folder, manual, log=lambda _: None)


def verdict(folder: Path, expected: Dataset, name: str, manual: Path | None = None) -> Outcome:
    """What is wrong after a fault: data must load correctly or be refused in a line with `name`."""
    try:
        loaded = load(folder, manual)
    except UserError as error:
        if name not in str(error) or "\n" in str(error):
            return f"refused, but not by one line with {name}: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    else:
        pairs = zip((*loaded.train, *loaded.test), (*expected.train, *expected.test), strict=True)
        if not all(np.array_equal(actual, correct) for actual, correct in pairs):
            return "other arrays were loaded"
    temporary = [p for pattern in ("tmp*", "incomplete.*") for p in folder.rglob(pattern)]
    return f"left behind: {temporary[0].name}" if temporary else None


@functools.cache
def prepared() -> tuple[Path, Dataset]:
    """A folder with `originals`, `other` ones and `data` prepared from both, and MNIST's arrays."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for seed, name in enumerate(("originals", "other")):
        write_originals(folder / name, seed)
    with expecting(folder / "other"):
        load(folder / "data", folder / "other", "fashion_mnist")
    with expecting(folder / "originals"):
        return folder, load(folder / "data", folder / "originals")


DAMAGES = ("truncate", "empty", "flip", "zeros", "noise", "foreign", "delete")


def damage(path: Path, kind: str, other: Path, rng: random.Random) -> None:
    """Damages a file; `other` is the same file of another dataset."""
    content, foreign = bytearray(path.read_bytes()), other.read_bytes()
    path.unlink()
    if kind == "delete":
        return
    if kind == "flip":
        # Often near the end, where an archive has its table.
        reach = rng.choice((len(content), min(len(content), 300)))
        content[-1 - rng.randrange(reach)] ^= 1 << rng.randrange(8)
    damaged = {
        "truncate": content[: rng.randrange(len(content))],
        "empty": b"",
        "flip": content,
        "zeros": bytes(len(content)),
        "noise": rng.randbytes(len(content)),
        "foreign": foreign,
    }
    path.write_bytes(damaged[kind])


MALFORMED = (
    *("images for labels", "test for train", "wrong magic", "wrong count", "other count"),
    *("labels out of range", "truncate", "empty", "zeros", "noise"),
)
ORIGINALS = [(kind, True) for kind in (*MALFORMED, "flip", "foreign")]
ORIGINALS += [(kind, False) for kind in MALFORMED]


def swap(a: Path, b: Path) -> None:
    """Exchanges the contents of two files."""
    content = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(content)


def damage_originals(folder: Path, kind: str, rng: random.Random) -> None:
    """Damages one of the four files, or exchanges some."""
    split, name = rng.choice(SPLITS), rng.choice(NAMES)
    images, labels = (folder / file for file in FILES[split])
    count, zeros = COUNTS[split], np.zeros(COUNTS[split], np.uint8)
    match kind:
        case "images for labels":
            swap(images, labels)
        case "test for train":
            for train, test in zip(*FILES.values(), strict=True):
                swap(folder / train, folder / test)
        case "wrong magic":
            labels.write_bytes(idx(zeros, rng.choice([b"\0\0\x0d", b"\1\0\x08"])))
        case "wrong count":
            labels.write_bytes(idx(zeros, count=count + rng.choice([-1, 1, 10**6])))
        case "other count":
            labels.write_bytes(idx(zeros[1:]))
        case "labels out of range":
            labels.write_bytes(idx(zeros + np.uint8(rng.randrange(10, 256))))
        case _:
            damage(folder / name, kind, prepared()[0] / "other" / name, rng)


def damaged_originals(folder: Path, number: int, rng: random.Random) -> Outcome:
    """Files in --manual-dir that have the wrong checksum, or the correct one but are malformed."""
    kind, detectable = ORIGINALS[number % len(ORIGINALS)]
    source, expected = prepared()
    manual = shutil.copytree(source / "originals", folder / "manual")
    damage_originals(manual, kind, rng)
    with expecting(source / "originals" if detectable else manual):
        outcome = verdict(folder, expected, "ubyte.gz", manual)
    return outcome and f"{kind}, {'wrong' if detectable else 'correct'} checksum: {outcome}"


def damaged_copy(folder: Path, name: str, kind: str, rng: random.Random) -> Outcome:
    """Damages a file of the prepared data, which has no other cache, and loads it."""
    source, expected = prepared()
    shutil.copytree(source / "data", folder)
    ours, foreign = folder / "mnist" / VERSION, folder / "fashion_mnist" / VERSION
    other = foreign / (f"fashion_{name}" if "array_record" in name else name)
    damage(ours / name, kind, other, rng)
    if name != CACHE_NAME:
        (ours / CACHE_NAME).unlink()
    with expecting(source / "originals"):
        outcome = verdict(folder, expected, str(ours))
    return outcome and f"{name}, {kind}: {outcome}"


def damaged_cache(folder: Path, number: int, rng: random.Random) -> Outcome:
    """A cache that is damaged, missing or another dataset's."""
    return damaged_copy(folder, CACHE_NAME, DAMAGES[number % len(DAMAGES)], rng)


def damaged_prepared(folder: Path, number: int, rng: random.Random) -> Outcome:
    """Prepared files that are damaged, without a cache."""
    names = {path.name for path in (prepared()[0] / "data/mnist" / VERSION).iterdir()}
    # Whether a whole file belongs to this dataset is written in the cache alone.
    cases = itertools.product(names - {CACHE_NAME}, DAMAGES)
    cases = [case for case in sorted(cases) if not ("array" in case[0] and case[1] == "foreign")]
    return damaged_copy(folder, *cases[number % len(cases)], rng)


FAULTS = (
    Fault("a damaged IDX file", repeated(damaged_originals), 22, 22),
    Fault("a damaged or foreign array cache", repeated(damaged_cache), 22, 22),
    Fault("prepared data that is damaged", repeated(damaged_prepared), 35, 35),
)
