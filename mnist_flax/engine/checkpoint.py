"""Checkpoints: a thin layer over Orbax that makes each one verifiable.

Orbax restores a flipped bit silently, and deletes old checkpoints before the new one is known to
be on disk. Here each checkpoint carries the SHA-256 checksums of its files and of its state, and
counts only from then on.
"""

import contextlib
import functools
import hashlib
import logging
import re
import shutil
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

import jax
from orbax.checkpoint import v1 as ocp

from mnist_flax.core import model
from mnist_flax.core.config import ExpectedError, UserError
from mnist_flax.engine import distributed, files, workdir
from mnist_flax.engine.distributed import run_on_primary
from mnist_flax.engine.seed_stats import mean_of
from mnist_flax.engine.workdir import MetricsRow

State = TypeVar("State")

# Names the step being saved: without checksums it is incomplete, other steps are damaged.
SAVING = ".saving"

# What Orbax raises about a checkpoint or a disk.
ORBAX_ERRORS = (OSError, ValueError, KeyError, TypeError, RuntimeError)


class CheckpointManager:
    """Saves checkpoints in the background; keeps the latest and the best by validation accuracy.

    Several processes each call every method: Orbax lets each write its part of the state, and the
    primary one does the rest.
    """

    def __init__(self, folder: Path, max_to_keep: int, log: Callable[[str], None] = print):
        """Opens or creates a folder; removes incomplete checkpoints, quarantines damaged ones.

        Raises a UserError if all of them are damaged.
        """
        _silence_orbax()
        self.folder, self._max_to_keep = folder.absolute(), max_to_keep
        _clean(self.folder, max_to_keep, log)
        self._orbax = ocp.training.Checkpointer(str(self.folder), cleanup_tmp_directories=True)
        self._worker = ThreadPoolExecutor(max_workers=1)
        self._pending: Future[None] | None = None
        self._first_saved: tuple[int, Any] | None = None  # its step and abstract state
        self._is_verified = False

    @property
    def latest(self) -> int | None:
        """The step of the latest complete checkpoint; None if there is none."""
        self._wait()
        return max((saved.step for saved in self._orbax.checkpoints), default=None)

    def save(self, step: int, state: Any, row: MetricsRow | None = None) -> None:
        """Starts saving a pytree in the background, unless that step is saved already.

        The state is copied before this returns, so it may be donated afterwards. `row` is its
        row of the metrics, if it was evaluated. Raises a UserError if the save before failed.
        """
        self._wait()
        if any(saved.step == step for saved in self._orbax.checkpoints):
            return
        metrics: Any = None
        if row and "validation_accuracy" in row:
            metrics = {"validation_accuracy": mean_of(row["validation_accuracy"])}
        run_on_primary(files.write_text)(self.folder / SAVING, str(step))
        # Forced, because the default policy may skip a save.
        response = self._orbax.save_async(
            step, state, force=True, metrics=metrics, custom_metadata=_fingerprint(step, state)
        )
        self._pending = self._worker.submit(self._finalize, step, response)
        if self._first_saved is None:
            self._first_saved = step, jax.tree.map(ocp.arrays.to_shape_dtype_struct, state)

    def restore(self, abstract_state: State) -> State | None:
        """The latest state, of these shapes, dtypes and placement; None if nothing is saved.

        Raises a UserError if it cannot be read, or is another kind of state.
        """
        step = self.latest
        if distributed.allreduce_max(distributed.broadcast_from_primary(step or 0) != (step or 0)):
            raise UserError(
                f"the processes see different checkpoints in {self.folder}; "
                "all of them need the same folder"
            )
        if step is None:
            return None
        return self._load(step, jax.tree.map(ocp.arrays.to_shape_dtype_struct, abstract_state))

    def _load(self, step: int, expected: State) -> State:
        name = f"checkpoint {step} in {self.folder}"
        try:
            saved = self._orbax.metadata(step)
            # Orbax would cast to another dtype silently.
            if _shapes(saved.metadata) != _shapes(expected):
                raise UserError(f"{name} holds another kind of state; use another --workdir")
            state = self._orbax.load(step, expected)
        except ORBAX_ERRORS as error:
            raise UserError(f"{name} cannot be read ({_reason(error)})") from error
        if (saved.custom_metadata or {}) != _fingerprint(step, state):
            raise UserError(f"{name} was not restored as it was saved; remove it")
        return state

    def close(self) -> None:
        """Waits until everything is on disk. Raises a UserError if the last save failed."""
        try:
            self._wait()
        finally:
            self._worker.shutdown()
            with contextlib.suppress(*ORBAX_ERRORS):  # already raised by _wait
                self._orbax.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if distributed.is_distributed() and error and not isinstance(error, ExpectedError):
            return  # another process may be gone, and a pending save would wait for it forever
        self.close()

    def _finalize(self, step: int, response: Any) -> None:
        """Makes a checkpoint count, and only then deletes old ones."""
        response.result()
        if distributed.is_primary():
            files.write_checksums(self.folder / str(step))
            workdir.mark_checkpointed(self.folder.parent)
            (self.folder / SAVING).unlink()
        metrics: dict[int, Any] = {saved.step: saved.metrics for saved in self._orbax.checkpoints}
        best = _best_step(metrics)
        for old in sorted(metrics)[: -self._max_to_keep]:
            if old != best:
                self._delete(old)

    def _delete(self, step: int) -> None:
        if distributed.is_primary():
            # If this process is killed or the power fails, the remains are known not to be damage.
            (self.folder / str(step) / files.CHECKSUMS).unlink(missing_ok=True)
            files.fsync(self.folder / str(step))
        self._orbax.delete(step)

    def _wait(self) -> None:
        """Returns once no save is pending."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except ORBAX_ERRORS as error:
            message = f"cannot save to {self.folder}: {_reason(error)}"
            raise UserError(f"{message}; the earlier checkpoints are intact") from error
        if self._first_saved and not self._is_verified:
            # Whatever is odd about this disk or path shows before more is trained.
            self._is_verified = True
            try:
                self._load(*self._first_saved)
            except UserError as error:
                raise UserError(f"what is saved cannot be read again: {error}") from error


@run_on_primary
def _clean(folder: Path, max_to_keep: int, log: Callable[[str], None]) -> None:
    """Removes checkpoints that were being saved or deleted, and quarantines damaged ones."""
    saved = sorted((x for x in folder.glob("*") if x.name.isdecimal()), key=lambda x: int(x.name))
    saving = folder / SAVING
    incomplete = saving.read_text() if saving.exists() else ""
    if saved and saved[-1].name == incomplete and not (saved[-1] / files.CHECKSUMS).exists():
        shutil.rmtree(saved.pop())
    problems = {path: problem for path in saved if (problem := files.find_corruption(path))}
    if saved and len(problems) == len(saved):
        details = "; ".join(f"{path.name}: {problem}" for path, problem in problems.items())
        raise UserError(
            f"no checkpoint in {folder} is intact ({details}); remove {folder.parent} to start "
            "again, or use another --workdir"
        )
    for path, problem in problems.items():
        if not (path / files.CHECKSUMS).exists() and path in saved[:-max_to_keep]:
            shutil.rmtree(path)
            log(f"checkpoint {path.name} was being deleted and is now removed")
        else:
            target = files.quarantine(path)
            log(f"checkpoint {path.name} is damaged: {problem}; it is now quarantined in {target}")
    saving.unlink(missing_ok=True)


def _best_step(metrics: dict[int, Any]) -> int | None:
    """The step with the best validation accuracy, the latest of equals; None if none has one."""
    scores = {step: metrics[step]["validation_accuracy"] for step in metrics if metrics[step]}
    return max(scores, key=lambda step: (scores[step], step), default=None)


def load_params(folder: Path, which: str = "latest") -> tuple[int, model.Params]:
    """The step and the parameters of a checkpoint, on the first device; only reads the folder.

    `which` is `latest`, `best` or a step. Raises a UserError if there is no such checkpoint, or it
    cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist: nothing has been trained there")
    files.refuse_path(folder)
    _silence_orbax()
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    try:
        with ocp.training.Checkpointer(str(folder.absolute())) as checkpointer:
            step = _choose(checkpointer, folder, which)
            problem = files.find_corruption(folder / str(step))
            if problem:
                raise UserError(f"checkpoint {step} in {folder} is damaged: {problem}")
            abstract_state = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
                checkpointer.metadata(step).metadata,
            )
            return step, checkpointer.load(step, abstract_state)["params"]
    except ORBAX_ERRORS as error:
        name = f"the {which} checkpoint in {folder}"
        raise UserError(f"{name} cannot be read ({_reason(error)})") from error


