"""What all commands share: messages, exit codes, how JAX starts.

Exit codes: 0 done; 2 a mistake of the user, reported in one line; 143 ended by SIGTERM and 130 by
Ctrl-C; 141 the reader of the output is gone; 1 anything else. Imports nothing heavy.
"""

import contextlib
import importlib
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from mnist_flax.core.config import ExpectedError, UserError
from mnist_flax.engine import compilation_cache, distributed

SHOW_CURSOR = b"\x1b[?25h"  # which a progress bar hides


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
    sys.stdout = sys.stdout or io.StringIO()  # None if the shell has closed it
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
            if os.isatty(1):
                os.write(1, SHOW_CURSOR)
            os.write(2, f"{message}\n".encode())
        os._exit(128 + signum)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)


def print_status(line: str) -> None:
    """Prints to stderr what is not a result."""
    print(line, file=sys.stderr)


def escape_unprintable(text: str) -> str:
    """The text in one line, with control characters and invalid UTF-8 as escapes."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def import_extra(name: str, extra: str) -> ModuleType:
    """A package that an extra installs; raises a UserError if it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        command = f"pip install -c constraints.txt -e '.[{extra}]'"
        raise UserError(f"{name} is missing; in your clone, run {command}") from error


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
