"""The command `python -m mnist_flax.list`: all runs below a folder, the best first."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from mnist_flax.core.config import UserError
from mnist_flax.engine import cli
from mnist_flax.engine.options import parse_options


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Lists all runs below a folder, the best first.

    Example: mnist-flax list runs/
    """

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """Folder of workdirs, at any depth."""
    json: bool = False
    """Print everything as JSON."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""

    def action(argv: Sequence[str]) -> int:
        from mnist_flax.evaluate.leaderboard import describe_rows, read_leaderboard

        options = parse_options(Options, cli.program_name("list"), argv)
        if not options.folder.is_dir():
            raise UserError(f"{options.folder} is not a folder")
        rows = read_leaderboard(options.folder, cli.print_status)
        if options.json:
            print(json.dumps(rows, indent=2))
        elif rows:
            print("\n".join(map(cli.escape_unprintable, describe_rows(rows))))
        else:
            cli.print_status(f"there is no run below {options.folder}")
        return 0

    return cli.run_command(action, argv)


if __name__ == "__main__":
    raise SystemExit(main())
