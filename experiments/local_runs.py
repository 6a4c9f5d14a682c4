"""Runs of the main command in processes of this machine, some at a time."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from training import Run


def log_of(run: Run) -> Path:
    """Where what a run prints is kept, beside its workdir."""
    return run.workdir.with_name(f"{run.workdir.name}.log")


def last_line(path: Path, unlike: str = "\0") -> str:
    """The last line of a log that says something, and does not begin with `unlike`; or nothing."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
    said = (line.strip() for line in reversed(lines) if not line.startswith(unlike))
    return next(filter(None, said), "")


class Processes:
    """Trains runs; SIGTERM and Ctrl-C are passed on to those under way, which save and stop."""

    def __init__(self, jobs: int, begin: Callable[[Run], None]):
        self.signum: int | None = None  # of the signal that stopped it
        self._jobs = jobs
        self._begin = begin  # is told of each run before it begins
        self._begun: list[subprocess.Popen[bytes]] = []
        self._stopping = False
        # Taken by the handler of a signal too, perhaps within another one.
        self._lock = threading.RLock()

    def train(self, runs: Sequence[Run]) -> Iterator[tuple[Run, int, str]]:
        """Each run as it ends, with its exit code and the last line that it printed."""
        with ThreadPoolExecutor(self._jobs) as pool, self._heeding_signals():
            try:
                futures = {pool.submit(self._train, run): run for run in runs}
                for future in as_completed(futures):
                    code, run = future.result(), futures[future]
                    if code is not None:
                        yield run, code, last_line(log_of(run))
            finally:
                self._stop(signal.SIGTERM)

    def _train(self, run: Run) -> int | None:
        """The run's exit code; None where it was not begun any more."""
        with self._lock:
            if self._stopping:
                return None
            self._begin(run)
            with log_of(run).open("ab") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "mnist_flax.run", *run.arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    process_group=0,  # or the terminal would send it each Ctrl-C a second time
                    # JAX gives three quarters of a GPU's memory to the first that asks.
                    env={"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.75 / self._jobs:.3f}"} | os.environ,
                )
            self._begun.append(process)
        return process.wait()

    def _stop(self, signum: int) -> None:
        with self._lock:
            self._stopping = True
            for process in self._begun:
                process.send_signal(signum)

    @contextlib.contextmanager
    def _heeding_signals(self) -> Iterator[None]:
        def heed(signum: int, _: object) -> None:
            self.signum = signum
            self._stop(signum)

        numbers = (signal.SIGTERM, signal.SIGINT)
        previous = {number: signal.signal(number, heed) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
