"""Faults, and the trainings that the modules which provoke them share."""

import atexit
import functools
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# What was lost or wrong in one try; None if nothing was.
Outcome = str | None
# From an empty folder, the number of tries and a seed to the outcome of each try.
Attempts = Callable[[Path, int, int], Iterator[Outcome]]

EPOCHS = 6
DIGITS = ("--dataset", "digits", "--epochs", str(EPOCHS), "--batch-size", "128")
ARGUMENTS = (*DIGITS, "--no-report")
TIMEOUT = 600  # seconds


class Fault(NamedTuple):
    """Something that happens to a run, tried many times."""

    name: str
    attempt: Attempts
    tries: int
    few: int  # tries in the tests


def repeated(
    attempt: Callable[[Path, int, random.Random], Outcome],
    is_possible: Callable[[], object] = lambda: True,
) -> Attempts:
    """Tries the same many times, each time with a new folder, the number of the try and a seed."""

    def attempts(folder: Path, tries: int, seed: int) -> Iterator[Outcome]:
        rng = random.Random(seed)
        for number in range(tries) if is_possible() else ():
            yield attempt(folder / f"try{number}", number, rng)
            shutil.rmtree(folder / f"try{number}", ignore_errors=True)

    return attempts


def start(workdir: Path, *arguments: str, prefix: Sequence[str] = ()) -> subprocess.Popen[str]:
    """Starts a training in a workdir; with a prefix, through another command."""
    return subprocess.Popen(
        [*prefix, sys.executable, "-m", "mnist_flax.run", f"--workdir={workdir}", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    )


def finish(process: subprocess.Popen[str], timeout: float = TIMEOUT) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a process, once it has ended."""
    output, errors = process.communicate(timeout=timeout)
    return process.returncode, output, errors


def train(workdir: Path, *arguments: str, prefix: Sequence[str] = ()) -> tuple[int, str, str]:
    """Trains in a workdir; returns exit code, standard output and standard error."""
    return finish(start(workdir, *arguments, prefix=prefix))


@functools.cache
def baseline(*arguments: str) -> tuple[Path, float]:
    """Workdir and seconds of an undisturbed run. Its compiled programs are kept for the others."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    workdir, began = Path(folder) / "undisturbed", 0.0
    for _ in range(2):  # the first one compiles
        shutil.rmtree(workdir, ignore_errors=True)
        began = time.monotonic()
        code, _, errors = train(workdir, *arguments)
        if code:
            raise RuntimeError(errors)
    return workdir, time.monotonic() - began


def compare(workdir: Path, *arguments: str) -> Outcome:
    """How a finished run differs from the undisturbed one, except in its speed."""
    actual = _contents(workdir)
    for name, expected in _contents(baseline(*arguments)[0]).items():
        if actual[name] != expected:
            return f"{name} differs: {actual[name]} instead of {expected}"
    temporary = [path.name for path in workdir.rglob("*") if "tmp" in path.name]
    return f"left behind: {temporary}" if temporary else None


def _contents(workdir: Path) -> dict[str, Any]:
    """The results of a run, without timings."""
    summary = json.loads((workdir / "summary.json").read_text())
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for values in (summary, *rows):
        for timing in ("seconds", "images_per_second"):
            values.pop(timing, None)
    texts = ("config.json", "environment.json", "report/evaluation.json")
    folders = ("checkpoints", "report")
    return {
        **summary,
        "metrics.jsonl": rows,
        **{name: (workdir / name).read_text() for name in texts if (workdir / name).exists()},
        **{name: sorted(path.name for path in (workdir / name).glob("*")) for name in folders},
    }


def check_refusal(code: int, errors: str) -> Outcome:
    """What is wrong with a refusal, which must have exit code 2 and one line on stderr."""
    lines = errors.splitlines()
    if code == 2 and len(lines) == 1 and lines[0].startswith("error: "):
        return None
    return f"exit code {code}, {len(lines)} lines on stderr: {errors[-300:]}"
