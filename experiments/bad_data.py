"""Bad data, on small files that take MNIST's place.

After each fault, the data set is loaded: the true arrays, or one line that says what is wrong.
"""

import contextlib
import gzip
import hashlib
import itertools
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
from trials import Fault, Outcome

from mnist_flax import data
from mnist_flax.config import UserError
from mnist_flax.tfds_source import CACHE_NAME, DIGEST_NAME, FILES, SPLITS, Arrays

COUNTS = {"train": 300, "test": 70}
NAMES = tuple(file for split in SPLITS for file in FILES[split])
VERSION = Path("3.0.1")
Splits = dict[str, Arrays]


# Files of MNIST's kind.


def idx(array: np.ndarray, magic: bytes = b"\0\0\x08", first: int | None = None) -> bytes:
    """A gzipped IDX file; `first` is a false count of examples."""
    shape = (len(array) if first is None else first, *array.shape[1:])
    header = magic + bytes([array.ndim]) + np.array(shape, ">u4").tobytes()
    return gzip.compress(header + array.tobytes(), 1)


def write_originals(folder: Path, seed: int) -> None:
    """Writes the four files of a small data set of noise."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for split, count in COUNTS.items():
        images, labels = FILES[split]
        (folder / images).write_bytes(idx(rng.integers(0, 256, (count, 28, 28), np.uint8)))
        (folder / labels).write_bytes(idx(rng.integers(0, 10, count, np.uint8)))


@contextlib.contextmanager
def expecting(folder: Path, url: str | None = None) -> Iterator[None]:
    """TFDS takes these files, as they are now, for the originals of MNIST and of Fashion-MNIST."""
    from tensorflow_datasets.core.download import checksums
    from tensorflow_datasets.core.utils import Size
    from tensorflow_datasets.image_classification import mnist

    infos = {}
    for base, path in itertools.product(
        (url or mnist.MNIST.URL, mnist.FashionMNIST.URL), folder.iterdir()
    ):
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        infos[base + path.name] = checksums.UrlInfo(Size(len(content)), digest, path.name)
    sizes = {name: tuple(COUNTS.values()) for name in ("mnist", "fashion_mnist")}
    with (
        mock.patch.object(checksums, "get_all_url_infos", infos.copy),
        mock.patch.object(mnist.MNIST, "URL", url or mnist.MNIST.URL),
        mock.patch.dict(data.DATASET_SIZES, sizes),
    ):
        yield


def load(folder: Path, manual: Path | None = None, name: str = "mnist") -> Splits:
    """Both splits, as every command gets them."""
    found = data.load_dataset(name, folder, manual, log=lambda _: None)
    return {"train": found.train, "test": found.test}


def same(a: Splits, b: Splits) -> bool:
    """Whether two data sets are one."""
    pairs = (pair for split in SPLITS for pair in zip(a[split], b[split], strict=True))
    return all(np.array_equal(x, y) for x, y in pairs)


def verdict(load: Callable[[], Splits], true: Splits, name: str, folder: Path) -> Outcome:
    """What is wrong with how data was loaded after a fault: it may be refused by name."""
    try:
        found = load()
    except UserError as error:
        text = str(error)
        if name not in text or "\n" in text:
            return f"refused, but not by one line that names {name}: {text}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    else:
        if not same(found, true):
            return "other arrays were loaded"
    return leftovers(folder)


def leftovers(folder: Path) -> Outcome:
    """What lies half done in a data folder."""
    half = [*folder.rglob("*.tmp*"), *folder.rglob("incomplete.*")]
    return f"left behind: {half[0].name}" if half else None


# What happens to a file.


def damage(path: Path, how: str, other: Path, rng: random.Random) -> None:
    """Damages one file; `other` is one of the same kind from another data set."""
    content = bytearray(path.read_bytes())
    if how == "flip":
        # As often near the end, where an archive has its table, as anywhere.
        reach = rng.choice((len(content), min(len(content), 300)))
        content[-1 - rng.randrange(reach)] ^= 1 << rng.randrange(8)
    changed = {
        "truncate": bytes(content[: rng.randrange(len(content))]),
        "empty": b"",
        "flip": bytes(content),
        "zeros": bytes(len(content)),
        "noise": rng.randbytes(len(content)),
        "foreign": other.read_bytes(),
    }
    path.unlink()
    if how != "delete":
        path.write_bytes(changed[how])


DAMAGES = ("truncate", "empty", "flip", "zeros", "noise", "foreign", "delete")


def swap(a: Path, b: Path) -> None:
    """Gives two files each other's name."""
    third = a.with_name("third")
    a.rename(third)
    b.rename(a)
    third.rename(b)


# Original files.


