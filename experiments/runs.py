"""Runs of the main command for the experiments, each in its own workdir.

A finished run is not repeated and a stopped one goes on, so an experiment that was cut off
takes up where it was.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from provenance import RESULTS

from mnist_flax.compare import compare_runs

# Not kept in git; the results are.
FOLDER = Path(__file__).parent.parent / "runs"


def arguments(description: str | None, seeds: int) -> argparse.ArgumentParser:
    """The options that the experiments share."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=seeds, help="how many, from 0")
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--runs", type=Path, default=FOLDER, help="folder for the workdirs")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the results")
    return parser


class Runs:
    """The runs of an experiment, in one folder and on one data set."""

    def __init__(self, options: argparse.Namespace):
        self.folder, self.dataset = options.runs, options.dataset

    def train(self, name: str, *flags: str) -> Path:
        """Trains the run called `name`, or finds it finished; returns its workdir."""
        workdir = self.folder / name
        command = ["mnist_flax.run", "--workdir", str(workdir), "--dataset", self.dataset, *flags]
        subprocess.run([sys.executable, "-m", *command], check=True)
        return workdir


def summary(workdir: Path) -> dict[str, Any]:
    """What `summary.json` says of a run, and its config."""
    result = json.loads((workdir / "summary.json").read_text())
    return result | {"config": json.loads((workdir / "config.json").read_text())}


def difference(a: Path, b: Path) -> dict[str, Any]:
    """`compare` of two runs, without the long lists."""
    result = compare_runs(a, b)
    for side in ("a", "b"):
        result[f"only_{side}_right"] = len(result[f"only_{side}_right"])
        result[side]["workdir"] = Path(result[side]["workdir"]).name
    return result
