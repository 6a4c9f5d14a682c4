"""Downloads from a server on this machine that misbehaves."""

import errno
import gc
import socket
import threading
import time
from pathlib import Path

import pooch
import pytest
import tensorflow_datasets as tfds

from experiments.faults.datasets import expecting, write_originals
from experiments.faults.network import BEHAVIORS, NAMES, serving
from mnist_flax.core.config import UserError
from mnist_flax.data import download, tfds_mnist
from mnist_flax.data.dataset import load_dataset
from mnist_flax.data.download import DataUnavailable, data_root, fetch, lock_folder, original_files
from mnist_flax.data.tfds_mnist import FILES, VERSION

# pooch leaves the sockets of failed downloads to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def originals(tmp_path):
    write_originals(tmp_path / "originals", 0)
    return tmp_path / "originals"


@pytest.fixture(autouse=True)
def short_limits(monkeypatch):
    monkeypatch.setattr(download, "ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(download, "STALL_SECONDS", 0.5)
    monkeypatch.setattr(download, "RETRIES", 0)


@pytest.fixture(scope="module", autouse=True)
def sockets_are_closed_in_this_module():
    yield
    gc.collect()


def get(root, manual_dir=None, log=lambda _: None):
    return fetch("MNIST", tfds_mnist.original_files("mnist", root), manual_dir, log)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist"])
def test_tfds_registers_the_files_of_each_dataset(tmp_path, name):
    files = original_files(name, tmp_path)
    assert sorted(files.registry) == sorted((*FILES["train"], *FILES["test"]))
    assert {len(sha256) for sha256 in files.registry.values()} == {64}
    assert all(files.get_url(file).endswith(f"/{file}") for file in files.registry)
    assert Path(files.path) == tmp_path / "downloads" / "mnist_flax" / name
    assert str(tfds.builder_cls(name).VERSION) == VERSION


def test_the_data_folder_is_the_one_of_tfds(tmp_path, monkeypatch):
    assert data_root(tmp_path) == tmp_path
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    assert data_root(None) == tmp_path / "tfds"
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_root(None) == tmp_path / "tensorflow_datasets"


def test_files_are_downloaded_once(tmp_path, originals):
    lines = []
    with serving(originals):
        folder = get(tmp_path, log=lines.append)
        assert contents(folder) == contents(originals)
        assert lines == [f"downloading MNIST to {folder}"]
        assert get(tmp_path, log=pytest.fail) == folder
    with expecting(originals):  # without a server
        assert get(tmp_path, log=pytest.fail) == folder


@pytest.mark.parametrize("behavior", sorted({*BEHAVIORS} - {"fails once"}))
def test_a_bad_server_is_reported_in_one_line(tmp_path, originals, behavior):
    with serving(originals, behavior, NAMES[2]) as server:
        start = time.monotonic()
        with pytest.raises(DataUnavailable, match=r"MNIST is not .* cannot be downloaded") as error:
            get(tmp_path)
        assert time.monotonic() - start < 8
        assert "\n" not in str(error.value)
        left = contents(tmp_path / "downloads" / "mnist_flax" / "mnist")
        assert left.items() <= contents(originals).items()
        server.behavior = ""
        assert contents(get(tmp_path)) == contents(originals)


def test_a_failed_download_is_tried_again(tmp_path, originals, monkeypatch):
    monkeypatch.setattr(download, "RETRIES", 1)
    monkeypatch.setattr(download, "ANSWER_SECONDS", 8.0)
    with serving(originals, "fails once"):
        assert contents(get(tmp_path)) == contents(originals)


def test_a_name_lookup_that_hangs_is_given_up(tmp_path, originals, monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: ended.wait(60))
    start = time.monotonic()
    with (
        expecting(originals, "http://example.invalid/"),
        pytest.raises(DataUnavailable, match="0 bytes in 1 s"),
    ):
        load_dataset("mnist", data_dir=tmp_path)
    ended.set()
    assert time.monotonic() - start < 8


@pytest.mark.parametrize("damage", ["flip", "truncate"])
def test_a_damaged_download_is_replaced_or_reported(tmp_path, originals, damage):
    with serving(originals):
        path = get(tmp_path) / NAMES[0]
        content = bytearray(path.read_bytes())
        if damage == "flip":
            content[40] ^= 1
        else:
            del content[40:]
        path.write_bytes(content)
        with expecting(originals), pytest.raises(DataUnavailable, match="cannot be downloaded"):
            get(tmp_path)
        assert contents(get(tmp_path)) == contents(originals)


def test_a_complete_manual_dir_is_used_and_left_unchanged(tmp_path, originals):
    before = contents(originals)
    with expecting(originals):
        assert get(tmp_path, originals) == originals
    assert contents(originals) == before
    assert not (tmp_path / "downloads" / "mnist_flax" / "mnist").exists()


def test_an_incomplete_manual_dir_is_not_used(tmp_path, originals):
    manual = tmp_path / "manual"
    write_originals(manual, 0)
    (manual / NAMES[0]).unlink()
    with serving(originals):
        assert contents(get(tmp_path, manual)) == contents(originals)


def test_a_manual_file_with_another_checksum_is_refused_by_name(tmp_path, originals):
    with expecting(originals):
        (originals / NAMES[3]).write_bytes(b"another")
        with pytest.raises(UserError, match=f"{NAMES[3]} is not the original") as error:
            get(tmp_path, originals)
    assert not isinstance(error.value, DataUnavailable)


def test_a_full_disk_is_not_a_network_failure(tmp_path, originals, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", fail)
    with serving(originals), pytest.raises(UserError, match=r"cannot use .*No space left") as error:
        get(tmp_path)
    assert not isinstance(error.value, DataUnavailable)


def test_a_read_only_folder_needs_no_lock(tmp_path, originals, monkeypatch):
    with serving(originals):
        folder = get(tmp_path)

        def refuse(*_, **__):
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(download.FileLock, "acquire", refuse)
        assert get(tmp_path) == folder
        (folder / NAMES[0]).unlink()
        monkeypatch.setattr(pooch.HTTPDownloader, "__call__", refuse)
        with pytest.raises(UserError, match="cannot use the data folder"):
            get(tmp_path)


def test_one_process_waits_for_another_and_removes_leftovers(tmp_path):
    folder = tmp_path / "mnist" / "3.0.1"
    incomplete = tmp_path / "mnist" / "incomplete.ABCDEF_3.0.1" / "part"
    incomplete.parent.mkdir(parents=True)
    incomplete.write_bytes(b"half")
    folder.mkdir()
    (folder / "tmpabcdef").write_bytes(b"half")
    (folder / "whole").write_bytes(b"whole")
    order, lines = [], []
    inside, leave = threading.Event(), threading.Event()

    def first():
        with lock_folder(folder, pytest.fail):
            assert [path.name for path in folder.iterdir()] == ["whole"]
            inside.set()
            leave.wait(20)
            order.append("first")

    def log(line):
        lines.append(line)
        leave.set()

    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(20)
    with lock_folder(folder, log):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]
    assert lines == ["waiting for another process that is preparing the same data"]
    assert not incomplete.parent.exists()
