"""A line for each of many runs, from the files in their workdirs. Imports nothing heavy."""

import os
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, TypedDict

import psutil

from mnist_flax.core.config import DATASET_SIZES, Config, UserError
from mnist_flax.engine import workdir
from mnist_flax.engine.recipe import describe_recipe
from mnist_flax.engine.seed_stats import (
    SeedValue,
    format_percent,
    mean_of,
    per_seed,
    wilson_interval,
)
from mnist_flax.evaluate.provenance import saved_at

State = Literal["finished", "running", "unfinished"]


class RunRow(TypedDict):
    """One run; what it has not reached yet is null."""

    name: str
    workdir: str
    recipe: str
    dataset: str
    seeds: int
    epoch: float
    """The last evaluated one."""
    epochs: int
    test_accuracy: SeedValue | None
    interval95: list[float] | None
    """Of the accuracy: over seeds, or for a single one over test images."""
    test_loss: SeedValue | None
    parameters: int | None
    seconds: float | None
    saved: str | None
    """When its last checkpoint was saved, in UTC."""
    state: State


def read_leaderboard(folder: Path, log: Callable[[str], None]) -> list[RunRow]:
    """All runs below a folder, the best first; `log` gets a line for each that cannot be read."""
    rows: list[RunRow] = []
    for path in find_workdirs(folder):
        try:
            if config := workdir.read_config(path):
                name = path.relative_to(folder).as_posix()
                rows.append(read_row(path, config, path.name if name == "." else name))
        except UserError as error:
            log(f"note: skipped: {error}")
    return sort_rows(rows)


def find_workdirs(folder: Path) -> Iterator[Path]:
    """The folders with a config; neither folders inside of these nor links are searched."""
    for parent, folders, files in os.walk(folder):
        folders.sort()
        if workdir.CONFIG in files:
            folders.clear()
            yield Path(parent)


def read_row(folder: Path, config: Config, name: str) -> RunRow:
    """The row of one run. Raises a UserError if its files are damaged."""
    summary, metrics = workdir.read_summary(folder), workdir.read_metrics(folder)
    last = metrics[-1] if metrics else None
    result = summary or last
    accuracy = result["test_accuracy"] if result else None
    saved = saved_at(folder)
    return {
        "name": name,
        "workdir": str(folder),
        "recipe": describe_recipe(config),
        "dataset": config.dataset,
        "seeds": config.num_seeds,
        "epoch": summary["epochs"] if summary else last["epoch"] if last else 0,
        "epochs": config.epochs,
        "test_accuracy": accuracy,
        "interval95": accuracy_interval(accuracy, config.dataset),
        "test_loss": result["test_loss"] if result else None,
        "parameters": summary["parameters"] if summary else None,
        "seconds": summary["seconds"]["total"] if summary else None,
        "saved": saved.isoformat() if saved else None,
        "state": "finished" if summary else "running" if is_running(folder) else "unfinished",
    }


def is_running(folder: Path) -> bool:
    """Whether a process works in a folder; on another machine, whether it left its lock there."""
    lock = folder / workdir.LOCK
    try:
        holder = lock.read_text(encoding="utf-8")
        match = re.fullmatch(r"process (\d+) on (\S+)", holder.strip())
        if not match or match[2] != socket.gethostname():
            return bool(match)
        # A later process may have the same number, as after a restart.
        return psutil.Process(int(match[1])).create_time() <= lock.stat().st_mtime + 1
    except (OSError, ValueError, psutil.Error):
        return False


def accuracy_interval(accuracy: SeedValue | None, dataset: str) -> list[float] | None:
    """The 95 % interval over seeds, or Wilson's over the test images for a single one."""
    if accuracy is None:
        return None
    if isinstance(accuracy, dict):
        return accuracy["interval95"]
    count = DATASET_SIZES["mnist" if dataset == "auto" else dataset][1]
    return wilson_interval(round(accuracy * count), count)


def sort_rows(rows: Sequence[RunRow]) -> list[RunRow]:
    """By dataset; then the most accurate first, and last those without a result."""

    def key(row: RunRow) -> tuple[str, float]:
        accuracy = row["test_accuracy"]
        return row["dataset"], 1.0 if accuracy is None else -mean_of(accuracy)

    return sorted(rows, key=key)


def describe_accuracy(row: RunRow) -> str:
    """`99.43% (99.26 to 99.56)`, or with several seeds `99.40% ± 0.06`."""
    accuracy, interval = row["test_accuracy"], row["interval95"]
    if accuracy is None:
        return "-"
    if len(per_seed(accuracy)) > 1 or interval is None:
        return format_percent(accuracy)
    return f"{format_percent(accuracy)} ({100 * interval[0]:.2f} to {100 * interval[1]:.2f})"


def describe_progress(row: RunRow) -> str:
    """When a finished run was saved; else its state."""
    if row["state"] != "finished":
        return row["state"]
    return (row["saved"] or "finished")[:10]


def describe_rows(rows: Sequence[RunRow]) -> list[str]:
    """The rows as a table for a terminal, with aligned columns."""
    header = ["run", "dataset", "accuracy", "loss", "epochs", "parameters", "date", "recipe"]
    table = [header]
    for row in rows:
        loss, parameters = row["test_loss"], row["parameters"]
        epochs = f"{row['epochs']}"
        cells = [
            row["name"],
            row["dataset"],
            describe_accuracy(row),
            "-" if loss is None else f"{mean_of(loss):.4f}",
            epochs if row["state"] == "finished" else f"{row['epoch']:g}/{epochs}",
            "-" if parameters is None else f"{parameters:,}",
            describe_progress(row),
            row["recipe"],
        ]
        table.append(cells)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    right = {"loss", "epochs", "parameters"}
    return [
        "  ".join(
            cell.rjust(width) if name in right else cell.ljust(width)
            for cell, width, name in zip(cells, widths, header, strict=True)
        ).rstrip()
        for cells in table
    ]
