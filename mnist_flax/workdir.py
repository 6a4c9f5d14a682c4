"""The files of a run: each there as a whole or not at all, whenever a process is killed."""

import contextlib
import dataclasses
import errno
import itertools
import json
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mnist_flax import config as config_lib
from mnist_flax.config import Config, UserError
from mnist_flax.records import is_line, is_summary, refuse_unshowable

CONFIG = "config.json"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
REPORT = "report"
LOCK = ".lock"
SAVED = ".saved"  # there since the first checkpoint was complete

# What each line of the metrics holds, as numbers of one seed or of many.
FIGURES = (
    *("train_loss", "test_loss", "test_accuracy", "learning_rate", "seconds"),
    "images_per_second",
)


def settle_config(workdir: Path, config: Config) -> Config:
    """The config to run with in this workdir; writes nothing.

    Where a run has begun, `auto` means the data set that it chose then.

    Raises:
      UserError: a run with another config has begun here, or the folder cannot be used.
    """
    stored = read_json(workdir / CONFIG)
    if stored is None:
        return config
    try:
        begun = config_lib.from_dict(stored)
    except UserError as error:
        raise UserError(
            f"{workdir / CONFIG} is {error}; mend it, or use another --workdir"
        ) from error
    if config.dataset == "auto":
        config = dataclasses.replace(config, dataset=begun.dataset)
    changes = config_lib.differences(begun, config)
    if changes:
        raise UserError(
            f"{workdir} holds a run with another config ({'; '.join(changes)}); "
            "use that config, or another --workdir"
        )
    return config


@contextlib.contextmanager
def held(workdir: Path) -> Iterator[None]:
    """Keeps other processes out of a workdir, which is made where it is missing.

    The system frees the lock of a process that dies. A folder in which nothing has begun is
    not left behind.

    Raises:
      UserError: another process holds it, or the folder cannot be used.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        refuse_links(workdir)
        lock = FileLock(workdir / LOCK, blocking=False)
        lock.acquire()
        (workdir / LOCK).write_text(f"process {os.getpid()} on {socket.gethostname()}")
    except Timeout as error:
        holder = "another process"
        with contextlib.suppress(OSError):  # it may be gone by now
            holder = (workdir / LOCK).read_text() or holder
        raise UserError(f"{workdir} is in use by {holder}; wait for it, or stop it") from error
    except OSError as error:
        raise UserError(f"cannot write to {workdir}: {error.strerror}") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            (workdir / LOCK).unlink()
            workdir.rmdir()
        lock.release()


def refuse_links(workdir: Path) -> None:
    """Whoever made the folder may have meant another one to be written to.

    Raises:
      UserError: there is a symbolic link in it.
    """
    links = [path for path in workdir.rglob("*") if path.is_symlink()]
    if links:
        raise UserError(f"{links[0]} is a link, which a workdir may not hold; remove it")


def begin(workdir: Path, config: Config, environment: Mapping[str, Any]) -> dict[str, Any]:
    """Stores the config and the environment; returns the environment that the run began in."""
    begun = read_json(workdir / ENVIRONMENT)
    if not isinstance(begun, dict):
        write_json(workdir / ENVIRONMENT, begun := dict(environment))
    if not (workdir / CONFIG).exists():
        write_json(workdir / CONFIG, dataclasses.asdict(config))
        sync(workdir.parent, below=False)
    return begun


def read_json(path: Path) -> Any:
    """The content of a JSON file; None where there is none.

    Raises:
      UserError: it cannot be read, or is not JSON.
    """
    try:
        if path.exists() and not path.is_file():  # reading a pipe may take for ever
            raise UserError(f"cannot read {path}: it is not a file")
        value = json.loads(path.read_text(encoding="utf-8"))
        refuse_unshowable(value)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if value is None:
        raise UserError(f"{path} is damaged: it holds nothing")
    return value


def read_summary(path: Path) -> dict[str, Any] | None:
    """The result of a finished run; None where there is none.

    Raises:
      UserError: it cannot be read, or something is missing in it.
    """
    hint = "; remove it, and the same command that trained the run writes it again"
    try:
        summary = read_json(path)
    except UserError as error:
        raise UserError(f"{error}{hint}") from error
    if summary is not None and not is_summary(summary):
        raise UserError(f"{path} is damaged: it is not the summary of a run{hint}")
    return summary


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file as a whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file; a process killed while writing leaves a torn one."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    kept = []
    for line in text.splitlines():
        try:
            metrics = json.loads(line)
            refuse_unshowable(metrics)
            like = kept[0] if kept else dict.fromkeys(FIGURES, 0.0) | metrics
        except (ValueError, TypeError, RecursionError):
            break
        if not is_line(metrics, like):
            break
        kept.append(metrics)
    return kept


def rewind_metrics(path: Path, config: Config, last_step: int) -> list[dict[str, Any]]:
    """The lines up to a step, dropping all later ones from the file.

    A process killed between a line and its checkpoint leaves a line too many; going on from
    the checkpoint writes it again.

    Raises:
      UserError: some of the lines up to that step are missing, or all checkpoints are.
    """
    found = read_metrics(path)
    kept = [line for line in found if line["step"] <= last_step]
    epochs = range(1, last_step // config.steps_per_epoch + 1)
    lacking = set(filter(config.is_evaluated, epochs)) - {line["epoch"] for line in kept}
    if lacking:
        raise UserError(
            f"{path} is damaged: epoch {min(lacking)} is missing, but there is a checkpoint from "
            "after it; mend that line, or use another --workdir"
        )
    if not last_step and (path.parent / SAVED).exists():
        raise UserError(
            f"{path.parent} has had checkpoints, but all of them are gone; bring them back, remove "
            f"{path.parent} to start over, or use another --workdir"
        )
    if path.exists():
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
    return kept


def append_metrics(path: Path, metrics: Mapping[str, Any]) -> None:
    """Adds one line, on disk when this returns."""
    new = not path.exists()
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(metrics) + "\n")
        file.flush()
        os.fsync(file.fileno())
    if new:
        sync(path.parent, below=False)


def note_saved(workdir: Path) -> None:
    """Keeps in mind that a checkpoint is complete, on disk when this returns."""
    if not (workdir / SAVED).exists():
        write_text(workdir / SAVED, "")


def write_text(path: Path, text: str) -> None:
    """Writes a text file as a whole or not at all, on disk when this returns."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to; afterwards, unless something was raised, it has taken `path`'s place.

    Raises:
      FileExistsError: `path` is not a file, but a folder or a device.
    """
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "it is not a file", str(path))
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent, below=False)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path, below: bool = True) -> None:
    """Returns when a file, or a folder with all `below` it, is on disk, as after a power cut."""
    for entry in (*(path.rglob("*") if below else ()), path):
        descriptor = os.open(entry, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def set_aside(path: Path) -> Path:
    """Renames what is damaged, so that it is neither used nor lost; returns its new path."""
    names = (f"{path.name}.damaged{count or ''}" for count in itertools.count())
    aside = next(path.with_name(name) for name in names if not path.with_name(name).exists())
    path.rename(aside)
    sync(path.parent, below=False)
    return aside