def _choose(checkpointer: ocp.training.Checkpointer, folder: Path, which: str) -> int:
    metrics: dict[int, Any] = {
        saved.step: saved.metrics
        for saved in checkpointer.checkpoints
        if (folder / str(saved.step) / files.CHECKSUMS).exists()  # else it is still being written
    }
    if not metrics:
        raise UserError(f"{folder} holds no checkpoint yet")
    if which == "latest":
        return max(metrics)
    if which == "best":
        best = _best_step(metrics)
        if best is None:
            hint = "train with --validation-fraction, or use the latest one"
            raise UserError(f"no checkpoint in {folder} has a validation accuracy; {hint}")
        return best
    if not which.isdecimal() or int(which) not in metrics:
        names = [*(["best"] if _best_step(metrics) else []), "latest", *map(str, sorted(metrics))]
        existing = ", ".join(names)
        raise UserError(f"there is no checkpoint {which!r} in {folder}; available: {existing}")
    return int(which)


def tree_sha256(tree: Any) -> str:
    """SHA-256 of each leaf's path, dtype, shape and bytes, in the order of the paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    sha256 = hashlib.sha256()
    for path, leaf in sorted((jax.tree_util.keystr(path), leaf) for path, leaf in leaves):
        array = distributed.gather_to_host(leaf)
        sha256.update(f"{path} {array.dtype} {array.shape} ".encode())
        sha256.update(array.tobytes())
    return sha256.hexdigest()


def _fingerprint(step: int, state: Any) -> dict[str, Any]:
    """Metadata that Orbax stores with a state, by which a restored one is verified."""
    return {"step": step, "sha256": tree_sha256(state)}


@functools.cache
def _silence_orbax() -> None:
    """Orbax logs every action, and each failure with hundreds of lines of traceback."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine '.*' was never awaited", RuntimeWarning)
    following = sys.unraisablehook

    def ignore_closed_loop(raised: "sys.UnraisableHookArgs") -> None:
        # What TensorStore's threads still have to say once a failed save is given up.
        if str(raised.exc_value) != "Event loop is closed":
            following(raised)

    sys.unraisablehook = ignore_closed_loop


def _reason(error: BaseException) -> str:
    """The system's message if Orbax quotes one, else the beginning of Orbax's own."""
    quoted = re.search(r": ([^:\[\]\"]+) \[\w+=", str(error))
    return quoted[1].strip() if quoted else " ".join(str(error).split())[:200]


def _shapes(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (leaf.shape, str(leaf.dtype))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
