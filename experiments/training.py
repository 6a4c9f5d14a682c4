"""Runs of the main command for the experiments.

A finished run is not repeated, whichever experiment asks for it, and a stopped one goes on.
"""

import argparse
import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from provenance import RESULTS

from mnist_flax.compare import compare_runs
from mnist_flax.run import parse

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
    """The runs of all experiments on one data set, each in a workdir named by its config."""

    def __init__(self, options: argparse.Namespace):
        self.folder, self.dataset = options.runs, options.dataset

    def train(self, *flags: str) -> Path:
        """Trains with those flags, or finds that done already; returns the workdir."""
        flags = ("--dataset", self.dataset, *flags)
        config = json.dumps(dataclasses.asdict(parse(flags).config))
        workdir = self.folder / hashlib.sha256(config.encode()).hexdigest()[:12]
        command = ["mnist_flax.run", "--workdir", str(workdir), *flags]
        print("python -m", *command, flush=True)
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
