"""What a person sees of a run: how it begins, a line for each epoch, progress, the result.

Where the output is not a terminal, it is plain lines without colors, boxes or live lines.
"""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_flax.core.config import Config
from mnist_flax.engine import cli, distributed
from mnist_flax.engine.environment import Environment, describe_machine
from mnist_flax.engine.recipe import describe_recipe
from mnist_flax.engine.seed_stats import format_percent, mean_of, per_seed
from mnist_flax.engine.workdir import MetricsRow, Summary

if TYPE_CHECKING:
    from rich.console import Console

    from mnist_flax.core.model import Params


@functools.cache
def console() -> "Console":
    """The output of all lines of a run, which keeps them apart from the live line."""
    from rich.console import Console

    class QuietConsole(Console):
        def on_broken_pipe(self) -> None:
            try:
                super().on_broken_pipe()
            except SystemExit:  # with 1; `cli` lists the codes of all commands
                raise SystemExit(141) from None

    # A notebook sets FORCE_COLOR, which rich takes for a terminal.
    is_terminal = sys.stdout.isatty()
    return QuietConsole(
        force_jupyter=False,
        force_terminal=is_terminal,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=True,
    )


def print_line(line: str) -> None:
    """Prints a line, on the primary process."""
    if distributed.is_primary():
        console().print(cli.escape_unprintable(line))
        sys.stdout.flush()


def describe_start(
    config: Config, folder: Path, params: "Params", environment: Environment, step: int
) -> list[str]:
    """What is trained, on what, where, from which step; last the names of the columns."""
    import jax

    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(params)) // config.num_seeds
    rows = {
        "recipe": describe_recipe(config),
        "dataset": f"{config.dataset}, {config.train_examples:,} training images",
        "network": f"{num_parameters:,} parameters",
        "device": describe_machine(environment),
        "folder": str(_shorten(folder)),
    }
    if config.num_seeds > 1:
        seeds = f"seeds {config.seed} to {config.seed + config.num_seeds - 1}"
        rows["network"] = f"{config.num_seeds} networks ({seeds}) of {rows['network']}"
        rows["epochs"] = "each line shows the means of the networks"
    if step:
        rows["start"] = f"resuming from step {step:,} of {config.total_steps:,}"
    lines = [f"{name:<9}{value}" for name, value in rows.items()]
    return [*lines, "", _table_header(config)] if step < config.total_steps else lines


def _table_header(config: Config) -> str:
    """The names above the columns of `describe_row`."""
    width = len(f"epoch {config.epochs}/{config.epochs}")
    return "  ".join([" " * width, *_columns(config)])


def describe_row(row: MetricsRow, config: Config) -> str:
    """A row of metrics as a line of at most 80 columns, with the remaining time.

    With several seeds each value is their mean.
    """
    epoch = f"epoch {row['epoch']:>{len(str(config.epochs))}}/{config.epochs}"
    images = (config.epochs - row["epoch"]) * config.train_examples * config.num_seeds
    cells = [
        f"{mean_of(row['train_loss']):.4f}",
        f"{mean_of(row['test_loss']):.4f}",
        f"{mean_of(row['test_accuracy']):.2%}",
        f"{row['images_per_second']:,.0f}",
        _format_duration(images / row["images_per_second"]) if images else "",
    ]
    if "validation_loss" in row and "validation_accuracy" in row:
        cells[1:1] = [
            f"{mean_of(row['validation_loss']):.4f}",
            f"{mean_of(row['validation_accuracy']):.2%}",
        ]
    columns = zip(cells, _columns(config), strict=True)
    return "  ".join([epoch, *(f"{cell:>{len(name)}}" for cell, name in columns)]).rstrip()


def _columns(config: Config) -> list[str]:
    """The names of the columns, padded to their widths."""
    held_out = ["val loss", "val acc"] if config.validation_fraction else []
    return ["train loss", *held_out, "test loss", "test acc", "images/s", " left"]


def _format_duration(seconds: float) -> str:
    """A duration in at most 5 characters: `0:45`, `12:30` or `2.5 h`."""
    if seconds >= 3600:
        return f"{seconds / 3600:.{0 if seconds >= 360_000 else 1}f} h"
    return f"{round(seconds) // 60}:{round(seconds) % 60:02}"


@contextlib.contextmanager
def show_progress(config: Config, step: int) -> Iterator[Callable[[int], object]]:
    """Shows a live line on the primary process's terminal; yields how to add steps to it."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("step {task.completed:,} of {task.total:,}"),
        BarColumn(bar_width=None),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
    )
    hidden = not console().is_terminal or not distributed.is_primary()
    with Progress(*columns, console=console(), transient=True, disable=hidden) as progress:
        task = progress.add_task("", total=config.total_steps, completed=step)
        yield functools.partial(progress.advance, task)


def _shorten(path: Path) -> Path:
    """The path as seen from the current folder, if it is in there."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def describe_result(summary: Summary) -> str:
    """The result of a run in one line."""
    accuracy, seeds = summary["test_accuracy"], len(per_seed(summary["test_accuracy"]))
    several = f" (mean of {seeds} networks)" if seeds > 1 else ""
    return (
        f"{summary['dataset']}: test accuracy {format_percent(accuracy)}{several}, "
        f"test loss {mean_of(summary['test_loss']):.4f}, {summary['seconds']['total']:.0f} s"
    )


def print_result(summary: Summary, path: Path) -> None:
    """Prints the result of a run and where to see more: in a box on a terminal, else in a line."""
    path = _shorten(path)
    if not console().is_terminal:
        print_line(f"{describe_result(summary)}; see {path}")
        return
    from rich.panel import Panel

    accuracy, seeds = summary["test_accuracy"], len(per_seed(summary["test_accuracy"]))
    seconds = summary["seconds"]
    rows = {
        "test accuracy": format_percent(accuracy) + f", mean of {seeds} networks" * (seeds > 1),
        "test loss": f"{mean_of(summary['test_loss']):.4f}",
        "time": f"{seconds['total']:,.0f} s, {seconds['train']:,.0f} s of it in training",
        "see": cli.escape_unprintable(str(path)),
    }
    text = "\n".join(f"{name:<15}{value}" for name, value in rows.items())
    if distributed.is_primary():
        console().print(Panel.fit(text, title=summary["dataset"]), soft_wrap=False)


def model_summary(config: Config) -> str:
    """A table of the layers with their output shapes and parameter counts."""
    import jax
    import jax.numpy as jnp

    from mnist_flax.core.model import CNN

    table = CNN(config.channels).tabulate(
        jax.random.key(0),
        jnp.zeros((1, config.input_size, config.input_size, 1)),
        console_kwargs={"width": 100, "force_terminal": False},
        column_kwargs={"no_wrap": True},
    )
    return "\n".join(line.rstrip() for line in table.strip().splitlines())
