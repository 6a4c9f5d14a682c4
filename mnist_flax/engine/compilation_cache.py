"""JAX's cache of compiled programs, checked.

JAX does not notice a damaged entry.
"""

import atexit
import contextlib
import os
from pathlib import Path

from mnist_flax.engine import files
from mnist_flax.engine.environment import processor_fingerprint

DIGESTS = "mnist_flax_sha256.json"


def enable() -> None:
    """Makes JAX keep compiled programs in JAX_COMPILATION_CACHE_DIR or `~/.cache`."""
    import jax

    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if folder is None:
        try:
            home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        except RuntimeError:  # there is no home folder, so each run compiles anew
            return
        # JAX's key ignores the processor, but machines may share a home folder.
        folder = str(home / "mnist_flax" / processor_fingerprint())
        jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    if folder and "://" not in folder:  # JAX also takes an address of a cloud's storage
        check(Path(folder))


def check(folder: Path) -> None:
    """Removes entries that are not as they were written, so that JAX compiles these programs again.

    Entries that this process adds are recorded when it exits.
    """
    known = _read_digests(folder)
    for path in folder.glob("*-cache"):
        with contextlib.suppress(OSError):  # another process may remove it too
            if path.name in known and files.file_sha256(path) != known[path.name]:
                path.unlink()
    atexit.unregister(_record)
    atexit.register(_record, folder)


def _record(folder: Path) -> None:
    """Adds the digests of new entries."""
    known = _read_digests(folder)
    with contextlib.suppress(OSError):  # a cache that cannot be written is only slow
        paths = sorted(folder.glob("*-cache"))
        digests = {x.name: known.get(x.name) or files.file_sha256(x) for x in paths}
        if digests != known:
            files.write_json(folder / DIGESTS, digests)


def _read_digests(folder: Path) -> dict[str, str]:
    try:
        return files.parse_json((folder / DIGESTS).read_text(), dict[str, str])
    except (OSError, ValueError):  # there is none, or it is damaged too
        return {}
