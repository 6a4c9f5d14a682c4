"""The bundled digits, and what happens where MNIST cannot be had."""

import urllib.error

import numpy as np
import pytest

from mnist_flax import data, download
from mnist_flax.config import UserError
from mnist_flax.data import load_dataset


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def test_digits_have_the_format_of_mnist(digits):
    images = np.concatenate([digits.train[0], digits.test[0]])
    assert images.shape == (1_797, 28, 28, 1)
    assert images.dtype == np.uint8
    assert images.max() == 255
    box = np.zeros((28, 28), bool)
    box[4:24, 4:24] = True
    assert not images[:, ~box].any()
    assert images[:, box].any(axis=(1, 2)).all()
    assert len(digits.train[0]) == 1_437
    assert np.bincount(digits.test[1], minlength=10).min() >= 30
    assert len(digits.validation[0]) == 0


def test_validation_is_the_end_of_the_training_images(digits):
    held_out = load_dataset("digits", validation_fraction=0.3)
    assert len(held_out.validation[0]) == 431
    for part in (0, 1):
        joined = np.concatenate([held_out.train[part], held_out.validation[part]])
        np.testing.assert_array_equal(joined, digits.train[part])
        np.testing.assert_array_equal(held_out.test[part], digits.test[part])


def test_auto_falls_back_to_digits_and_says_so(no_network, tmp_path, capsys, digits):
    found = load_dataset("auto", data_dir=tmp_path)
    assert found.name == "digits"
    np.testing.assert_array_equal(found.test[0], digits.test[0])
    warning = capsys.readouterr().err
    assert "mnist is not on this machine and cannot be downloaded" in warning
    assert "Name or service not known" in warning
    assert "THE RESULTS ARE NOT MNIST RESULTS" in warning


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist"])
def test_a_named_data_set_never_falls_back(no_network, tmp_path, name):
    with pytest.raises(download.DataUnavailable, match=f"{name} is not on this machine"):
        load_dataset(name, data_dir=tmp_path)
    assert not list(tmp_path.rglob("*.gz"))


def test_a_manual_dir_without_the_files_is_no_help(no_network, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="--manual-dir takes a folder with the four original"):
        load_dataset("mnist", data_dir=tmp_path, manual_dir=empty)
    with pytest.raises(UserError, match="nowhere is not a folder"):
        load_dataset("mnist", data_dir=tmp_path, manual_dir=tmp_path / "nowhere")


def test_a_network_that_hangs_is_given_up(monkeypatch, tmp_path):
    import threading

    hang = threading.Event()
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: hang.wait())
    monkeypatch.setattr(download, "PROBE_SECONDS", 0.1)
    with pytest.raises(UserError, match="no answer within"):
        load_dataset("mnist", data_dir=tmp_path)
    hang.set()


def test_a_data_folder_that_cannot_be_used(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match="cannot use the data folder"):
        load_dataset("mnist", data_dir=blocked)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((9, 28, 28, 1), np.uint8), np.zeros(9, np.int32), "not uint8 of 10"),
        (np.zeros((10, 28, 28, 1), np.float32), np.zeros(10, np.int32), "float32"),
        (np.zeros((10, 28, 28, 1), np.uint8), np.zeros(10, np.int64), "int64"),
        (np.zeros((10, 28, 28, 1), np.uint8), np.full(10, 10, np.int32), "outside 0 to 9"),
    ],
)
def test_arrays_of_another_kind_are_refused(images, labels, message):
    with pytest.raises(UserError, match=message):
        data._check("mnist", (images, labels), 10)
