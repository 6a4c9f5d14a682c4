"""Folders that carry the SHA-256 of their files, as `sha256sum -c SHA256SUMS` checks them."""

import hashlib
from pathlib import Path

from mnist_flax import workdir

NAME = "SHA256SUMS"


def seal(folder: Path) -> None:
    """Adds the sums of its files to a complete folder; all is on disk when this returns."""
    workdir.sync(folder)
    sums = [f"{_sha256(folder / name)}  {name}\n" for name in sorted(_files(folder))]
    workdir.write_text(folder / NAME, "".join(sums))
    workdir.sync(folder.parent, below=False)


def _files(folder: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return [path.relative_to(folder).as_posix() for path in files]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage(folder: Path) -> str | None:
    """What is wrong with the files in a folder; None if they are as they were written."""
    try:
        lines = (folder / NAME).read_text(encoding="utf-8").splitlines()
        sums = {name: sha256 for sha256, name in (line.split("  ", 1) for line in lines)}
    except (FileNotFoundError, NotADirectoryError):
        return f"{NAME} is missing"
    except ValueError:
        return f"{NAME} is not as it was written"
    found = set(_files(folder)) - {NAME}
    for name in sorted(found | sums.keys()):
        if name not in found:
            return f"{name} is missing"
        if _sha256(folder / name) != sums.get(name):
            return f"{name} is not as it was written"
    return None
