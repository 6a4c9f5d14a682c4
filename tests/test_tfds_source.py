"""TFDS without TensorFlow, on small IDX files that take MNIST's place."""

import errno
import gzip
import hashlib
import sys
import threading

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums
from tensorflow_datasets.core.utils import Size

from mnist_flax import download, tfds_source
from mnist_flax.config import UserError
from mnist_flax.download import check_original
from mnist_flax.tfds_source import FILES, load_tfds, read_idx

COUNTS = {"train": 300, "test": 70}


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return gzip.compress(header + array.tobytes())


@pytest.fixture
def manual(tmp_path, monkeypatch):
    """A folder of small files of MNIST's kind, whose checksums TFDS is told to expect."""
    folder = tmp_path / "manual"
    folder.mkdir()
    rng = np.random.default_rng(0)
    arrays, infos = {}, {}
    for split, count in COUNTS.items():
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        labels = rng.integers(0, 10, count, np.uint8)
        arrays[split] = (images, labels)
        for file, array in zip(FILES[split], arrays[split], strict=True):
            (folder / file).write_bytes(idx(array))
            content = (folder / file).read_bytes()
            url = tfds_source._builder("mnist", tmp_path).URL + file
            infos[url] = checksums.UrlInfo(
                size=Size(len(content)),
                checksum=hashlib.sha256(content).hexdigest(),
                filename=file,
            )
    monkeypatch.setattr(checksums, "get_all_url_infos", lambda: dict(infos))
    return folder, arrays


def as_set(images, labels):
    return {
        (image.tobytes(), int(label))
        for image, label in zip(np.asarray(images).reshape(-1, 784), labels, strict=True)
    }


