"""MNIST-C, with a small archive that stands in for the original."""

import socket
import zipfile
from pathlib import Path

import numpy as np
import pooch
import pytest

from mnist_flax import evaluate
from mnist_flax.core.config import UserError
from mnist_flax.data import download, mnist_c
from mnist_flax.data.download import DataUnavailable
from mnist_flax.data.mnist_c import FILE, load_mnist_c

KINDS = ("fog", "identity", "zigzag")


def expect(monkeypatch, archive):
    """Makes an archive, as it is now, the original."""
    registry = {FILE: pooch.file_hash(archive)}
    monkeypatch.setattr(
        mnist_c,
        "original_files",
        lambda name, root: pooch.create(root / name, "", registry=registry),
    )


@pytest.fixture
def manual(tmp_path, monkeypatch):
    """A folder with an archive of MNIST-C's format, and its arrays."""
    folder = tmp_path / "manual"
    folder.mkdir()
    rng = np.random.default_rng(0)
    arrays = {
        kind: (rng.integers(0, 256, (50, 28, 28, 1), np.uint8), rng.integers(0, 10, 50))
        for kind in KINDS
    }
    with zipfile.ZipFile(folder / FILE, "w") as archive:
        for kind, pair in arrays.items():
            for part, array in zip(("images", "labels"), pair, strict=True):
                with archive.open(f"mnist_c/{kind}/test_{part}.npy", "w") as file:
                    np.save(file, array)
    expect(monkeypatch, folder / FILE)
    return folder, arrays


def test_each_corruption_is_read(tmp_path, manual):
    folder, arrays = manual
    corruptions = load_mnist_c(tmp_path / "data", folder, pytest.fail)
    assert list(corruptions) == ["fog", "zigzag"]
    for kind, (images, labels) in corruptions.items():
        assert labels.dtype == np.int32
        np.testing.assert_array_equal(images, arrays[kind][0])
        np.testing.assert_array_equal(labels, arrays[kind][1])


def test_another_archive_is_refused(tmp_path, manual):
    folder, _ = manual
    content = bytearray((folder / FILE).read_bytes())
    content[100] ^= 1
    (folder / FILE).write_bytes(content)
    with pytest.raises(UserError, match="not the original"):
        load_mnist_c(tmp_path / "data", folder, print)


def test_an_archive_with_other_contents_is_refused(tmp_path, manual, monkeypatch):
    folder, _ = manual
    with zipfile.ZipFile(folder / FILE, "w") as archive:
        archive.writestr("mnist_c/fog/readme.txt", "no images")
    expect(monkeypatch, folder / FILE)
    with pytest.raises(UserError, match=r"mnist_c.zip is damaged"):
        load_mnist_c(tmp_path / "data", folder, print)


def test_an_unavailable_archive_is_reported_in_one_line(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(download, "RETRIES", 0)
    with pytest.raises(DataUnavailable, match=r"MNIST-C .* is not on this machine .* mnist_c.zip"):
        load_mnist_c(tmp_path / "data", None, print)


def test_tfds_registers_the_archive(tmp_path):
    files = download.original_files("mnist_corrupted", tmp_path)
    assert list(files.registry) == [FILE]
    assert files.get_url(FILE).startswith("https://")
    assert Path(files.path).parent == tmp_path / "downloads" / "mnist_flax"


def test_evaluate_prints_the_accuracy_of_each_corruption(tmp_path, manual, small_run, capsys):
    folder, _ = manual
    flags = ("--mnist-c", "--no-report", "--data-dir", str(tmp_path), "--manual-dir", str(folder))
    assert evaluate.main(["--workdir", str(small_run), *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("MNIST-C") + 1
    assert [line.split()[0] for line in lines[start:]] == ["fog", "zigzag"]
