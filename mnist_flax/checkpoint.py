"""The one thin module over Orbax: save, restore and fingerprint a pytree.

Orbax restores a flipped bit without a word, and deletes old checkpoints before the new one
is sure to be on disk. So each one carries the SHA-256 of its files, which
`sha256sum -c SHA256SUMS` checks too, and of its state; until then it does not count.
"""

import contextlib
import hashlib
import logging
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

import jax
from orbax.checkpoint import v1 as ocp

from mnist_flax import processes, sums, workdir
from mnist_flax.config import UserError
from mnist_flax.spread import Figure, mean_of

State = TypeVar("State")

# The metric by which the best checkpoint is kept beside the latest ones.
BEST_METRIC = "validation_accuracy"

# Names the step that is being saved: without its sums that one is unfinished, others damaged.
SAVING = ".saving"

# What Orbax raises about a checkpoint or a disk.
FAULTS = (OSError, ValueError, KeyError, TypeError, RuntimeError)


class Checkpoints:
    """The checkpoints of a run, saved in the background.

    Several processes each call every method; Orbax has each write what it holds of the state,
    and the first does the rest. Kept are the latest `keep`, and the best of those saved with a
    `BEST_METRIC`.
    """

    def __init__(self, folder: Path, keep: int, log: Callable[[str], None] = print):
        """Opens a folder, removing what a killed process left unfinished.

        Damaged checkpoints are set aside, under another name.

        Args:
          folder: made where it is missing.
          keep: at least 1.
          log: told which checkpoints are damaged.

        Raises:
          UserError: all of them are damaged.
        """
        _quiet()
        self.folder, self._keep = folder.absolute(), keep
        processes.on_first(lambda: _clean(self.folder, keep, log))
        self._orbax = ocp.training.Checkpointer(str(self.folder), cleanup_tmp_directories=True)
        self._worker = ThreadPoolExecutor(max_workers=1)
        self._saving: Future[None] | None = None

    @property
    def latest(self) -> int | None:
        """The step of the latest one that is sure to be on disk; None where there is none."""
        self._wait()
        return max((saved.step for saved in self._orbax.checkpoints), default=None)

    def save(self, step: int, state: Any, metrics: Mapping[str, Figure] | None = None) -> None:
        """Starts saving, in the background, unless that step is saved already.

        The state is copied before this returns, so it may then be donated.

        Raises:
          UserError: the save before this one failed.
        """
        self._wait()
        if any(saved.step == step for saved in self._orbax.checkpoints):
            return
        chosen: Any = (
            {BEST_METRIC: mean_of(metrics[BEST_METRIC])}
            if metrics and BEST_METRIC in metrics
            else None
        )
        processes.on_first(lambda: workdir.write_text(self.folder / SAVING, str(step)))
        # Forced, because the default policy may skip a save.
        response = self._orbax.save_async(
            step, state, force=True, metrics=chosen, custom_metadata=_label(step, state)
        )
        self._saving = self._worker.submit(self._finish, step, response)

    def restore(self, like: State) -> State | None:
        """The latest state, shaped like `like`; None where nothing has been saved.

        Raises:
          UserError: the checkpoint cannot be read, or holds something else.
        """
        step = self.latest
        if processes.largest_of(processes.first_of(step or 0) != (step or 0)):
            raise UserError(
                f"the processes see different checkpoints in {self.folder}; it has to be one "
                "folder for all of them"
            )
        if step is None:
            return None
        where = f"checkpoint {step} in {self.folder}"
        abstract = jax.tree.map(ocp.arrays.to_shape_dtype_struct, like)
        try:
            saved = self._orbax.metadata(step)
            # Orbax would cast another dtype without a word.
            if _shapes(saved.metadata) != _shapes(abstract):
                raise UserError(f"{where} holds another kind of state; use another --workdir")
            state = self._orbax.load(step, abstract)
        except FAULTS as error:
            if processes.is_loss(error):
                raise
            raise UserError(
                f"{where} cannot be read ({_reason(error)}); remove it to go on"
            ) from error
        if (saved.custom_metadata or {}) != _label(step, state):
            raise UserError(f"{where} was not restored as it was saved; remove it to go on")
        return state

    def close(self) -> None:
        """Waits until everything is on disk.

        Raises:
          UserError: the last save failed.
        """
        try:
            self._wait()
        finally:
            self._worker.shutdown()
            with contextlib.suppress(*FAULTS):  # told by _wait
                self._orbax.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if processes.is_loss(error):
            return  # a save that is under way would wait for the process that is gone
        self.close()

    def _finish(self, step: int, response: Any) -> None:
        """Makes a checkpoint count, and only then deletes old ones."""
        response.result()
        if processes.is_first():
            sums.seal(self.folder / str(step))
            workdir.note_saved(self.folder.parent)
            (self.folder / SAVING).unlink()
        metrics: dict[int, Any] = {saved.step: saved.metrics for saved in self._orbax.checkpoints}
        scored = [step for step in metrics if metrics[step]]
        best = max(scored, key=lambda step: (metrics[step][BEST_METRIC], step), default=None)
        for old in sorted(metrics)[: -self._keep]:
            if old != best:
                self._delete(old)

    def _delete(self, step: int) -> None:
        if processes.is_first():
            # What is left if this process is killed is then known not to be damage.
            (self.folder / str(step) / sums.NAME).unlink(missing_ok=True)
        self._orbax.delete(step)

    def _wait(self) -> None:
        """Returns when nothing is being saved any more."""
        saving, self._saving = self._saving, None
        try:
            if saving is not None:
                saving.result()
        except FAULTS as error:
            if processes.is_loss(error):
                raise
            raise UserError(
                f"cannot save to {self.folder}: {_reason(error)}; the checkpoints that are there "
                "are intact"
            ) from error


