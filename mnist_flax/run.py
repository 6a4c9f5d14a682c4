"""The command `python -m mnist_flax.run`: what was asked for, and how it ended.

Exit codes as in `command`; a training that SIGTERM (143) or Ctrl-C (130) ends is saved
before. Imports nothing heavy before it is needed.
"""

import dataclasses
import os
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any, Literal

import tyro
from tqdm import tqdm

from mnist_flax import command, workdir
from mnist_flax.command import (
    OptionalPath,
    keep_compiled_programs,
    option_before_parsing,
    path_from_environment,
    printable,
    run_command,
)
from mnist_flax.config import PRESETS, Config, UserError
from mnist_flax.spread import mean_of, percent, seeds_of

PROG = command.called("run")


@dataclasses.dataclass(frozen=True)
class Options:
    """Trains a convolutional network on handwritten digits.

    The same command goes on with a run that was stopped, and leaves a finished one alone.
    """

    config: tyro.conf.OmitArgPrefixes[Config]

    workdir: OptionalPath = None
    """Folder for all that the run leaves behind. Required."""

    preset: Literal["default", "quick", "best", "large", "reference"] = "default"
    """Where the config starts from; other flags override it. `quick` is one epoch, `best` is
    60 with stronger augmentation, `large` has twice the channels, `reference` is the Keras
    tutorial."""

    data_dir: OptionalPath = None
    """TFDS's data folder. Default: TFDS_DATA_DIR, else TFDS's own."""

    manual_dir: OptionalPath = None
    """Read-only folder with the four original .gz files, for machines without a network.
    Default: MNIST_FLAX_MANUAL_DIR."""

    coordinator_address: str | None = None
    """HOST:PORT where process 0 of several listens. Slurm, Open MPI, Cloud TPU and GKE need none
    of these three."""

    num_processes: int | None = None
    """How many processes compute this run together; 1 keeps this one alone."""

    process_id: int | None = None
    """Which of them this is, from 0."""

    no_report: bool = False
    """Do not write the report page at the end, which takes some seconds."""

    no_compilation_cache: bool = False
    """Do not keep compiled programs for the next run. Without this flag they go to
    JAX_COMPILATION_CACHE_DIR or ~/.cache/mnist_flax."""

    print_model: bool = False
    """Print the table of layers, and do nothing else."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""

    def action(argv: Sequence[str]) -> int:
        options = parse(argv)
        return _print_model(options) if options.print_model else _run(options)

    return run_command(
        action, argv, interrupted="interrupted; the same command goes on from the last checkpoint"
    )


def parse(argv: Sequence[str]) -> Options:
    """The options that a command line asks for.

    Raises:
      UserError: it is not a valid one.
      SystemExit: with code 0, after printing the help.
    """
    preset = option_before_parsing(argv, "--preset") or "default"
    base = Options(
        config=PRESETS.get(preset, Config()),
        manual_dir=path_from_environment("MNIST_FLAX_MANUAL_DIR"),
    )
    return command.parse(Options, PROG, argv, base)


def _print_model(options: Options) -> int:
    from mnist_flax import model

    print(model.layer_table(options.config.input_size, options.config.channels))
    return 0


def _run(options: Options) -> int:
    missing = "--workdir is missing: the folder for all that the run leaves behind"
    folder = command.required(options.workdir, missing).absolute()
    config = workdir.settle_config(folder, options.config)
    summary = workdir.read_summary(folder / workdir.SUMMARY)
    if summary is not None:
        if not _rank(options):
            _log(f"{folder} holds this run, finished already: {_result(summary)}")
        return 0
    began = time.perf_counter()
    from mnist_flax import experiment, loop, processes

    import_seconds = time.perf_counter() - began
    processes.initialize(options.coordinator_address, options.num_processes, options.process_id)
    keep_compiled_programs(not options.no_compilation_cache)
    try:
        summary = experiment.run_experiment(
            config,
            folder,
            data_dir=options.data_dir,
            manual_dir=options.manual_dir,
            log=_log,
            import_seconds=import_seconds,
            with_report=not options.no_report,
        )
    except loop.Stopped as stopped:
        if processes.is_first():
            print(f"{stopped}; the same command goes on from there", file=sys.stderr)
        return 128 + stopped.signum
    except (UserError, loop.Diverged, processes.Lost) as error:
        if processes.is_first() or not isinstance(error, processes.Told | loop.Diverged):
            print(f"error: {printable(str(error))}", file=sys.stderr)
        code = 2 if isinstance(error, UserError) else 1
        processes.leave(code)
        return code
    except Exception:
        if processes.several():
            traceback.print_exc()
            processes.leave(1)
        raise
    told = workdir.SUMMARY if options.no_report else f"{workdir.REPORT}/index.html"
    if processes.is_first():
        _log(f"{_result(summary)}; see {folder / told}")
    return 0


def _rank(options: Options) -> int:
    """Which process this is, before it has joined the others."""
    if options.num_processes == 1:
        return 0
    if options.process_id is not None:
        return options.process_id
    names = ("SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "JOB_COMPLETION_INDEX", "TPU_WORKER_ID")
    found = [number for name in names if (number := os.environ.get(name, "")).isdecimal()]
    return int(found[0] if found else 0)


def _result(summary: dict[str, Any]) -> str:
    seeds = len(seeds_of(summary["test_accuracy"]))
    return (
        f"{summary['dataset']}: test accuracy {percent(summary['test_accuracy'])}"
        f"{f' ({seeds} seeds)' if seeds > 1 else ''}, "
        f"test loss {mean_of(summary['test_loss']):.4f}, {summary['seconds']['total']:.0f} s"
    )


def _log(line: str) -> None:
    tqdm.write(printable(line))
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
