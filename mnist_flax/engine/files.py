"""Files that are written whole or not at all, and folders that carry SHA-256 checksums."""

import contextlib
import errno
import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

from mnist_flax.core.config import UserError

T = TypeVar("T")

# `sha256sum -c SHA256SUMS` checks such a folder too.
CHECKSUMS = "SHA256SUMS"


def parse_json(text: str, kind: type[T]) -> T:
    """A JSON text as a value of a type, such as a `TypedDict`, that it is checked against.

    Raises a ValueError if it is not JSON or of another type, or holds a number that is not finite
    or not below 2**63, or text that is not UTF-8.
    """
    try:
        value = json.loads(text, parse_int=_number, parse_float=_number, parse_constant=_number)
        json.dumps(value, ensure_ascii=False).encode()
        return check_type(value, kind, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
    except (TypeCheckError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def _number(text: str) -> int | float:
    if not abs(float(text)) < 2**63:
        raise ValueError(f"the number {text} is out of range")
    return int(text) if text.removeprefix("-").isdecimal() else float(text)


def read_json(path: Path, kind: type[T]) -> T | None:
    """The content of a JSON file, checked as in `parse_json`; None if there is no file.

    Raises a UserError if it cannot be read, or its content is not valid.
    """
    try:
        if path.exists() and not path.is_file():  # reading a pipe could block forever
            raise UserError(f"cannot read {path}: it is not a file")
        return parse_json(path.read_text(encoding="utf-8"), kind)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from error


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file as a whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file as a whole or not at all; it is on disk when this returns."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def refuse_path(path: Path) -> None:
    """Raises a UserError for a path that Orbax and TensorStore take for another one.

    They take brackets, `*` and `?` for a pattern, a backslash for a separator and `:/` for an
    address, and know only UTF-8.
    """
    text = str(path.absolute())
    odd = "".join(char for char in "[]*?\\" if char in text) + ":" * (":/" in f"{text}/")
    if not odd and os.fsencode(text) == text.encode(errors="replace"):
        return
    reason = f"with {' '.join(odd)} in it" if odd else "that is not UTF-8"
    raise UserError(f"checkpoints cannot be kept at a path {reason}, as in {text}; rename it")


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path to write to, which replaces `path` unless the block raises."""
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "it is not a file", str(path))
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        fsync(temporary)
        temporary.replace(path)
        fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def fsync(path: Path) -> None:
    """Returns once a file, or the list of a folder's entries, would survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def quarantine(path: Path) -> Path:
    """Renames something damaged, so that it is neither used nor lost; returns its new path."""
    names = (f"{path.name}.damaged{count or ''}" for count in itertools.count())
    target = next(path.with_name(name) for name in names if not path.with_name(name).exists())
    path.rename(target)
    fsync(path.parent)
    return target


def write_checksums(folder: Path) -> None:
    """Adds the checksums of its files to a complete folder; all is on disk when this returns."""
    for path in (*folder.rglob("*"), folder):
        fsync(path)
    lines = [f"{file_sha256(folder / name)}  {name}\n" for name in sorted(_list_files(folder))]
    write_text(folder / CHECKSUMS, "".join(lines))
    fsync(folder.parent)


def find_corruption(folder: Path) -> str | None:
    """What is wrong with the files of a folder; None if they are as they were written."""
    try:
        lines = (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines()
        expected = {name: sha256 for sha256, name in (line.split("  ", 1) for line in lines)}
    except (FileNotFoundError, NotADirectoryError):
        return f"{CHECKSUMS} is missing"
    except ValueError:
        return f"{CHECKSUMS} is damaged"
    present = _list_files(folder) - {CHECKSUMS}
    for name in sorted(present | expected.keys()):
        if name not in present:
            return f"{name} is missing"
        if file_sha256(folder / name) != expected.get(name):
            return f"{name} is not as it was written"
    return None


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _list_files(folder: Path) -> set[str]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix() for path in paths}