def test_prepares_reads_and_caches(tmp_path, manual):
    folder, arrays = manual
    lines = []
    found = load_tfds("mnist", tmp_path / "data", folder, lines.append)
    assert [line.split()[0] for line in lines] == ["preparing", "reading"]
    for split, (images, labels) in found.items():
        assert images.shape == (COUNTS[split], 28, 28, 1)
        assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
        assert as_set(images, labels) == as_set(*arrays[split])
    again = load_tfds("mnist", tmp_path / "data", None, lines.append)
    assert len(lines) == 2
    for split in COUNTS:
        np.testing.assert_array_equal(again[split][0], found[split][0])
        np.testing.assert_array_equal(again[split][1], found[split][1])
    stock = tfds.data_source("mnist", split="test", data_dir=tmp_path / "data")
    for example, image, label in zip(stock, *found["test"], strict=True):
        np.testing.assert_array_equal(example["image"], image)
        assert example["label"] == label
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "other names"])
def test_a_damaged_cache_is_made_again(tmp_path, manual, damage):
    folder, _ = manual
    found = load_tfds("mnist", tmp_path / "data", folder, print)
    (cache,) = tmp_path.glob(f"data/mnist/*/{tfds_source.CACHE_NAME}")
    content = bytearray(cache.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    elif damage == "truncate":
        del content[len(content) // 2 :]
    elif damage == "empty":
        content.clear()
    if damage == "other names":
        np.savez(cache, images=np.zeros(3))
    else:
        cache.write_bytes(content)
    lines = []
    again = load_tfds("mnist", tmp_path / "data", None, lines.append)
    assert [line.split()[0] for line in lines] == ["reading"]
    np.testing.assert_array_equal(again["train"][0], found["train"][0])
    assert load_tfds("mnist", tmp_path / "data", None, pytest.fail)


@pytest.mark.parametrize("change", ["labels", "no digest"])
def test_a_cache_of_other_arrays_is_made_again(tmp_path, manual, change):
    folder, _ = manual
    found = load_tfds("mnist", tmp_path / "data", folder, print)
    (cache,) = tmp_path.glob(f"data/mnist/*/{tfds_source.CACHE_NAME}")
    if change == "labels":
        with np.load(cache) as opened:
            arrays = dict(opened)
        arrays["train_labels"] = np.roll(arrays["train_labels"], 1)
        np.savez(cache, allow_pickle=False, **arrays)
    else:
        (cache.parent / tfds_source.DIGEST_NAME).unlink()
    lines = []
    again = load_tfds("mnist", tmp_path / "data", None, lines.append)
    assert [line.split()[0] for line in lines] == ["reading"]
    np.testing.assert_array_equal(again["train"][1], found["train"][1])
    assert load_tfds("mnist", tmp_path / "data", None, pytest.fail)


@pytest.mark.parametrize("file", ["dataset_info.json", "mnist-test.array_record-00000-of-00001"])
@pytest.mark.parametrize("damage", ["truncate", "delete"])
def test_damaged_prepared_data_is_refused_by_folder(tmp_path, manual, file, damage):
    folder, _ = manual
    load_tfds("mnist", tmp_path / "data", folder, print)
    (prepared,) = tmp_path.glob("data/mnist/*/")
    (prepared / tfds_source.CACHE_NAME).unlink()
    content = (prepared / file).read_bytes()
    (prepared / file).unlink()
    if damage == "truncate":
        (prepared / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=f"{prepared.name} .*remove this folder") as refusal:
        load_tfds("mnist", tmp_path / "data", folder, print)
    assert not isinstance(refusal.value, download.DataUnavailable)


def test_what_killed_processes_left_goes_away(tmp_path, manual):
    folder, _ = manual
    left = [
        tmp_path / "data/mnist/incomplete.ABCDEF_3.0.1/part",
        tmp_path / "data/downloads/mnist/file.gz.tmp.0123/file.gz",
    ]
    for path in left:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"half")
    load_tfds("mnist", tmp_path / "data", folder, print)
    assert not any(path.parent.exists() for path in left)


def test_a_file_with_another_checksum_is_refused_by_name(tmp_path, manual):
    folder, _ = manual
    name = FILES["test"][0]
    content = bytearray((folder / name).read_bytes())
    content[40] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        load_tfds("mnist", tmp_path / "data", folder, print)
    assert not list((tmp_path / "data").rglob("*.array_record*"))


def test_data_prepared_for_tensorflow_is_left_alone(tmp_path, manual):
    folder, _ = manual
    load_tfds("mnist", tmp_path / "data", folder, print)
    (prepared,) = tmp_path.glob("data/mnist/*/")
    (prepared / tfds_source.CACHE_NAME).unlink()
    for path in list(prepared.glob("*.array_record*")):
        path.rename(path.with_name(path.name.replace("array_record", "tfrecord")))
    info = prepared / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    before = sorted(path.name for path in prepared.iterdir())
    found = load_tfds("mnist", tmp_path / "data", folder, print)
    assert len(found["train"][0]) == COUNTS["train"]
    assert sorted(path.name for path in prepared.iterdir()) == before
    assert load_tfds("mnist", tmp_path / "data", None, pytest.fail)


def test_two_at_once_prepare_only_once(tmp_path, manual):
    folder, _ = manual
    lines, results, lock = [], [], threading.Lock()

    def load():
        found = load_tfds("mnist", tmp_path / "data", folder, lines.append)
        with lock:
            results.append(found)

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    assert sorted(line.split()[0] for line in lines if "waiting" not in line) == [
        "preparing",
        "reading",
    ]
    np.testing.assert_array_equal(results[0]["train"][0], results[1]["train"][0])


def test_a_read_only_data_folder_works(tmp_path, manual, monkeypatch):
    folder, _ = manual
    found = load_tfds("mnist", tmp_path / "data", folder, print)
    (cache,) = tmp_path.glob(f"data/mnist/*/{tfds_source.CACHE_NAME}")
    cache.unlink()

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(download.FileLock, "acquire", refuse)
    monkeypatch.setattr(tfds_source.np, "savez", refuse)
    again = load_tfds("mnist", tmp_path / "data", None, print)
    np.testing.assert_array_equal(again["train"][0], found["train"][0])
    assert not cache.exists()


def test_a_download_that_has_changed_since_is_named(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"as it came")
    checksum = hashlib.sha256(b"as it came").hexdigest()
    check_original(path, checksum)
    path.write_bytes(b"as it came, once")
    with pytest.raises(UserError, match="file is damaged; remove it, and the next run downloads"):
        check_original(path, checksum)


def test_read_idx(tmp_path):
    path = tmp_path / "a.gz"
    array = np.arange(24, dtype=np.uint8).reshape((2, 3, 4))
    path.write_bytes(idx(array))
    np.testing.assert_array_equal(read_idx(path), array)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not gzip",
        idx(np.zeros((2, 3), np.uint8))[:-9],
        gzip.compress(b""),
        gzip.compress(b"\0\0\x08\x02\0\0\0\2\0\0\0\3abcde"),
        gzip.compress(b"\0\0\x0d\x01\0\0\0\1abcd"),
        gzip.compress(b"\0\0\x08\x03\0\0"),
    ],
)
def test_read_idx_refuses_by_name(tmp_path, content):
    path = tmp_path / "bad.gz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.gz"):
        read_idx(path)
