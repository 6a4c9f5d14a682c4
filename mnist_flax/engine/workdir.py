"""The folder of a run: its files, its lock, and what its JSON files hold.

Of several processes only the primary one touches it, by the decorated functions.
"""

import contextlib
import dataclasses
import errno
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from filelock import FileLock, Timeout

from mnist_flax.core.config import Config, UserError, flag_name
from mnist_flax.engine import files
from mnist_flax.engine.distributed import is_primary, run_on_primary
from mnist_flax.engine.environment import Environment
from mnist_flax.engine.seed_stats import SeedValue, per_seed

CONFIG = "config.json"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
REPORT = "report"
LOCK = ".lock"
CHECKPOINTED = ".checkpointed"  # exists once a first checkpoint is complete


class MetricsRow(TypedDict):
    """One line of `metrics.jsonl`: an evaluated epoch."""

    step: int
    epoch: int
    dataset: str
    learning_rate: float
    train_loss: SeedValue
    test_loss: SeedValue
    test_accuracy: SeedValue
    validation_loss: NotRequired[SeedValue]
    validation_accuracy: NotRequired[SeedValue]
    seconds: float
    images_per_second: float


class Summary(TypedDict):
    """The content of `summary.json`: the result of a finished run."""

    dataset: str
    parameters: int
    """Of each network."""
    test_examples: int
    test_accuracy: SeedValue
    test_loss: SeedValue
    validation_accuracy: NotRequired[SeedValue]
    validation_loss: NotRequired[SeedValue]
    epochs: int
    steps: int
    params_sha256: str
    seconds: dict[str, float]
    """Duration of each phase, and the `total`."""
    environment: Environment


def read_config(folder: Path) -> Config | None:
    """The config of the run in a workdir; None if there is no run.

    Raises a UserError if the file is damaged, or from another version.
    """
    stored = files.read_json(folder / CONFIG, dict[str, Any])
    try:
        return None if stored is None else from_dict(stored)
    except UserError as error:
        message = f"{folder / CONFIG} is {error}; correct it, or use another --workdir"
        raise UserError(message) from error


def from_dict(values: dict[str, Any]) -> Config:
    """The config whose `dataclasses.asdict` is `values`.

    Raises a UserError if a field is missing, unknown, of another type or out of range.
    """
    unexpected = {field.name for field in dataclasses.fields(Config)} ^ set(values)
    if unexpected:
        names = ", ".join(sorted(unexpected))
        raise UserError(f"not a config of this version (missing or unknown: {names})")
    return Config(**values)


def diff_configs(old: Config, new: Config) -> list[str]:
    """One text for each field that differs, with both values."""
    return [
        f"{flag_name(name)} was {value}, now {getattr(new, name)}"
        for name, value in dataclasses.asdict(old).items()
        if getattr(new, name) != value
    ]


def resolve_config(
    folder: Path, config: Config, fallback: Callable[[], Config] | None = None
) -> Config:
    """The config to run with in a workdir; writes nothing.

    If a run exists there, the dataset `auto` means the one that it chose; if that is scikit-learn's
    digits, the config is `fallback()`, where that is given. Raises a UserError if
    the run there has another config, there are such files but no config, or the folder cannot be
    read.
    """
    stored = read_config(folder)
    if stored is None:
        for name in (METRICS, SUMMARY, CHECKPOINTS, TENSORBOARD, REPORT):
            if (folder / name).exists():  # of another program, whose files are not to be touched
                raise UserError(f"{folder} holds {name}, but no {CONFIG}; use another --workdir")
        return config
    if config.dataset == "auto":
        config = dataclasses.replace(config, dataset=stored.dataset)
        if fallback and stored.dataset == "digits" and config != stored:
            config = fallback()
    if differences := "; ".join(diff_configs(stored, config)):
        hint = "use that config, or another --workdir"
        raise UserError(f"{folder} holds a run with another config ({differences}); {hint}")
    return config


@contextlib.contextmanager
def lock_workdir(folder: Path) -> Iterator[None]:
    """Keeps other runs out of a workdir, which is created if it is missing.

    The system releases the lock of a process that dies. A folder that stayed empty is removed.
    Raises a UserError if another process holds the lock, or the folder cannot be used.
    """
    lock = FileLock(folder / LOCK, blocking=False, fallback_to_soft=False)
    _acquire(folder, lock)
    try:
        yield
    finally:
        if is_primary():
            with contextlib.suppress(OSError):
                (folder / LOCK).unlink()
                folder.rmdir()
            with contextlib.suppress(OSError):  # the system releases it when this process ends
                lock.release()


