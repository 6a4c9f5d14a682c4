"""Runs of the main command.

A finished run is never repeated, whichever experiment needs it, and an interrupted one resumes:
its workdir is named after its config.
"""

import argparse
import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from mnist_flax.compare import compare_runs
from mnist_flax.core.config import Config
from mnist_flax.engine.workdir import read_config, read_summary
from mnist_flax.run.command import parse

SEEDS_PER_RUN = 5


class Run(NamedTuple):
    """One run of the main command."""

    config: Config
    workdir: Path
    arguments: tuple[str, ...]  # of `python -m mnist_flax.run`


def plan(options: argparse.Namespace, *flags: str) -> Run:
    """The run with these flags, untrained; a UserError if the command would refuse them."""
    flags = ("--dataset", options.dataset, *flags)
    config = parse(flags).config
    workdir = options.runs / short_digest(config)
    return Run(config, workdir, ("--workdir", str(workdir), *flags))


def short_digest(config: Config) -> str:
    """A name for a config: the beginning of its SHA-256."""
    text = json.dumps(dataclasses.asdict(config))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def train(options: argparse.Namespace, *flags: str) -> Path:
    """Trains with these flags, unless that run is finished; returns the workdir.

    Exits if the run is interrupted or fails, which it has then reported.
    """
    run = plan(options, *flags)
    print("python -m mnist_flax.run", *run.arguments, flush=True)
    process = subprocess.Popen([sys.executable, "-m", "mnist_flax.run", *run.arguments])
    try:
        code = process.wait()
    except KeyboardInterrupt:  # the terminal has sent it to the run too, which saves
        code = process.wait() or 130
    if code:
        sys.exit(code)
    return run.workdir


def train_seeds(options: argparse.Namespace, seeds: range, *flags: str) -> list[Path]:
    """Trains the seeds in runs of five, so that more seeds later need only new runs."""
    parts = [seeds[i : i + SEEDS_PER_RUN] for i in range(0, len(seeds), SEEDS_PER_RUN)]
    return [
        train(options, *flags, f"--seed={part[0]}", f"--num-seeds={len(part)}") for part in parts
    ]


def load_result(workdir: Path) -> dict[str, Any]:
    """The summary of a finished run, and its config."""
    summary, config = read_summary(workdir), read_config(workdir)
    assert summary is not None
    assert config is not None
    return {**summary, "config": dataclasses.asdict(config)}


def compare(a: Path, b: Path) -> dict[str, Any]:
    """The comparison of two runs, with counts in place of the lists of images."""
    result: dict[str, Any] = {**compare_runs(a, b)}
    for side in ("a", "b"):
        result[f"only_{side}_correct"] = len(result[f"only_{side}_correct"])
        result[side] = {**result[side], "workdir": Path(result[side]["workdir"]).name}
    return result
