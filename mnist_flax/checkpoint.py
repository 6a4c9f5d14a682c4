"""The one thin module over Orbax: save, restore and fingerprint a pytree."""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from mnist_flax.config import UserError
from mnist_flax.spread import Figure, mean_of

State = TypeVar("State")
Checkpointer = ocp.training.Checkpointer

# The metric by which the best checkpoint is kept beside the latest ones.
BEST_METRIC = "validation_accuracy"


def open_checkpoints(folder: Path, keep: int) -> Checkpointer:
    """Opens a folder of checkpoints, removing what a killed process left unfinished.

    It keeps the latest `keep`, and the best of those saved with a `BEST_METRIC`.
    """
    # Orbax logs every retention decision.
    logging.getLogger("absl").setLevel(logging.ERROR)
    policies = ocp.training.preservation_policies
    best = policies.BestN(
        get_metric_fn=lambda metrics: metrics[BEST_METRIC],
        n=1,
        keep_checkpoints_without_metrics=False,
    )
    kept: Any = policies.AnyPreservationPolicy([policies.LatestN(keep), best])
    return Checkpointer(
        str(folder.absolute()),
        preservation_policy=kept,
        cleanup_tmp_directories=True,
    )


def save(
    checkpointer: Checkpointer,
    step: int,
    state: Any,
    metrics: Mapping[str, Figure] | None = None,
) -> None:
    """Starts saving, in the background, unless that step is saved already.

    The state is copied before this returns, so it may then be donated.
    """
    if any(saved.step == step for saved in checkpointer.checkpoints):
        return
    chosen: Any = (
        {BEST_METRIC: mean_of(metrics[BEST_METRIC])} if metrics and BEST_METRIC in metrics else None
    )
    # Forced, because the default policy skips a save while another is under way.
    checkpointer.save_async(step, state, force=True, metrics=chosen)


def restore(checkpointer: Checkpointer, like: State) -> State | None:
    """The latest state, shaped like `like`; None where nothing has been saved.

    Raises:
      UserError: the checkpoint cannot be read, or holds something else.
    """
    latest = checkpointer.latest
    if latest is None:
        return None
    where = f"checkpoint {latest.step} in {checkpointer.directory}"
    abstract = jax.tree.map(ocp.arrays.to_shape_dtype_struct, like)
    try:
        # Orbax would cast another dtype without a word.
        saved = checkpointer.metadata(latest.step).metadata
        if _shapes(saved) != _shapes(abstract):
            raise UserError(f"{where} is damaged, or holds another kind of state")
        return checkpointer.load(latest.step, abstract)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{where} cannot be read ({error}); remove it to go on") from error


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
    logging.getLogger("absl").setLevel(logging.ERROR)
    with Checkpointer(str(folder.absolute())) as checkpointer:
        step = _choose(checkpointer, folder, which)
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        try:
            saved = checkpointer.metadata(step).metadata
            abstract = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), saved
            )
            return step, checkpointer.load(step, abstract)["params"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"checkpoint {step} in {folder} cannot be read ({error})") from error


def _choose(checkpointer: Checkpointer, folder: Path, which: str) -> int:
    saved: dict[int, Any] = {
        checkpoint.step: checkpoint.metrics for checkpoint in checkpointer.checkpoints
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
        array = np.asarray(leaf)
        sha256.update(f"{path} {array.dtype} {array.shape} ".encode())
        sha256.update(array.tobytes())
    return sha256.hexdigest()


def _shapes(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (leaf.shape, str(leaf.dtype))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
