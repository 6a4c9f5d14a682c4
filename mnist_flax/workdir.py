"""The files of a run: written so that a killed process leaves none of them half-written."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mnist_flax import config as config_lib
from mnist_flax.config import Config, UserError

CONFIG = "config.json"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
REPORT = "report"


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
        raise UserError(f"{workdir / CONFIG} is {error}") from error
    if config.dataset == "auto":
        config = dataclasses.replace(config, dataset=begun.dataset)
    changes = config_lib.differences(begun, config)
    if changes:
        raise UserError(
            f"{workdir} holds a run with another config ({'; '.join(changes)}); "
            "use that config, or another --workdir"
        )
    return config


def begin(workdir: Path, config: Config) -> None:
    """Makes the workdir where it is missing, and stores the config in it.

    Raises:
      UserError: the folder cannot be made or written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / CONFIG, dataclasses.asdict(config))
    except OSError as error:
        raise UserError(f"cannot write to {workdir}: {error.strerror}") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file; None where there is none.

    Raises:
      UserError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from error


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file as a whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file; a process killed while writing leaves a torn one."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    kept = []
    for line in text.splitlines():
        try:
            kept.append(json.loads(line))
        except ValueError:
            break
    return kept


def rewind_metrics(path: Path, last_step: int) -> list[dict[str, Any]]:
    """The lines up to a step, dropping all later ones from the file.

    A process killed between a line and its checkpoint leaves a line too many; going on from
    the checkpoint writes it again.
    """
    kept = [line for line in read_metrics(path) if line["step"] <= last_step]
    if path.exists():
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
    return kept


def append_metrics(path: Path, metrics: Mapping[str, Any]) -> None:
    """Adds one line, on disk when this returns."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(metrics) + "\n")
        file.flush()
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Writes a text file as a whole or not at all, on disk when this returns."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to; afterwards, unless something was raised, it has taken `path`'s place."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
