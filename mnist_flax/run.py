"""The command `python -m mnist_flax.run`: what was asked for, and how it ended.

Exit codes: 0 done; 2 the user's mistake, told in one line; 143 stopped by SIGTERM and 130
by Ctrl-C, after saving; 1 anything else. Imports nothing heavy before it is needed.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import io
import os
import platform
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tqdm import tqdm

from mnist_flax import workdir
from mnist_flax.config import PRESETS, Config, UserError

PROG = "python -m mnist_flax.run"

OptionalPath = Annotated[Path | None, tyro.conf.arg(metavar="PATH")]


@dataclasses.dataclass(frozen=True)
class Options:
    """Trains a convolutional network on handwritten digits.

    The same command goes on with a run that was stopped, and leaves a finished one alone.
    """

    config: tyro.conf.OmitArgPrefixes[Config]

    workdir: OptionalPath = None
    """Folder for all that the run leaves behind. Required."""

    preset: Literal["default", "quick", "reference"] = "default"
    """Where the config starts from; other flags override it. `quick` is one epoch,
    `reference` the Keras tutorial."""

    data_dir: OptionalPath = None
    """TFDS's data folder. Default: TFDS_DATA_DIR, else TFDS's own."""

    manual_dir: OptionalPath = None
    """Read-only folder with the four original .gz files, for machines without a network.
    Default: MNIST_FLAX_MANUAL_DIR."""

    no_compilation_cache: bool = False
    """Do not keep compiled programs for the next run. Without this flag they go to
    JAX_COMPILATION_CACHE_DIR or ~/.cache/mnist_flax."""

    print_model: bool = False
    """Print the table of layers, and do nothing else."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        options = parse(sys.argv[1:] if argv is None else argv)
        return _print_model(options) if options.print_model else _run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130


def parse(argv: Sequence[str]) -> Options:
    """The options that a command line asks for.

    Raises:
      UserError: it is not a valid one.
      SystemExit: with code 0, after printing the help.
    """
    preset_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    preset_parser.add_argument("--preset", nargs="?", default="default")
    preset = preset_parser.parse_known_args(argv)[0].preset
    base = Options(
        config=PRESETS.get(preset, Config()),
        manual_dir=_path_from_environment("MNIST_FLAX_MANUAL_DIR"),
    )
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                Options,
                prog=PROG,
                args=list(argv),
                default=base,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as end:
        if not end.code:
            raise
        raise UserError(_one_line(complaint.getvalue())) from end


def _one_line(complaint: str) -> str:
    """The gist of tyro's boxed message: its first paragraph, and what it suggests."""
    paragraphs = [""]
    for line in complaint.splitlines():
        text = line.strip(" │")
        if text and set(text) <= set("─-"):
            paragraphs.append("")
        elif not text.startswith(("╭", "╰")):
            paragraphs[-1] = f"{paragraphs[-1]} {text}".strip()
    if "╭" not in complaint:  # drawn without a frame, the title is a paragraph
        del paragraphs[0]
    gist = paragraphs[0].rstrip(".")
    suggestion = re.search(r"Perhaps you meant: (--\S+)", " ".join(paragraphs))
    if suggestion:
        gist += f" (perhaps you meant {suggestion[1]}?)"
    return f"{gist}; see {PROG} --help"


def _path_from_environment(name: str) -> Path | None:
    return Path(os.environ[name]) if os.environ.get(name) else None


def _print_model(options: Options) -> int:
    from mnist_flax import model

    print(model.layer_table(options.config.input_size))
    return 0


def _run(options: Options) -> int:
    if options.workdir is None:
        raise UserError("--workdir is missing: the folder for all that the run leaves behind")
    folder = options.workdir.expanduser().absolute()
    config = workdir.settle_config(folder, options.config)
    summary = workdir.read_json(folder / workdir.SUMMARY)
    if summary is not None:
        _log(f"{folder} holds this run, finished already: {_result(summary)}")
        return 0
    began = time.perf_counter()
    from mnist_flax import experiment

    if not options.no_compilation_cache:
        _keep_compiled_programs()
    try:
        summary = experiment.run_experiment(
            config,
            folder,
            data_dir=options.data_dir,
            manual_dir=options.manual_dir,
            log=_log,
            import_seconds=time.perf_counter() - began,
        )
    except experiment.Stopped as stopped:
        print(f"{stopped}; the same command goes on from there", file=sys.stderr)
        return 128 + stopped.signum
    except experiment.Diverged as diverged:
        print(f"error: {diverged}", file=sys.stderr)
        return 1
    _log(f"{_result(summary)}; see {folder / workdir.REPORT / 'index.html'}")
    return 0


def _keep_compiled_programs() -> None:
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        folder = cache / "mnist_flax" / _processor_fingerprint()
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _processor_fingerprint() -> str:
    """Stands for this kind of processor; JAX's key does not, yet a home may be shared."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else [platform.processor()]
    features = {line for line in lines if line.startswith(("flags", "Features", "model name"))}
    text = " ".join([platform.machine(), *sorted(features)])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _result(summary: dict[str, Any]) -> str:
    return (
        f"{summary['dataset']}: test accuracy {summary['test_accuracy']:.2%}, "
        f"test loss {summary['test_loss']:.4f}, {summary['seconds']['total']:.0f} s"
    )


def _log(line: str) -> None:
    tqdm.write(line)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
