"""The command `mnist-flax`, also `python -m mnist_flax`: dispatches to the other commands."""

import difflib
import importlib
import importlib.metadata
import sys
from collections.abc import Sequence

from mnist_flax.core.config import UserError
from mnist_flax.engine.cli import run_command

COMMANDS = ("run", "evaluate", "compare", "list", "predict", "export", "demo")


def main() -> int:
    """Runs the command that the process's arguments name; returns its exit code."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in COMMANDS:
        del sys.argv[1]
        return importlib.import_module(f"mnist_flax.{name}").main()
    return run_command(_introduce, [name])


def _introduce(argv: Sequence[str]) -> int:
    (name,) = argv
    if name == "--version":
        print(f"mnist-flax {importlib.metadata.version('mnist-flax')}")
    elif name in ("--help", "-h"):
        print("usage: mnist-flax COMMAND ...\n")
        for command in COMMANDS:
            options = importlib.import_module(f"mnist_flax.{command}").Options
            print(f"  {command:<8}  {options.__doc__.partition(chr(10))[0]}")
        print("\n`mnist-flax COMMAND --help` lists the options; `--version` prints the version.")
    else:
        similar = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f" (perhaps you meant {similar[0]}?)" if similar else ""
        raise UserError(f"there is no command {name!r}{hint}; see mnist-flax --help")
    return 0


if __name__ == "__main__":
    sys.exit(main())
