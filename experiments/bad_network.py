"""A bad network, and processes that prepare data: killed, or two at once.

The data set is small, and its true arrays must come in the end.
"""

import contextlib
import http.server
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from bad_data import NAMES, expecting, load, verdict, write_originals
from trials import Fault, Outcome

from mnist_flax import download

NEVER = "nothing may be refused"

BEHAVIOURS = (
    *("answers 404", "answers 500", "hangs", "drips", "dies in the middle", "sends too little"),
    *("sends something else", "speaks no HTTP", "lies about the length", "redirects for ever"),
)


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder on this machine; badly, where `behaviour` says so of a file."""

    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.behaviour, self.bad = folder, "", ""
        self.over = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing: clients that give up are what is tried here."""


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one request."""

    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""

    def do_HEAD(self) -> None:
        """Always well, so that the download begins."""
        self._head(200, "0")

    def do_GET(self) -> None:
        """The file, or what the behaviour makes of it."""
        content = (self.server.folder / Path(self.path).name).read_bytes()
        how = self.server.behaviour if self.path.endswith(self.server.bad) else ""
        if how.startswith("answers"):
            self._head(int(how.split()[1]), "0")
        elif how == "hangs":
            self.server.over.wait(60)
        elif how == "redirects for ever":
            self._head(302, "0", self.path)
        elif how == "speaks no HTTP":
            self.wfile.write(b"\0\1\2 what?\r\n\r\n")
        elif how == "lies about the length":
            self._head(200, "many")
        else:
            self._head(200, None if how == "sends too little" else str(len(content)))
            part = {"sends something else": content[::-1]}.get(how, content)
            half = how in ("drips", "dies in the middle", "sends too little")
            self.wfile.write(part[: len(part) // 2] if half else part)
            while how == "drips" and not self.server.over.wait(0.05):
                self.wfile.write(b"x")

    def _head(self, code: int, length: str | None, location: str | None = None) -> None:
        self.send_response(code)
        for name, value in (("Content-Length", length), ("Location", location)):
            if value is not None:
                self.send_header(name, value)
        self.end_headers()


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """A server of its own thread, which ends with the context."""
    with Server(folder) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()


def bad_network(folder: Path, tries: int, seed: int) -> Iterator[Outcome]:
    """A server that misbehaves about one file; after that, it behaves."""
    rng = random.Random(seed)
    write_originals(folder / "originals", 0)
    with expecting(folder / "originals"):
        true = load(folder / "true", folder / "originals")
    for number in range(tries):
        place, how = folder / f"{number}", BEHAVIOURS[number % len(BEHAVIOURS)]
        with (
            serving(folder / "originals") as server,
            expecting(folder / "originals", server.url),
            mock.patch.object(download, "STALL_SECONDS", 0.5),
        ):
            server.behaviour, server.bad = how, rng.choice(NAMES)
            start = time.monotonic()
            outcome = verdict(lambda at=place: load(at), {}, "", place)
            if time.monotonic() - start > 20:
                outcome = f"took {time.monotonic() - start:.0f} s"
            server.behaviour = ""
            again = verdict(lambda at=place: load(at), true, NEVER, place)
        outcome = outcome or (again and f"afterwards: {again}")
        yield outcome and f"{how}: {outcome}"
        shutil.rmtree(place)


def preparing(place: Path, manual: Path) -> subprocess.Popen[str]:
    """A process that says when it begins to prepare the data, and when it has them."""
    script = (
        f"import sys, pathlib; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import bad_data, tensorflow_datasets, PIL.Image, requests\n"
        "place, manual = map(pathlib.Path, sys.argv[1:])\n"
        "with bad_data.expecting(manual):\n"
        "    print('begins', flush=True); sys.stdin.readline()\n"
        "    bad_data.load(place, manual); print('done', flush=True)\n"
    )
    command = [sys.executable, "-c", script, str(place), str(manual)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout
    process.stdout.readline()
    return process


def killed_while_preparing(folder: Path, tries: int, seed: int) -> Iterator[Outcome]:
    """SIGKILL, at any moment, to a process that prepares the data."""
    rng = random.Random(seed)
    write_originals(folder / "originals", 0)
    with expecting(folder / "originals"):
        true = load(folder / "true", folder / "originals")
        for number in range(tries):
            place = folder / f"{number}"
            process = preparing(place, folder / "originals")
            assert process.stdin
            process.stdin.write("\n")
            process.stdin.flush()
            time.sleep(rng.uniform(0, 0.6))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            yield verdict(
                lambda at=place: load(at, folder / "originals"),
                true,
                NEVER,
                place,
            )
            shutil.rmtree(place)


def two_at_once(folder: Path, tries: int, seed: int) -> Iterator[Outcome]:
    """Two processes that prepare the same data."""
    del seed
    write_originals(folder / "originals", 0)
    with expecting(folder / "originals"):
        true = load(folder / "true", folder / "originals")
        for number in range(tries):
            place = folder / f"{number}"
            both = [preparing(place, folder / "originals") for _ in range(2)]
            for process in both:
                assert process.stdin
                process.stdin.write("\n")
                process.stdin.flush()
            answers = [process.communicate(timeout=100) for process in both]
            failed = [errors[-300:] for output, errors in answers if "done" not in output]
            yield (failed[0] if failed else verdict(lambda at=place: load(at), true, NEVER, place))
            shutil.rmtree(place)


FAULTS = (
    Fault("a network that misbehaves", bad_network, 40, 10),
    Fault("killed while a small data set is prepared", killed_while_preparing, 20, 3),
    Fault("two processes prepare the same data", two_at_once, 10, 1),
)
