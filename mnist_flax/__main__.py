"""The command `mnist-flax`, also `python -m mnist_flax`: hands over to the command it is given.

Of the commands' modules it imports that one alone.
"""

import ast
import difflib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

import mnist_flax
from mnist_flax.command import run_command
from mnist_flax.config import UserError

COMMANDS = ("run", "evaluate", "compare", "predict", "export", "demo")


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
        print(f"mnist-flax {mnist_flax.__version__}")
    elif name in ("--help", "-h"):
        print("usage: mnist-flax COMMAND ...\n")
        for command in COMMANDS:
            print(f"  {command:<8}  {purpose(command)}")
        print("\n`mnist-flax COMMAND --help` lists a command's options; `--version` tells ours.")
    else:
        similar = difflib.get_close_matches(name, COMMANDS, n=1)
        meant = f" (perhaps you meant {similar[0]}?)" if similar else ""
        raise UserError(f"there is no command {name!r}{meant}; see mnist-flax --help")
    return 0


def purpose(command: str) -> str:
    """What a command is for, in the first line of its help, read without importing it."""
    source = Path(__file__).with_name(f"{command}.py").read_text(encoding="utf-8")
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    options = next(node for node in classes if node.name == "Options")
    return (ast.get_docstring(options) or "").partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main())
