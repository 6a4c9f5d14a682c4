"""Runs of the main command for the experiments, each in its own workdir.

A finished run is not repeated and a stopped one goes on, so an experiment that was cut off
takes up where it was.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from mnist_flax.compare import compare_runs

# Where the workdirs lie. Not kept in git; the results are.
RUNS = Path(os.environ.get("MNIST_FLAX_RUNS", Path(__file__).parent.parent / "runs"))


def command(name: str, *flags: str) -> list[str]:
    """The command of the run called `name`."""
    return ["mnist_flax.run", "--workdir", str(RUNS / name), "--dataset", "mnist", *flags]


def train(name: str, *flags: str) -> Path:
    """Runs it, or finds it finished; returns its workdir."""
    subprocess.run([sys.executable, "-m", *command(name, *flags)], check=True)
    return RUNS / name


def summary(workdir: Path) -> dict[str, Any]:
    """What `summary.json` says of a run, and its config."""
    result = json.loads((workdir / "summary.json").read_text())
    return result | {"config": json.loads((workdir / "config.json").read_text())}


def difference(a: Path, b: Path) -> dict[str, Any]:
    """`compare` of two runs, without the long lists."""
    result = compare_runs(a, b)
    for side in ("a", "b"):
        result[f"only_{side}_right"] = len(result[f"only_{side}_right"])
        result[side]["workdir"] = result[side]["workdir"].removeprefix(f"{RUNS}{os.sep}")
    return result
