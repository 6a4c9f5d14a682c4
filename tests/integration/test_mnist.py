"""Tests on the real MNIST, if its four files are available."""

import hashlib
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from experiments import handwriting
from mnist_flax import load, run
from mnist_flax.core.config import UserError
from mnist_flax.data.tfds_mnist import FILES, load_tfds, read_idx
from mnist_flax.predict.preprocess import to_mnist
from tests.conftest import read_summary

pytestmark = pytest.mark.mnist


@pytest.fixture(scope="module")
def data_dir(manual_dir, tmp_path_factory):
    """A folder with MNIST prepared."""
    folder = tmp_path_factory.mktemp("mnist")
    load_tfds("mnist", folder, manual_dir, print)
    return folder


@pytest.mark.nightly
def test_two_processes_prepare_it_once(manual_dir, tmp_path):
    """Also when they start together."""
    script = (
        "import sys, pathlib; from mnist_flax.data.tfds_mnist import load_tfds\n"
        "load_tfds('mnist', *map(pathlib.Path, sys.argv[1:]), print)"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(manual_dir)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert len(list(tmp_path.glob("mnist/3.0.1/*.array_record*"))) == 2
    assert not list(tmp_path.rglob("*incomplete*"))
    assert not list(tmp_path.rglob("tmp*"))
    assert "".join(outputs).count("preparing mnist") == 1


@pytest.mark.slow
def test_the_prepared_images_are_the_original_ones(data_dir, manual_dir):
    splits = load_tfds("mnist", data_dir, None, pytest.fail)
    for split, (images, labels) in splits.items():
        raw_images, raw_labels = (read_idx(manual_dir / file) for file in FILES[split])
        stock: Any = tfds.data_source("mnist", split=split, data_dir=data_dir)
        assert len(stock) == len(images) == len(raw_images)

        def digests(images, labels):
            pairs = zip(np.asarray(images).reshape(-1, 784), labels, strict=True)
            return sorted(
                hashlib.sha256(image.tobytes() + bytes([int(label)])).digest()
                for image, label in pairs
            )

        assert digests(images, labels) == digests(raw_images, raw_labels)
    assert splits["train"][0].shape == (60_000, 28, 28, 1)
    assert splits["test"][0].shape == (10_000, 28, 28, 1)


@pytest.mark.slow
@pytest.mark.parametrize("file", [file for files in FILES.values() for file in files])
def test_a_corrupted_file_is_refused_by_name(manual_dir, tmp_path, file):
    folder = tmp_path / "manual"
    shutil.copytree(manual_dir, folder)
    for path in folder.iterdir():
        path.chmod(0o644)
    content = bytearray((folder / file).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / file).write_bytes(content)
    with pytest.raises(UserError, match=file):
        load_tfds("mnist", tmp_path / "data", folder, print)
    assert not list((tmp_path / "data").rglob("*.array_record*"))


@pytest.fixture(scope="module")
def one_epoch(data_dir, tmp_path_factory):
    """The workdir of the default preset after a single epoch."""
    workdir = tmp_path_factory.mktemp("one_epoch") / "run"
    folders = ("--workdir", str(workdir), "--data-dir", str(data_dir))
    assert run.main([*folders, "--epochs", "1", "--no-report"]) == 0
    return workdir


@pytest.mark.slow
def test_one_epoch_of_the_default_preset_passes_98_percent(one_epoch):
    summary = read_summary(one_epoch)
    assert summary["dataset"] == "mnist"
    assert summary["test_examples"] == 10_000
    assert summary["test_accuracy"] >= 0.98
    assert summary["steps"] == 938


@pytest.mark.nightly
@pytest.mark.parametrize("gaps", [0, 3])
def test_drawings_are_recognized(one_epoch, gaps):
    """A smaller version of the experiment `handwriting`, after one epoch."""
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(10), 10)
    images = np.stack([to_mnist(handwriting.draw(int(label), rng, gaps)) for label in labels])
    assert (load(one_epoch).predict(images) == labels).mean() >= 0.95
