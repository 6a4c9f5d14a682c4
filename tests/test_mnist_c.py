"""MNIST-C, by a small archive that takes its place."""

import hashlib
import urllib.error
import zipfile

import numpy as np
import pytest
from tensorflow_datasets.core.download import checksums
from tensorflow_datasets.core.utils import Size
from tensorflow_datasets.image_classification import mnist_corrupted

from mnist_flax import evaluate
from mnist_flax.config import UserError
from mnist_flax.download import DataUnavailable
from mnist_flax.mnist_c import FILE, load_mnist_c

KINDS = ("fog", "identity", "zigzag")


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A folder with an archive of MNIST-C's kind, whose checksum TFDS is told to expect."""
    folder = tmp_path / "manual"
    folder.mkdir()
    rng = np.random.default_rng(0)
    arrays = {
        kind: (rng.integers(0, 256, (50, 28, 28, 1), np.uint8), rng.integers(0, 10, 50))
        for kind in KINDS
    }
    with zipfile.ZipFile(folder / FILE, "w") as opened:
        for kind, (images, labels) in arrays.items():
            for name, array in (("images", images), ("labels", labels)):
                with opened.open(f"mnist_c/{kind}/test_{name}.npy", "w") as file:
                    np.save(file, array)
    expect(monkeypatch, (folder / FILE).read_bytes())
    return folder, arrays


def expect(monkeypatch, content):
    checksum = hashlib.sha256(content).hexdigest()
    info = checksums.UrlInfo(size=Size(len(content)), checksum=checksum, filename=FILE)
    infos = {mnist_corrupted._DOWNLOAD_URL: info}
    monkeypatch.setattr(mnist_corrupted.MNISTCorrupted, "url_infos", infos)


def test_reads_each_corruption(tmp_path, archive):
    folder, arrays = archive
    found = load_mnist_c(tmp_path / "data", folder, pytest.fail)
    assert list(found) == ["fog", "zigzag"]
    for kind, (images, labels) in found.items():
        assert labels.dtype == np.int32
        np.testing.assert_array_equal(images, arrays[kind][0])
        np.testing.assert_array_equal(labels, arrays[kind][1])


def test_another_archive_is_refused(tmp_path, archive):
    folder, _ = archive
    content = bytearray((folder / FILE).read_bytes())
    content[100] ^= 1
    (folder / FILE).write_bytes(content)
    with pytest.raises(UserError, match="not the original"):
        load_mnist_c(tmp_path / "data", folder, print)


def test_an_archive_of_something_else_is_refused(tmp_path, archive, monkeypatch):
    folder, _ = archive
    with zipfile.ZipFile(folder / FILE, "w") as opened:
        opened.writestr("mnist_c/fog/readme.txt", "no images")
    expect(monkeypatch, (folder / FILE).read_bytes())
    with pytest.raises(UserError, match="archive is damaged"):
        load_mnist_c(tmp_path / "data", folder, print)


def test_without_it_one_line_says_so(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(DataUnavailable, match=r"MNIST-C is not on this machine .* mnist_c.zip"):
        load_mnist_c(tmp_path / "data", None, print)


def test_evaluate_tells_of_it(tmp_path, archive, small_run, capsys):
    folder, _ = archive
    flags = ("--mnist-c", "--no-report", "--data-dir", str(tmp_path), "--manual-dir", str(folder))
    assert evaluate.main(["--workdir", str(small_run), *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    place = lines.index("MNIST-C")
    assert [line.split()[0] for line in lines[place + 1 :]] == ["fog", "zigzag"]
