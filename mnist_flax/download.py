"""Downloads by TFDS that come to an end, and leave nothing half done.

TFDS itself waits for a server without a limit, tries ten times, and trusts whatever it
downloaded earlier.
"""

import concurrent.futures
import contextlib
import errno
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mnist_flax.config import UserError

PROBE_SECONDS = 8.0

# A download that brings less than so many bytes in so many seconds is given up.
STALL_SECONDS = 30.0
STALL_BYTES = 2**16

RETRIES = 3


class DataUnavailable(UserError):
    """The data set is neither here nor can it be downloaded."""


def probe(url: str, name: str, files: str) -> None:
    """Finds out in at most `PROBE_SECONDS` whether there is a network.

    Raises:
      DataUnavailable: there is none, or the file is not there.
    """

    def head() -> None:
        request = urllib.request.Request(url, method="HEAD")
        urllib.request.urlopen(request, timeout=PROBE_SECONDS).close()

    answer = _in_thread(head)
    concurrent.futures.wait([answer], PROBE_SECONDS)
    if not answer.done():
        reason = f"no answer within {PROBE_SECONDS:.0f} s"
    elif isinstance(problem := answer.exception(), urllib.error.HTTPError):
        reason = f"{url} answers {problem.code}"
    else:
        reason = getattr(problem, "reason", problem)
    if reason is not None:
        raise DataUnavailable(
            f"{name} is not on this machine and cannot be downloaded ({reason}); "
            f"--manual-dir takes a folder with {files}"
        )


@contextlib.contextmanager
def bounded_downloads(name: str) -> Iterator[None]:
    """Ends TFDS's downloads that go nowhere, and explains in one line what went wrong.

    Raises:
      DataUnavailable: the network failed, or was too slow.
      UserError: what came, or what lies in the manual folder, is not the original.
    """
    from unittest import mock

    import requests
    from tensorflow_datasets.core.download import download_manager, downloader
    from tensorflow_datasets.core.download.util import DownloadError

    download = downloader._Downloader._sync_download
    over: Future[None] = Future()
    folders: list[Path] = []
    # TFDS's own lives as long as the process, and is never waited for.
    own = downloader._Downloader()

    def in_time(self: Any, url: str, folder: Any, verify: bool = True) -> Any:
        folders.append(Path(folder))
        try:
            coming = _in_thread(lambda: download(self, url, folder, verify))
            _wait(coming, over, Path(folder))
            return coming.result()
        except (OSError, DownloadError):  # of the disk or, `requests` derives its own, the network
            raise
        except Exception as error:  # a server can break any rule
            raise DownloadError(f"{url}: {error}") from error

    try:
        with (
            mock.patch.object(download_manager, "get_downloader", return_value=own),
            mock.patch.object(downloader, "MAX_RETRIES", RETRIES),
            mock.patch.object(downloader._Downloader, "_sync_download", in_time),
        ):
            yield
    except download_manager.NonMatchingChecksumError as error:
        detail = " ".join(str(error).split("To debug")[0].split())
        raise UserError(f"a file is not the original one: {detail}") from error
    except (DownloadError, requests.RequestException) as error:
        raise DataUnavailable(f"{name} cannot be downloaded: {str(error).rstrip('.')}") from error
    finally:
        over.set_result(None)
        own._executor.shutdown()  # which may still be putting another file in its place
        for folder in 2 * folders:  # what was given up may put its file there during the first
            shutil.rmtree(folder, ignore_errors=True)


def check_original(path: Path, checksum: str) -> None:
    """Refuses a downloaded file that has changed since.

    Raises:
      UserError: its SHA-256 is not `checksum`.
    """
    from tensorflow_datasets.core.download.checksums import compute_url_info

    if compute_url_info(path).checksum != checksum:
        raise UserError(f"{path} is damaged; remove it, and the next run downloads it again")


@contextlib.contextmanager
def alone(log: Callable[[str], None], folder: Path, *others: Path) -> Iterator[None]:
    """One process fills a folder while the others wait; freed by the system if its holder dies.

    What killed processes left half done, in it or in `others`, goes away first.
    """
    lock = FileLock(f"{folder}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=1)
        except Timeout:
            log("waiting for another process that is preparing the same data")
            lock.acquire()
        for place in (folder, *others):
            _remove_leftovers(place)
    except OSError as error:
        # In a folder that is read-only for us there is nothing to spoil.
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
    try:
        yield
    finally:
        lock.release()


def _remove_leftovers(folder: Path) -> None:
    beside = folder.parent.glob(f"incomplete.*_{folder.name}")
    for path in [*beside, *folder.glob("*.tmp*"), *folder.glob("incomplete.*")]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _in_thread(function: Callable[[], Any]) -> Future[Any]:
    """Calls it in a thread that nobody has to wait for.

    Looking up a host name, for one, cannot be given a time limit.
    """
    outcome: Future[Any] = Future()

    def call() -> None:
        try:
            outcome.set_result(function())
        except Exception as error:
            outcome.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return outcome


def _wait(coming: Future[Any], over: Future[None], folder: Path) -> None:
    """Returns once the download has ended; its bytes are counted on disk.

    Raises:
      DownloadError: it stalls, or nobody wants it any more.
    """
    from tensorflow_datasets.core.download.util import DownloadError

    first, size = concurrent.futures.FIRST_COMPLETED, 0
    while not concurrent.futures.wait((coming, over), STALL_SECONDS, first).done:
        before, size = size, sum(path.stat().st_size for path in folder.iterdir())
        if size < before + STALL_BYTES:
            raise DownloadError(
                f"only {size - before:,} bytes in {STALL_SECONDS:.0f} s, after {before:,}"
            )
    if not coming.done():
        raise DownloadError("given up")
