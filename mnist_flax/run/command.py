"""The command `python -m mnist_flax.run`: trains a network.

Exit codes as in `engine.cli`; SIGTERM (143) and Ctrl-C (130) end a training after saving it.
Imports nothing heavy before it is needed.
"""

import dataclasses
import functools
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tyro

from mnist_flax.core.config import PRESETS, Config
from mnist_flax.engine import cli, distributed, workdir
from mnist_flax.engine.options import DataOptions, parse_options, peek_option, require_option
from mnist_flax.run import display

PROG = cli.program_name("run")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(DataOptions):
    """Trains a convolutional network on handwritten digits.

    The same command resumes an interrupted run and leaves a finished one alone.

    Example: mnist-flax run --workdir runs/exp1 --epochs 3
    """

    config: tyro.conf.OmitArgPrefixes[Config]
    workdir: Path | None = None
    """Folder for everything that the run writes. Required."""
    preset: Literal["default", "quick", "best", "large", "reference", "digits"] = "default"
    """The config to start from; other flags override it. `quick` is one epoch, `best` is 40
    with augmentation, `large` is four networks of `best`, `reference` is the Keras tutorial.
    `digits` is for scikit-learn's digits; it replaces `default` where MNIST is unavailable."""
    distributed: bool = False
    """Compute this run together with the other processes that Slurm, Open MPI, Cloud TPU or GKE
    started with this one."""
    coordinator_address: str | None = None
    """HOST:PORT where process 0 of several listens, if no such launcher started them."""
    num_processes: int | None = None
    """How many processes compute this run together."""
    process_id: int | None = None
    """The index of this process, from 0."""
    no_report: bool = False
    """Do not write the report at the end, which takes some seconds."""
    no_compilation_cache: bool = False
    """Do not keep compiled programs for the next run. Without this flag they go to
    JAX_COMPILATION_CACHE_DIR or ~/.cache/mnist_flax."""
    print_model: bool = False
    """Print the table of layers and exit."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code.

    Called with arguments, it passes a signal on once the training is saved: Ctrl-C raises
    KeyboardInterrupt.
    """
    interrupted = "interrupted; the same command resumes from the last checkpoint"
    try:
        code = cli.run_command(_run, argv, interrupted)
    except SystemExit as end:
        if not end.code:  # after the help
            raise
        code = int(end.code)  # the reader of the output is gone
    except Exception:
        if not distributed.is_distributed():
            raise
        # Most often another process is gone.
        traceback.print_exc()
        message = "start all processes again, and the run resumes from its last checkpoint"
        print(f"error: this process or another one failed; {message}", file=sys.stderr)
        code = 1
    if code:
        distributed.exit_now(code)
    if argv is not None and code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        signal.raise_signal(code - 128)  # the process is the caller's, who must hear of it too
    return code


def parse(argv: Sequence[str]) -> Options:
    """The options on a command line, which override those of its preset; errors as in `cli`."""
    preset = peek_option(argv, "--preset") or "default"
    default = Options(config=PRESETS.get(preset, Config()))
    return parse_options(Options, PROG, argv, default)


def parse_fallback(argv: Sequence[str]) -> Config:
    """The config for scikit-learn's digits: the preset `digits`, unless another one is named."""
    return dataclasses.replace(parse(["--preset", "digits", *argv]).config, dataset="digits")


def _run(argv: Sequence[str]) -> int:
    options, fallback = parse(argv), functools.partial(parse_fallback, argv)
    if options.print_model:
        cli.initialize_jax(cache=False)
        print(display.model_summary(options.config))
        return 0
    message = "--workdir is missing: the folder for everything that the run writes"
    folder = require_option(options.workdir, message).absolute()
    config = workdir.resolve_config(folder, options.config, fallback)
    flags = (options.coordinator_address, options.num_processes, options.process_id)
    if options.distributed or flags != (None, None, None):
        distributed.initialize(*flags)
    if summary := workdir.read_summary(folder):
        display.print_line(
            f"{folder} holds this run, which is finished: {display.describe_result(summary)}"
        )
        return 0
    start = time.perf_counter()
    from mnist_flax.run import experiment

    cli.initialize_jax(not options.no_compilation_cache)
    summary = experiment.run_experiment(
        config,
        folder,
        data_dir=options.data_dir,
        manual_dir=options.manual_dir,
        log=display.print_line,
        import_seconds=time.perf_counter() - start,
        with_report=not options.no_report,
        fallback=fallback,
    )
    result = workdir.SUMMARY if options.no_report else f"{workdir.REPORT}/index.html"
    display.print_result(summary, folder / result)
    return 0
