"""What all commands share: how they read their options, and how they end.

Exit codes: 0 done; 2 the user's mistake, told in one line; 143 ended by SIGTERM and 130 by
Ctrl-C; 141 nobody reads the output any more; 1 anything else. Imports nothing heavy.
"""

import argparse
import contextlib
import dataclasses
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from mnist_flax.config import UserError
from mnist_flax.determinism import processor_fingerprint

Options = TypeVar("Options")
Value = TypeVar("Value")

OptionalPath = Annotated[Path | None, tyro.conf.arg(metavar="PATH")]


def called(name: str) -> str:
    """A command as whoever started this process spells it."""
    script = Path(sys.argv[0]).stem == "mnist-flax"
    return f"mnist-flax {name}" if script else f"python -m mnist_flax.{name}"


def run_command(
    action: Callable[[Sequence[str]], int],
    argv: Sequence[str] | None,
    interrupted: str = "interrupted",
) -> int:
    """Runs a command's action on its arguments; returns its exit code.

    The user's mistakes are told. With `argv` None the process is the command's own: the
    arguments are its, and SIGTERM and Ctrl-C end it at once, which loses no whole file.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does
    if argv is None:
        argv = sys.argv[1:]
        _end_at_signals(interrupted)
    try:
        code = action(argv)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read the output, like `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except UserError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130


def _end_at_signals(message: str) -> None:
    """Not by an exception: inside a library it may be dropped, or crash an import."""

    def end(signum: int, _: Any) -> None:
        with contextlib.suppress(OSError):
            os.write(2, f"{message}\n".encode())
        os._exit(128 + signum)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


def parse(
    kind: type[Options], prog: str, argv: Sequence[str], default: Options | None = None
) -> Options:
    """A dataclass of options, as a command line asks for.

    Raises:
      UserError: it is not a valid one.
      SystemExit: with code 0, after printing the help.
    """
    start: Any = tyro.MISSING_NONPROP if default is None else default
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            options = tyro.cli(
                kind,
                prog=prog,
                args=list(argv),
                default=start,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as end:
        if not end.code:
            raise
        raise UserError(_one_line(complaint.getvalue(), prog)) from end
    return _usable_paths(options)


def required(value: Value | None, missing: str) -> Value:
    """An option that has no default.

    Raises:
      UserError: it was not given.
    """
    if value is None:
        raise UserError(missing)
    return value


def trained_workdir(given: Path | None) -> Path:
    """The workdir of a command that asks a trained run.

    Raises:
      UserError: it was not given.
    """
    return required(given, "--workdir is missing: the folder of a trained run")


def say(line: str) -> None:
    """Tells what is not the result."""
    print(line, file=sys.stderr)


def printable(text: str) -> str:
    """In one line, with what would steer the terminal, or is not UTF-8, spelled out."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def option_before_parsing(argv: Sequence[str], name: str) -> str | None:
    """The value of one option, for what the defaults of the others depend on."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(name, nargs="?", dest="value")
    return parser.parse_known_args(argv)[0].value


def path_from_environment(name: str) -> Path | None:
    """The path in an environment variable; None where it is unset or empty."""
    return Path(os.environ[name]) if os.environ.get(name) else None


def keep_compiled_programs(keep: bool = True) -> None:
    """Lets JAX keep what it compiles, where no other place is set, under `~/.cache`; or not."""
    import jax

    jax.config.update("jax_enable_compilation_cache", keep)
    if not keep:
        return
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        # JAX's key knows nothing of the processor, yet a home may be shared.
        folder = cache / "mnist_flax" / processor_fingerprint()
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _usable_paths(options: Any) -> Any:
    """The options with `~` and `~user` in their paths replaced by those users' homes.

    Raises:
      UserError: there is no such user, or a path is too long or may not be looked at.
    """
    values = {x.name: getattr(options, x.name) for x in dataclasses.fields(options)}
    try:
        paths = {name: v.expanduser() for name, v in values.items() if isinstance(v, Path)}
        for path in paths.values():
            path.exists()  # raises what all who use it would else have to expect
    except RuntimeError as error:
        raise UserError("a path begins with ~, but there is no such user, or no home") from error
    except OSError as error:
        raise UserError(f"cannot use {error.filename}: {error.strerror}") from error
    return dataclasses.replace(options, **paths)


def _one_line(complaint: str, prog: str) -> str:
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
    return f"{gist}; see {prog} --help"
