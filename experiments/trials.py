"""What an experiment with faults is made of, and the small things that its parts share."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# What was lost in one try; None where nothing was.
Outcome = str | None


@dataclasses.dataclass(frozen=True)
class Fault:
    """Something that happens to a run, tried many times."""

    name: str
    """What happens, as the table says it."""

    attempt: Callable[[Path, int, int], Iterator[Outcome]]
    """From an empty folder to work in, the number of tries and a seed to the outcome of each."""

    tries: int
    """How often the long suite tries it."""

    few: int
    """How often the short one does, which the tests are."""


def command(module: str, *arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    """Starts one of the package's commands in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", f"mnist_flax.{module}", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=os.environ | environment,
    )


def complaint(code: int, errors: str) -> Outcome:
    """What is wrong with how a command refused: it ends with code 2 after one line on stderr."""
    lines = errors.splitlines()
    if code == 2 and len(lines) == 1 and lines[0].startswith("error: "):
        return None
    return f"exit code {code}, {len(lines)} lines on stderr: {errors[-300:]}"
