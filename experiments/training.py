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
from mnist_flax.config import Config
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


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of the main command."""

    config: Config
    workdir: Path

    arguments: tuple[str, ...]
    """Those of `python -m mnist_flax.run`."""


class Runs:
    """The runs of all experiments on one data set, each in a workdir named by its config."""

    def __init__(self, options: argparse.Namespace):
        self.folder, self.dataset = options.runs, options.dataset

    def train(self, *flags: str) -> Path:
        """Trains with those flags, or finds that done already; returns the workdir.

        Raises:
          SystemExit: the run was stopped or failed, and has said so.
        """
        run = self.plan(*flags)
        print("python -m mnist_flax.run", *run.arguments, flush=True)
        process = subprocess.Popen([sys.executable, "-m", "mnist_flax.run", *run.arguments])
        try:
            code = process.wait()
        except KeyboardInterrupt:  # which the run got from the terminal as well, and saves
            code = process.wait() or 130
        if code:
            sys.exit(code)
        return run.workdir

    def plan(self, *flags: str) -> Run:
        """The run with those flags, untrained.

        Raises:
          UserError: the command would refuse them.
        """
        flags = ("--dataset", self.dataset, *flags)
        config = parse(flags).config
        text = json.dumps(dataclasses.asdict(config))
        workdir = self.folder / hashlib.sha256(text.encode()).hexdigest()[:12]
        return Run(config, workdir, ("--workdir", str(workdir), *flags))


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