@run_on_primary
def _acquire(folder: Path, lock: FileLock) -> None:
    try:
        files.refuse_path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        refuse_links(folder)
        lock.acquire()
        (folder / LOCK).write_text(f"process {os.getpid()} on {socket.gethostname()}")
    except Timeout as error:
        holder = "another process"
        with contextlib.suppress(OSError):  # it may have ended by now
            holder = (folder / LOCK).read_text() or holder
        raise UserError(f"{folder} is in use by {holder}; wait for it, or stop it") from error
    except OSError as error:
        reason = "its file system has no locks" if error.errno == errno.ENOSYS else error.strerror
        raise UserError(f"cannot write to {folder}: {reason}") from error


def refuse_links(folder: Path) -> None:
    """Raises a UserError if there is a symbolic link in a workdir: its files may lie elsewhere."""
    # Not `rglob`, which fails where a folder disappears.
    paths = (Path(x, name) for x, folders, files in os.walk(folder) for name in folders + files)
    links = [path for path in paths if path.is_symlink()]
    if links:
        raise UserError(
            f"{links[0]} is a link, which a workdir must not contain; use another --workdir"
        )


@run_on_primary
def initialize_workdir(folder: Path, config: Config, environment: Environment) -> Environment:
    """Stores config and environment of a new run; returns the environment the run began in.

    Raises a UserError if the run there has another config.
    """
    resolve_config(folder, config)
    stored = files.read_json(folder / ENVIRONMENT, Environment)
    if stored is None:
        files.write_json(folder / ENVIRONMENT, environment)
    if not (folder / CONFIG).exists():
        files.write_json(folder / CONFIG, dataclasses.asdict(config))
        files.fsync(folder.parent)
    return environment if stored is None else stored


def read_summary(folder: Path) -> Summary | None:
    """The result of a finished run; None if there is none. Raises a UserError if it is damaged."""
    try:
        summary = files.read_json(folder / SUMMARY, Summary)
        if summary and "total" not in summary["seconds"]:
            raise UserError(f"{folder / SUMMARY} is damaged: its seconds have no total")
        return summary
    except UserError as error:
        hint = "remove it, and the command that trained the run writes it again"
        raise UserError(f"{error}; {hint}") from error


@run_on_primary
def write_summary(folder: Path, summary: Summary) -> None:
    """Stores the result of a run, which is finished from then on."""
    files.write_json(folder / SUMMARY, summary)


def read_metrics(folder: Path) -> list[MetricsRow]:
    """The rows of `metrics.jsonl` up to the first damaged one.

    A process that is killed while it writes leaves an incomplete last line. Raises a UserError if
    the file cannot be read.
    """
    path = folder / METRICS
    if not path.is_file():
        return []
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    rows: list[MetricsRow] = []
    for line in text.splitlines():
        try:
            row = files.parse_json(line, MetricsRow)
        except ValueError:
            break
        if _seed_counts(row) != _seed_counts(rows[0] if rows else row):
            break
        rows.append(row)
    return rows


def _seed_counts(row: MetricsRow) -> dict[str, int]:
    """How many seeds each value is of; the same for all rows of a run."""
    values: dict[str, Any] = {**row}
    return {name: len(per_seed(value)) for name, value in values.items() if name != "dataset"}


@run_on_primary
def truncate_metrics(folder: Path, config: Config, last_step: int) -> list[MetricsRow]:
    """Drops the rows after a step from the file; returns the others.

    A process that is killed between a row and its checkpoint leaves one row too many, which the
    resumed run writes again. Raises a UserError if rows up to that step are missing, or all
    checkpoints are.
    """
    path = folder / METRICS
    rows = [row for row in read_metrics(folder) if row["step"] <= last_step]
    epochs = range(1, last_step // config.steps_per_epoch + 1)
    missing = set(filter(config.is_evaluated, epochs)) - {row["epoch"] for row in rows}
    if missing:
        raise UserError(
            f"{path} is damaged: epoch {min(missing)} is missing, but there is a checkpoint after "
            "it; correct that line, or use another --workdir"
        )
    if not last_step and (folder / CHECKPOINTED).exists():
        raise UserError(
            f"{folder} has had checkpoints, but all of them are gone; restore them, remove "
            f"{folder} to start again, or use another --workdir"
        )
    if path.exists():
        files.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return rows


@run_on_primary
def append_metrics(folder: Path, row: MetricsRow) -> None:
    """Adds one row; it is on disk when this returns."""
    path = folder / METRICS
    is_new = not path.exists()
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    files.fsync(path)
    if is_new:
        files.fsync(folder)


def mark_checkpointed(folder: Path) -> None:
    """Records that a checkpoint is complete; it is on disk when this returns."""
    if not (folder / CHECKPOINTED).exists():
        files.write_text(folder / CHECKPOINTED, "")
