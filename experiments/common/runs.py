"""Runs of the main command.

A finished run is never repeated, whichever experiment needs it, and an interrupted one resumes.
"""

import argparse
import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from experiments.common import provenance
from mnist_flax.compare import compare_runs
from mnist_flax.core.config import Config
from mnist_flax.engine.workdir import read_config, read_summary
from mnist_flax.run.command import parse

RUNS = provenance.ROOT / "runs"  # git ignores it


def make_parser(description: str | None, seeds: int) -> argparse.ArgumentParser:
    """A parser with the options of the experiments that use `Runs`."""
    parser = provenance.make_parser(description)
    parser.add_argument("--seeds", type=int, default=seeds, help="number of seeds, from 0")
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder for the workdirs")
    return parser


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of the main command."""

    config: Config
    workdir: Path
    arguments: tuple[str, ...]  # of `python -m mnist_flax.run`


class Runs:
    """The runs of all experiments on one dataset, in workdirs that are named after their config."""

    def __init__(self, options: argparse.Namespace):
        self.folder, self.dataset = options.runs, options.dataset

    def train(self, *flags: str) -> Path:
        """Trains with these flags, unless that run is finished; returns the workdir.

        Exits if the run is interrupted or fails, which it has then reported.
        """
        run = self.plan(*flags)
        print("python -m mnist_flax.run", *run.arguments, flush=True)
        process = subprocess.Popen([sys.executable, "-m", "mnist_flax.run", *run.arguments])
        try:
            code = process.wait()
        except KeyboardInterrupt:  # the terminal has sent it to the run too, which saves
            code = process.wait() or 130
        if code:
            sys.exit(code)
        return run.workdir

    def plan(self, *flags: str) -> Run:
        """The run with these flags, untrained; a UserError if the command would refuse them."""
        flags = ("--dataset", self.dataset, *flags)
        config = parse(flags).config
        text = json.dumps(dataclasses.asdict(config))
        workdir = self.folder / hashlib.sha256(text.encode()).hexdigest()[:12]
        return Run(config, workdir, ("--workdir", str(workdir), *flags))


def load_result(workdir: Path) -> dict[str, Any]:
    """The summary of a finished run, and its config."""
    summary, config = read_summary(workdir), read_config(workdir)
    assert summary is not None
    assert config is not None
    return dict(summary) | {"config": dataclasses.asdict(config)}


def compare(a: Path, b: Path) -> dict[str, Any]:
    """The comparison of two runs, with counts in place of the lists of images."""
    result: dict[str, Any] = {**compare_runs(a, b)}
    for side in ("a", "b"):
        result[f"only_{side}_correct"] = len(result[f"only_{side}_correct"])
        result[side] = {**result[side], "workdir": Path(result[side]["workdir"]).name}
    return result
