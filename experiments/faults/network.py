"""A network that misbehaves, and processes that prepare data: killed, or two at once.

The dataset is small; in the end its correct arrays must be loaded.
"""

import contextlib
import gc
import http.server
import random
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from experiments.common.provenance import ROOT
from experiments.faults.datasets import NAMES, expecting, prepared, verdict
from experiments.faults.fault import Fault, Outcome, repeated
from mnist_flax.data import download

NEVER = "nothing may be refused"
BEHAVIORS = (
    *("answers 404", "answers 500", "fails once", "hangs", "drips", "breaks off", "is incomplete"),
    *("sends noise", "sends HTML", "speaks no HTTP", "lies about the length", "redirects forever"),
)


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder on this machine; with a `behavior`, the file `bad` is served badly."""

    daemon_threads = True

    def __init__(self, folder: Path, behavior: str = "", bad: str = ""):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.behavior, self.bad = folder, behavior, bad
        self.closing = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that give up are expected."""


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one request."""

    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: Any) -> None:
        """Keeps the terminal clean."""

    def do_GET(self) -> None:
        """Sends the file, or what the behavior makes of it."""
        content = (self.server.folder / Path(self.path).name).read_bytes()
        how = self.server.behavior if self.path.endswith(self.server.bad) else ""
        if how == "fails once":
            self.server.behavior, how = "", "answers 500"
        if how.startswith("answers"):
            self._head(int(how.split()[1]), "0")
        elif how == "hangs":
            self.server.closing.wait(60)
        elif how == "redirects forever":
            self._head(302, "0", self.path)
        elif how == "speaks no HTTP":
            self.wfile.write(b"\0\1\2 what?\r\n\r\n")
        else:
            lengths = {"is incomplete": None, "lies about the length": "many"}
            content = {"sends noise": content[::-1], "sends HTML": b"<html>"}.get(how, content)
            self._head(200, lengths.get(how, str(len(content))))
            half = how in ("drips", "breaks off", "is incomplete")
            self.wfile.write(content[: len(content) // 2] if half else content)
            while how == "drips" and not self.server.closing.wait(0.05):
                self.wfile.write(b"x")

    def _head(self, code: int, length: str | None, location: str | None = None) -> None:
        self.send_response(code)
        for name, value in (("Content-Length", length), ("Location", location)):
            if value is not None:
                self.send_header(name, value)
        self.end_headers()


@contextlib.contextmanager
def serving(folder: Path, behavior: str = "", bad: str = "") -> Iterator[Server]:
    """A server for the files in a folder, which are the originals."""
    with (
        # pooch leaves the sockets of failed downloads to the garbage collector.
        warnings.catch_warnings(action="ignore", category=ResourceWarning),
        Server(folder, behavior, bad) as server,
    ):
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            with expecting(folder, server.url):
                yield server
        finally:
            server.closing.set()
            server.shutdown()
            for thread in threading.enumerate():
                if thread.name == "download":
                    thread.join(10)
            gc.collect()


def bad_network(folder: Path, number: int, rng: random.Random) -> Outcome:
    """A server that serves one file badly, and later well."""
    source, expected = prepared()
    behavior = BEHAVIORS[number % len(BEHAVIORS)]
    limits = {"ANSWER_SECONDS": 2.0, "STALL_SECONDS": 1.5, "RETRIES": 1}
    with (
        mock.patch.multiple(download, **limits),
        serving(source / "originals", behavior, rng.choice(NAMES)) as server,
    ):
        start = time.monotonic()
        name = NEVER if behavior == "fails once" else "cannot be downloaded"
        outcome = verdict(folder, expected, name)
        if time.monotonic() - start > 20:
            outcome = f"took {time.monotonic() - start:.0f} s"
        server.behavior = ""
        later = verdict(folder, expected, NEVER)
    outcome = outcome or (later and f"afterwards: {later}")
    return outcome and f"{behavior}: {outcome}"


PREPARE = """
import pathlib, sys, time
import mnist_flax.data.tfds_builder, requests
from experiments.faults.datasets import expecting, load
folder, manual, start = map(pathlib.Path, sys.argv[1:])
with expecting(manual):
    print("ready", flush=True)
    while not start.exists(): time.sleep(0.001)
    load(folder, manual)
    print("done", flush=True)
"""


def start_preparing(folder: Path, count: int) -> list[subprocess.Popen[str]]:
    """Processes that have imported everything and now, all at once, begin to prepare the data."""
    paths = (folder, prepared()[0] / "originals", folder.with_suffix(".start"))
    command = [sys.executable, "-c", PREPARE, *map(str, paths)]
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=ROOT)
        for _ in range(count)
    ]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    paths[2].touch()
    return processes


def killed_while_preparing(folder: Path, number: int, rng: random.Random) -> Outcome:
    """SIGKILL at a random moment to a process that prepares the data."""
    source, expected = prepared()
    (process,) = start_preparing(folder, 1)
    time.sleep(rng.uniform(0, 0.6))
    process.kill()
    process.communicate()
    with expecting(source / "originals"):
        return verdict(folder, expected, NEVER, source / "originals")


def two_at_once(folder: Path, number: int, rng: random.Random) -> Outcome:
    """Two processes that prepare the same data."""
    for process in start_preparing(folder, 2):
        output, errors = process.communicate(timeout=100)
        if "done" not in output:
            return errors[-300:]
    with expecting(prepared()[0] / "originals"):
        return verdict(folder, prepared()[1], NEVER)


FAULTS = (
    Fault("a network that misbehaves", repeated(bad_network), 48, 12),
    Fault("killed while a small data set is prepared", repeated(killed_while_preparing), 20, 3),
    Fault("two processes prepare the same data", repeated(two_at_once), 10, 1),
)
