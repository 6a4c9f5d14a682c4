"""TFDS without TensorFlow, on small IDX files that stand in for MNIST's."""

import errno
import json
import sys
import tempfile
import threading

import numpy as np
import pytest
import tensorflow_datasets as tfds

from experiments.faults.datasets import COUNTS, expecting, idx, write_originals
from mnist_flax.core.config import UserError
from mnist_flax.data import download, tfds_mnist
from mnist_flax.data.tfds_mnist import CACHE_NAME, FILES, SPLITS, load_tfds, read_idx

CACHE = f"mnist/3.0.1/{CACHE_NAME}"


@pytest.fixture
def manual(tmp_path):
    """A folder of small files of MNIST's format, which are the originals."""
    write_originals(tmp_path / "manual", 0)
    with expecting(tmp_path / "manual"):
        yield tmp_path / "manual"


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"


def as_set(images, labels):
    return {
        (image.tobytes(), int(label))
        for image, label in zip(np.asarray(images).reshape(-1, 784), labels, strict=True)
    }


def assert_same(actual, expected):
    for split in SPLITS:
        for array, correct in zip(actual[split], expected[split], strict=True):
            np.testing.assert_array_equal(array, correct)


def test_data_is_prepared_read_and_cached(data, manual):
    lines = []
    splits = load_tfds("mnist", data, manual, lines.append)
    assert [line.split()[0] for line in lines] == ["preparing", "reading"]
    for split, (images, labels) in splits.items():
        assert images.shape == (COUNTS[split], 28, 28, 1)
        assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
        original_images, original_labels = (read_idx(manual / file) for file in FILES[split])
        assert as_set(images, labels) == as_set(original_images, original_labels)
    assert_same(load_tfds("mnist", data, None, pytest.fail), splits)
    assert not list(data.rglob("tmp*"))


