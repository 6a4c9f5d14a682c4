"""What all commands share: options, messages and exit codes.

Exit codes: 0 done; 2 a mistake of the user, reported in one line; 143 ended by SIGTERM and 130 by
Ctrl-C; 141 the reader of the output is gone; 1 anything else. Imports nothing heavy.
"""

import argparse
import contextlib
import dataclasses
import difflib
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from mnist_flax.core.config import ExpectedError, UserError
from mnist_flax.engine import compilation_cache, distributed

Options = TypeVar("Options")
Value = TypeVar("Value")

OptionalPath = Annotated[Path | None, tyro.conf.arg(metavar="PATH")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of a command that uses a trained run."""

    workdir: OptionalPath = None
    """The run's workdir. Required."""
    checkpoint: str = "latest"
    """Which checkpoint: `latest`, `best` (by the validation accuracy) or a step."""
    seed_index: int | None = None
    """Which of several networks. Default: all of them, by their mean probability."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The options of a command that reads a dataset."""

    data_dir: OptionalPath = None
    """TFDS's data folder. Default: TFDS_DATA_DIR, else TFDS's own."""
    manual_dir: OptionalPath = dataclasses.field(
        default_factory=lambda: Path(path) if (path := os.getenv("MNIST_FLAX_MANUAL_DIR")) else None
    )
    """Read-only folder with the four original .gz files, for machines without a network.
    Default: MNIST_FLAX_MANUAL_DIR."""


def program_name(command: str) -> str:
    """A command as the user who started this process spells it."""
    is_script = Path(sys.argv[0]).stem == "mnist-flax"
    return f"mnist-flax {command}" if is_script else f"python -m mnist_flax.{command}"


def run_command(
    action: Callable[[Sequence[str]], int],
    argv: Sequence[str] | None,
    interrupted: str = "interrupted",
) -> int:
    """Runs the action of a command on its arguments; returns the exit code.

    Expected errors are printed in one line. With `argv` None the command takes the process's
    arguments, and SIGTERM and Ctrl-C end it at once, which is safe because files are atomic.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does
    if argv is None:
        argv = sys.argv[1:]
        _exit_on_signals(interrupted)
    try:
        code = action(argv)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader, `head` for example, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except ExpectedError as error:
        if distributed.is_primary() or not error.raised_everywhere:
            print(f"{error.prefix}{escape_unprintable(str(error))}", file=sys.stderr)
        return error.exit_code


def _exit_on_signals(message: str) -> None:
    """Exits in the handler: an exception could be lost in a library, or break an import."""

    def handle(signum: int, _: object) -> None:
        with contextlib.suppress(OSError):
            os.write(2, f"{message}\n".encode())
        os._exit(128 + signum)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)


def parse_options(
    kind: type[Options], prog: str, argv: Sequence[str], default: Options | None = None
) -> Options:
    """A dataclass of options from a command line.

    Raises a UserError if it is not valid, or SystemExit with code 0 after printing the help.
    """
    start: Any = tyro.MISSING_NONPROP if default is None else default
    message = io.StringIO()
    config = (tyro.conf.FlagCreatePairsOff,)
    try:
        with contextlib.redirect_stderr(message):
            options = tyro.cli(kind, prog=prog, args=list(argv), default=start, config=config)
    except SystemExit as error:
        if not error.code:
            raise
        raise UserError(_summarize_message(message.getvalue(), prog)) from error
    return _expand_paths(options)


def require_option(value: Value | None, message: str) -> Value:
    """An option that has no default; raises a UserError with the message if it is missing."""
    if value is None:
        raise UserError(message)
    return value


def require_workdir(options: RunOptions) -> Path:
    """The absolute path of the workdir; raises a UserError if --workdir is missing."""
    message = "--workdir is missing: the folder of a trained run"
    return require_option(options.workdir, message).absolute()


def print_status(line: str) -> None:
    """Prints to stderr what is not a result."""
    print(line, file=sys.stderr)


def escape_unprintable(text: str) -> str:
    """The text in one line, with control characters and invalid UTF-8 as escapes."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def peek_option(argv: Sequence[str], name: str) -> str | None:
    """The value of one option, on which the defaults of others depend."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(name, nargs="?", dest="value")
    return parser.parse_known_args(argv)[0].value


def initialize_jax(cache: bool = True) -> None:
    """Starts JAX, which keeps compiled programs if `cache`.

    Raises a UserError if JAX has no device. Several processes must have joined before.
    """
    import jax

    jax.config.update("jax_enable_compilation_cache", cache)
    if cache:
        compilation_cache.enable()
    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:
        platforms = os.environ.get("JAX_PLATFORMS", "")
        raise UserError(
            f"JAX has no device here for JAX_PLATFORMS={platforms!r}; unset it to use what there is"
        ) from error
    if jax.config.values["jax_disable_jit"]:
        print_status("note: JAX_DISABLE_JIT is set, so nothing is compiled, which is slow")


def _expand_paths(options: Any) -> Any:
    """The options with `~` in paths replaced; raises a UserError if a path cannot be used."""
    try:
        paths = {name: x.expanduser() for name, x in vars(options).items() if isinstance(x, Path)}
        for path in paths.values():
            path.exists()  # raises for a path that is too long or forbidden
    except RuntimeError as error:
        raise UserError("a path begins with ~, but there is no such user or home") from error
    except OSError as error:
        raise UserError(f"cannot use {error.filename}: {error.strerror}") from error
    return dataclasses.replace(options, **paths)


def _summarize_message(message: str, prog: str) -> str:
    """The first paragraph of tyro's framed message, and its suggestion, in one line."""
    paragraphs = [""]
    for line in message.splitlines():
        text = line.strip(" │")
        if text and set(text) <= set("─-"):
            paragraphs.append("")
        elif not text.startswith(("╭", "╰")):
            paragraphs[-1] = f"{paragraphs[-1]} {text}".strip()
    if "╭" not in message:  # without a frame, the title is a paragraph
        del paragraphs[0]
    summary = paragraphs[0].rstrip(".")
    title = "Perhaps you meant:"
    suggestions = re.findall(r"--[\w-]+", " ".join(x for x in paragraphs if x.startswith(title)))
    if suggestions:  # tyro orders them alphabetically
        unknown = "".join(re.findall(r"--\S+", summary)[:1])
        best = difflib.get_close_matches(unknown, suggestions, n=1, cutoff=0)[0]
        summary += f" (perhaps you meant {best}?)"
    return f"{summary}; see {prog} --help"
