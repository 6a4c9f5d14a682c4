"""Original files from the internet: every download ends, and only verified files are kept."""

import contextlib
import errno
import os
import shutil
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from mnist_flax.core.config import UserError

if TYPE_CHECKING:
    from pooch import Pooch

RETRIES = 2
ANSWER_SECONDS = 8.0  # until the first byte
STALL_SECONDS, STALL_BYTES = 30.0, 2**16  # fewer bytes in this time are too few


class DataUnavailable(UserError):
    """The data set is neither on this machine nor can it be downloaded."""


def data_root(data_dir: Path | None) -> Path:
    """`data_dir`, or the default that TFDS documents."""
    folder = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    try:
        return Path(folder).expanduser()
    except RuntimeError as error:
        raise UserError("there is no home folder for the data; use --data-dir") from error


def original_files(dataset: str, root: Path) -> "Pooch":
    """The files of a data set, with the checksums that TFDS registers; kept in TFDS's folder."""
    import pooch
    import tensorflow_datasets as tfds

    infos = tfds.builder_cls(dataset).url_infos or {}
    return pooch.create(
        root / "downloads" / "mnist_flax" / dataset,
        base_url="",
        urls={Path(url).name: url for url in infos},
        registry={Path(url).name: info.checksum for url, info in infos.items()},
        retry_if_failed=RETRIES,
    )


def fetch(
    title: str, originals: "Pooch", manual_dir: Path | None, log: Callable[[str], None]
) -> Path:
    """A folder with verified files: `manual_dir` if it has all of them, else `originals.path`.

    There, files that are missing or damaged are downloaded. Raises DataUnavailable if one cannot
    be, and a UserError if a file in `manual_dir` is not the original, or the folder cannot be used.
    """
    import pooch
    import requests

    names, folder = originals.registry_files, Path(originals.path)
    http: Any = pooch.HTTPDownloader(sys.stderr.isatty(), timeout=(ANSWER_SECONDS, STALL_SECONDS))
    pooch.get_logger().setLevel("WARNING")

    def damaged(folder: Path) -> list[str]:
        hashes = {n: pooch.file_hash(folder / n) for n in names if (folder / n).exists()}
        return [name for name in names if hashes.get(name) != originals.registry[name]]

    with lock_folder(folder, log):
        if manual_dir is not None and all((manual_dir / name).exists() for name in names):
            for name in damaged(manual_dir):
                raise UserError(f"{manual_dir / name} is not the original file: wrong SHA-256")
            return manual_dir
        if missing := damaged(folder):
            log(f"downloading {title} to {folder}")
            try:
                _run_while_growing(
                    lambda: [originals.fetch(name, downloader=http) for name in missing], folder
                )
            except Exception as error:  # a server can break any rule
                network_errors = (TimeoutError, requests.RequestException)
                if isinstance(error, OSError) and not isinstance(error, network_errors):
                    raise
                cause: BaseException = error
                while cause.__context__ is not None:
                    cause = cause.__context__
                raise DataUnavailable(
                    f"{title} is not on this machine and cannot be downloaded "
                    f"({textwrap.shorten(str(cause) or repr(cause), 300)}); "
                    f"--manual-dir takes a folder with {', '.join(names)}"
                ) from error
    return folder


def _run_while_growing(download: Callable[[], object], folder: Path) -> None:
    """Runs a download in a daemon thread for as long as its folder grows fast enough.

    Time limits of the connection are not enough: the lookup of a host name has none.
    """
    future: Future[object] = Future()

    def run() -> None:
        try:
            future.set_result(download())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, name="download", daemon=True).start()
    seconds, minimum, size = ANSWER_SECONDS, 1, _bytes_in(folder)
    while not wait([future], seconds).done:
        before, size = size, _bytes_in(folder)
        if abs(size - before) < minimum:  # another attempt starts with a smaller file
            raise TimeoutError(f"only {size - before:,} bytes in {seconds:.0f} s")
        seconds, minimum = STALL_SECONDS, STALL_BYTES
    future.result()


def _bytes_in(folder: Path) -> int:
    with contextlib.suppress(FileNotFoundError):  # files are renamed at any moment
        return sum(path.stat().st_size for path in folder.iterdir())
    return 0


@contextlib.contextmanager
def lock_folder(folder: Path, log: Callable[[str], None]) -> Iterator[None]:
    """Lets one process at a time fill a folder, and removes what a failed one left behind.

    Raises a UserError if the folder cannot be used.
    """
    lock = FileLock(f"{folder}.lock")
    try:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=1)
        except Timeout:
            log("waiting for another process that is preparing the same data")
            lock.acquire()
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise  # a folder that is read-only for this user needs no lock
        if lock.is_locked:
            _remove_leftovers(folder)
        yield
    except OSError as error:
        raise UserError(f"cannot use the data folder {folder}: {error}") from error
    finally:
        if lock.is_locked:
            _remove_leftovers(folder)
            lock.release()


def _remove_leftovers(folder: Path) -> None:
    """Removes the temporary folders of TFDS, and temporary files of pooch or the cache."""
    for path in (*folder.parent.glob(f"incomplete.*_{folder.name}"), *folder.glob("tmp*")):
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