def test_stock_tfds_reads_the_prepared_data(data, manual, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # it cannot be imported
    splits = load_tfds("mnist", data, manual, print)
    stock = tfds.data_source("mnist", split="test", data_dir=data)
    for example, image, label in zip(stock, *splits["test"], strict=True):
        np.testing.assert_array_equal(example["image"], image)
        assert example["label"] == label


def test_preparing_prints_nothing_and_leaves_no_temporary_folder(data, manual, capfd, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(manual.parent / "temporary"))
    (manual.parent / "temporary").mkdir()
    load_tfds("mnist", data, manual, lambda _: None)
    assert capfd.readouterr() == ("", "")
    assert not list((manual.parent / "temporary").iterdir())


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "other names"])
def test_a_damaged_cache_is_rebuilt(data, manual, damage):
    splits = load_tfds("mnist", data, manual, print)
    content = bytearray((data / CACHE).read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    elif damage == "truncate":
        del content[len(content) // 2 :]
    elif damage == "empty":
        content.clear()
    if damage == "other names":
        np.savez(data / CACHE, images=np.zeros(3))
    else:
        (data / CACHE).write_bytes(content)
    lines = []
    assert_same(load_tfds("mnist", data, None, lines.append), splits)
    assert [line.split()[0] for line in lines] == ["reading"]
    assert load_tfds("mnist", data, None, pytest.fail)


@pytest.mark.parametrize("change", ["another dataset", "no name", "impossible labels"])
def test_a_cache_of_another_dataset_is_rebuilt(data, manual, change):
    splits = load_tfds("mnist", data, manual, print)
    with np.load(data / CACHE) as cache:
        arrays = dict(cache)
    if change == "no name":
        del arrays["name"]
    elif change == "impossible labels":
        arrays["test_labels"] = arrays["test_labels"] + np.int32(10)
    else:
        arrays |= {"name": "fashion_mnist", "train_labels": np.roll(arrays["train_labels"], 1)}
    np.savez(data / CACHE, allow_pickle=False, **arrays)
    lines = []
    assert_same(load_tfds("mnist", data, None, lines.append), splits)
    assert [line.split()[0] for line in lines] == ["reading"]
    assert load_tfds("mnist", data, None, pytest.fail)


@pytest.mark.parametrize("file", ["dataset_info.json", "mnist-test.array_record-00000-of-00001"])
@pytest.mark.parametrize("damage", ["truncate", "delete"])
def test_damaged_prepared_data_is_refused_by_folder(data, manual, file, damage):
    load_tfds("mnist", data, manual, print)
    prepared = data / "mnist/3.0.1"
    (data / CACHE).unlink()
    content = (prepared / file).read_bytes()
    (prepared / file).unlink()
    if damage == "truncate":
        (prepared / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"mnist/3.0.1 .*remove this folder") as error:
        load_tfds("mnist", data, manual, print)
    assert "\n" not in str(error.value)
    assert not isinstance(error.value, download.DataUnavailable)


def test_prepared_data_with_a_wrong_number_of_examples_is_refused(data, manual):
    load_tfds("mnist", data, manual, print)
    (data / CACHE).unlink()
    info = data / "mnist/3.0.1/dataset_info.json"
    info.write_text(info.read_text().replace('"300"', '"200"'))
    with pytest.raises(UserError, match=r"uint8\(200, .*not uint8\(300, .*remove this folder"):
        load_tfds("mnist", data, manual, print)
    assert not (data / CACHE).exists()


def test_a_file_with_another_checksum_is_refused_by_name(data, manual):
    path = manual / FILES["test"][0]
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=path.name):
        load_tfds("mnist", data, manual, print)
    assert not list(data.rglob("*.array_record*"))


def test_data_prepared_for_tensorflow_is_left_unchanged(data, manual):
    load_tfds("mnist", data, manual, print)
    (data / CACHE).unlink()
    prepared = data / "mnist/3.0.1"
    for path in list(prepared.glob("*.array_record*")):
        path.rename(path.with_name(path.name.replace("array_record", "tfrecord")))
    info = prepared / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    before = sorted(path.name for path in prepared.iterdir())
    splits = load_tfds("mnist", data, manual, print)
    assert len(splits["train"][0]) == COUNTS["train"]
    assert sorted(path.name for path in prepared.iterdir()) == before
    assert (data / "array_record" / CACHE).exists()
    assert load_tfds("mnist", data, None, pytest.fail)


def test_two_at_once_prepare_only_once(data, manual):
    lines, results = [], []

    def load():
        results.append(load_tfds("mnist", data, manual, lines.append))

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    steps = [line.split()[0] for line in lines if "waiting" not in line]
    assert steps == ["preparing", "reading"]
    assert_same(*results)


def test_a_read_only_data_folder_works(data, manual, monkeypatch):
    splits = load_tfds("mnist", data, manual, print)
    (data / CACHE).unlink()

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(download.FileLock, "acquire", refuse)
    monkeypatch.setattr(tfds_mnist.np, "savez", refuse)
    assert_same(load_tfds("mnist", data, None, print), splits)
    assert not (data / CACHE).exists()


def test_a_full_disk_is_reported_in_one_line(data, manual, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("ResourceExhausted:\nNo space left on device")

    monkeypatch.setattr(tfds.core.GeneratorBasedBuilder, "download_and_prepare", fail)
    with pytest.raises(UserError, match=r"cannot be prepared .*No space left.*full\?") as error:
        load_tfds("mnist", data, manual, print)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((9, 28, 28, 1), np.uint8), np.zeros(9, np.int32), r"not uint8\(300"),
        (np.zeros((300, 28, 28, 1), np.float32), np.zeros(300, np.int32), "float32"),
        (np.zeros((300, 28, 28, 1), np.uint8), np.zeros(300, np.int64), "int64"),
        (np.zeros((300, 28, 28, 1), np.uint8), np.full(300, 10, np.int32), "outside 0 to 9"),
        (np.zeros((300, 28, 28, 1), np.uint8), np.full(300, -1, np.int32), "outside 0 to 9"),
    ],
)
def test_arrays_of_another_kind_are_refused(manual, images, labels, message):
    with pytest.raises(ValueError, match=message):
        tfds_mnist.check_arrays("mnist", "train", images, labels)


def test_read_idx(tmp_path):
    path = tmp_path / "a.gz"
    array = np.arange(24, dtype=np.uint8).reshape((2, 3, 4))
    path.write_bytes(idx(array))
    np.testing.assert_array_equal(read_idx(path), array)