def _clean(folder: Path, keep: int, log: Callable[[str], None]) -> None:
    """Sets damaged checkpoints aside; removes those that were being saved or deleted."""
    found = sorted((path for path in folder.glob("*") if path.name.isdecimal()), key=_step)
    if found and _step(found[-1]) == _saving(folder) and not (found[-1] / sums.NAME).exists():
        shutil.rmtree(found.pop())
    problems = {path: sums.damage(path) for path in found}
    intact = [path for path in found if not problems[path]]
    damaged = [path for path in found if problems[path]]
    if damaged and not intact:
        told = "; ".join(f"{path.name}: {problems[path]}" for path in damaged)
        raise UserError(
            f"no checkpoint in {folder} is intact ({told}); remove {folder.parent} to start over, "
            "or use another --workdir"
        )
    for path in damaged:
        if not (path / sums.NAME).exists() and path in found[:-keep]:
            shutil.rmtree(path)
            log(f"checkpoint {path.name} was being deleted, and is gone now")
        else:
            aside = workdir.set_aside(path)
            log(f"checkpoint {path.name} is damaged: {problems[path]}; it is set aside as {aside}")
    (folder / SAVING).unlink(missing_ok=True)


def _saving(folder: Path) -> int | None:
    """The step that was being saved when a process ended."""
    try:
        return int((folder / SAVING).read_text())
    except (FileNotFoundError, ValueError):
        return None


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name)


def load_params(folder: Path, which: str = "latest") -> tuple[int, Any]:
    """The step and the `params` of a checkpoint, on the first device.

    Only reads: a run that is writing there is not disturbed.

    Args:
      folder: of the checkpoints.
      which: `latest`, `best` (by the accuracy on the validation split) or a step.

    Raises:
      UserError: there is no such checkpoint, or it cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist: nothing has been trained there")
    _quiet()
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    try:
        with ocp.training.Checkpointer(str(folder.absolute())) as checkpointer:
            step = _choose(checkpointer, folder, which)
            problem = sums.damage(folder / str(step))
            if problem:
                raise UserError(f"checkpoint {step} in {folder} is damaged: {problem}")
            saved = checkpointer.metadata(step).metadata
            abstract = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), saved
            )
            return step, checkpointer.load(step, abstract)["params"]
    except FAULTS as error:
        raise UserError(
            f"the {which} checkpoint in {folder} cannot be read ({_reason(error)})"
        ) from error


def _choose(checkpointer: ocp.training.Checkpointer, folder: Path, which: str) -> int:
    saved: dict[int, Any] = {
        checkpoint.step: checkpoint.metrics
        for checkpoint in checkpointer.checkpoints
        if (folder / str(checkpoint.step) / sums.NAME).exists()  # else it is still being written
    }
    if not saved:
        raise UserError(f"{folder} holds no checkpoint yet")
    if which == "latest":
        return max(saved)
    if which == "best":
        scored = {step: metrics for step, metrics in saved.items() if metrics}
        if not scored:
            raise UserError(
                f"no checkpoint in {folder} has a validation accuracy to be best by; train with "
                "--validation-fraction, or ask for the latest"
            )
        return max(scored, key=lambda step: (scored[step][BEST_METRIC], step))
    if not which.isdecimal() or int(which) not in saved:
        steps = ", ".join(map(str, sorted(saved)))
        raise UserError(f"there is no checkpoint {which!r} in {folder}, but best, latest, {steps}")
    return int(which)


def digest(tree: Any) -> str:
    """SHA-256 of every leaf's path, dtype, shape and bytes, in the order of the paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    sha256 = hashlib.sha256()
    for path, leaf in sorted((jax.tree_util.keystr(path), leaf) for path, leaf in leaves):
        array = processes.to_host(leaf)
        sha256.update(f"{path} {array.dtype} {array.shape} ".encode())
        sha256.update(array.tobytes())
    return sha256.hexdigest()


def _label(step: int, state: Any) -> dict[str, Any]:
    """What Orbax is given to keep with a state, to know it by."""
    return {"step": step, "sha256": digest(state)}


def _quiet() -> None:
    """Orbax logs whatever it does, and each failure with hundreds of lines of traceback."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)


def _reason(error: BaseException) -> str:
    """The gist of what Orbax raises: the system's own words where it quotes them."""
    quoted = re.search(r"([^:]+) \[os_error_code", str(error))
    return quoted[1].strip() if quoted else " ".join(str(error).split())[:200]


def _shapes(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (leaf.shape, str(leaf.dtype))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