def spoil_originals(folder: Path, other: Path, how: str, rng: random.Random) -> None:
    """Damages the four files, or one of them."""
    split = rng.choice(SPLITS)
    images, labels = (folder / file for file in FILES[split])
    count = COUNTS[split]
    if how == "images for labels":
        swap(images, labels)
    elif how == "test for train":
        for train, test in zip(FILES["train"], FILES["test"], strict=True):
            swap(folder / train, folder / test)
    elif how == "wrong magic":
        labels.write_bytes(idx(np.zeros(count, np.uint8), rng.choice([b"\0\0\x0d", b"\1\0\x08"])))
    elif how == "wrong count":
        labels.write_bytes(idx(np.zeros(count, np.uint8), first=count + rng.choice([-1, 1, 10**6])))
    elif how == "other count":
        labels.write_bytes(idx(np.zeros(count - 1, np.uint8)))
    elif how == "labels out of range":
        labels.write_bytes(idx(np.full(count, rng.randrange(10, 256), np.uint8)))
    else:
        name = rng.choice(NAMES)
        damage(folder / name, how, other / name, rng)


def damaged_originals(folder: Path, tries: int, seed: int) -> Iterator[Outcome]:
    """Files in the manual folder that TFDS knows to be others, or that are wrong in themselves."""
    rng = random.Random(seed)
    write_originals(folder / "originals", 0)
    write_originals(folder / "other", 1)
    with expecting(folder / "originals"):
        true = load(folder / "true", folder / "originals")
    in_itself = ("images for labels", "test for train", "wrong magic", "wrong count")
    in_itself += ("other count", "labels out of range", "truncate", "empty", "zeros", "noise")
    cases = [(how, True) for how in (*in_itself, "flip", "foreign")]
    cases += [(how, False) for how in in_itself]
    for number in range(tries):
        how, known = cases[number % len(cases)]
        place = folder / f"{number}"
        shutil.copytree(folder / "originals", place / "manual")
        spoil_originals(place / "manual", folder / "other", how, rng)
        with expecting(folder / "originals" if known else place / "manual"):
            named = "mnist has" if (how, known) == ("test for train", False) else "ubyte.gz"
            outcome = verdict(lambda at=place: load(at / "data", at / "manual"), true, named, place)
        yield outcome and f"{how}, {'' if known else 'not '}known to TFDS: {outcome}"
        shutil.rmtree(place)


# What was made of them.


def prepare_two(folder: Path) -> Splits:
    """Prepares MNIST and, beside it, Fashion-MNIST; returns MNIST's arrays."""
    write_originals(folder / "originals", 0)
    write_originals(folder / "other", 1)
    with expecting(folder / "other"):
        load(folder / "prepared", folder / "other", "fashion_mnist")
    with expecting(folder / "originals"):
        return load(folder / "prepared", folder / "originals")


def damaged_cache(folder: Path, tries: int, seed: int) -> Iterator[Outcome]:
    """A cache that is damaged, or whole but of other arrays."""
    rng = random.Random(seed)
    true = prepare_two(folder)
    for number in range(tries):
        place = folder / f"{number}"
        shutil.copytree(folder / "prepared", place)
        ours, foreign = place / "mnist" / VERSION, place / "fashion_mnist" / VERSION
        how = (*DAMAGES, "labels", "splits", "foreign digest", "both foreign")[number % 11]
        if how in ("labels", "splits"):
            with np.load(ours / CACHE_NAME) as cache:
                arrays = dict(cache)
            if how == "labels":
                arrays["train_labels"] = rng.choice([np.roll, np.add])(arrays["train_labels"], 1)
            else:
                arrays |= {"train_images": arrays["test_images"]}
            np.savez(ours / CACHE_NAME, allow_pickle=False, **arrays)
        for name in (CACHE_NAME,) if how in DAMAGES else (CACHE_NAME, DIGEST_NAME):
            if how in (*DAMAGES, "both foreign") or (how == "foreign digest" and "sha" in name):
                kind = how if how in DAMAGES else "foreign"
                damage(ours / name, kind, foreign / name, rng)
        with expecting(folder / "originals"):
            outcome = verdict(lambda at=place: load(at), true, str(ours), place)
        yield outcome and f"{how}: {outcome}"
        shutil.rmtree(place)


def damaged_prepared(folder: Path, tries: int, seed: int) -> Iterator[Outcome]:
    """Prepared files that are damaged, of which no cache is left."""
    rng = random.Random(seed)
    true = prepare_two(folder)
    files = [
        p.name for p in (folder / "prepared/mnist" / VERSION).iterdir() if p.name != CACHE_NAME
    ]
    cases = list(itertools.product(sorted(files), DAMAGES))
    rng.shuffle(cases)
    for number in range(tries):
        name, how = cases[number % len(cases)]
        place = folder / f"{number}"
        shutil.copytree(folder / "prepared", place)
        ours, foreign = place / "mnist" / VERSION, place / "fashion_mnist" / VERSION
        (ours / CACHE_NAME).unlink()
        other = foreign / (f"fashion_{name}" if "array_record" in name else name)
        damage(ours / name, how, other, rng)
        with expecting(folder / "originals"):
            outcome = verdict(lambda at=place: load(at), true, str(ours), place)
        yield outcome and f"{name}, {how}: {outcome}"
        shutil.rmtree(place)


FAULTS = (
    Fault("a damaged IDX file", damaged_originals, 220, 22),
    Fault("a damaged or foreign array cache", damaged_cache, 220, 22),
    Fault("prepared data that is damaged", damaged_prepared, 350, 35),
)
