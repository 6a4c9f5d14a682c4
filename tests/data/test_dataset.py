"""The bundled digits, and what happens if MNIST is unavailable."""

import socket

import numpy as np
import pytest

from mnist_flax.core.config import UserError
from mnist_flax.data import download
from mnist_flax.data.dataset import load_dataset


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(download, "RETRIES", 0)


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
    assert digits.train[1].dtype == np.int32
    assert set(digits.train[1]) == set(range(10))
    assert np.bincount(digits.test[1], minlength=10).min() >= 30
    assert len(digits.validation[0]) == 0


def test_validation_is_the_end_of_the_training_images(digits):
    held_out = load_dataset("digits", validation_fraction=0.3)
    assert len(held_out.validation[0]) == 431
    for part in (0, 1):
        joined = np.concatenate([held_out.train[part], held_out.validation[part]])
        np.testing.assert_array_equal(joined, digits.train[part])
        np.testing.assert_array_equal(held_out.test[part], digits.test[part])


def test_auto_falls_back_to_digits_with_a_warning(no_network, tmp_path, capsys, digits):
    loaded = load_dataset("auto", data_dir=tmp_path)
    assert loaded.name == "digits"
    np.testing.assert_array_equal(loaded.test[0], digits.test[0])
    warning = capsys.readouterr().err
    assert "mnist is not on this machine and cannot be downloaded" in warning
    assert "Name or service not known" in warning
    assert "THE RESULTS ARE NOT MNIST RESULTS" in warning


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist"])
def test_a_named_dataset_never_falls_back(no_network, tmp_path, name):
    with pytest.raises(download.DataUnavailable, match=f"{name} is not on this machine"):
        load_dataset(name, data_dir=tmp_path)
    assert not list(tmp_path.rglob("*.gz"))


def test_a_manual_dir_must_exist_and_have_all_files(no_network, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match=r"--manual-dir takes a folder with .*train-images-idx3"):
        load_dataset("mnist", data_dir=tmp_path, manual_dir=empty)
    with pytest.raises(UserError, match="nowhere is not a folder"):
        load_dataset("mnist", data_dir=tmp_path, manual_dir=tmp_path / "nowhere")


def test_an_unusable_data_folder_is_refused(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match=r"cannot use the data folder .*file"):
        load_dataset("mnist", data_dir=blocked)
