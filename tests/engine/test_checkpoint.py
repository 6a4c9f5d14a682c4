"""Saving and restoring checkpoints, and which of them are kept."""

import os
import shutil
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_flax.core.config import UserError
from mnist_flax.engine import checkpoint, files
from mnist_flax.engine.checkpoint import CheckpointManager, load_params
from mnist_flax.engine.seed_stats import seed_statistics


@pytest.fixture
def state():
    return {"a": jnp.arange(6, dtype=jnp.float32).reshape((2, 3)), "n": (jnp.int32(7), {})}


def metrics_row(validation_accuracy):
    row: Any = {"step": 1, "epoch": 1, "test_accuracy": 0.5}
    return row | {"validation_accuracy": validation_accuracy}


def kept_steps(folder):
    return sorted(int(path.name) for path in folder.iterdir())


def test_the_latest_checkpoint_is_restored_bit_for_bit(tmp_path, state):
    with CheckpointManager(tmp_path, max_to_keep=2) as checkpoints:
        assert checkpoints.restore(state) is None
        for step in (1, 2, 3):
            saved = jax.tree.map(lambda leaf, step=step: leaf + step, state)
            checkpoints.save(step, saved)
            checkpoints.save(step, state)  # changes nothing: the step is saved already
    with CheckpointManager(tmp_path, max_to_keep=2) as checkpoints:
        restored = checkpoints.restore(state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert checkpoint.tree_sha256(restored) == checkpoint.tree_sha256(saved)
    assert kept_steps(tmp_path) == [2, 3]


def test_the_best_and_the_latest_checkpoints_are_kept(tmp_path, state):
    with CheckpointManager(tmp_path, max_to_keep=1) as checkpoints:
        for step, accuracy in enumerate([0.5, 0.9, 0.8, 0.7]):
            checkpoints.save(step, state, metrics_row(accuracy))
    assert kept_steps(tmp_path) == [1, 3]


def test_a_checkpoint_is_chosen_by_its_accuracy_or_its_step(tmp_path, state):
    with CheckpointManager(tmp_path, max_to_keep=3) as checkpoints:
        for step, accuracy in enumerate([0.5, 0.9, 0.8]):
            checkpoints.save(step, {"params": state}, metrics_row(accuracy))
    assert {which: load_params(tmp_path, which)[0] for which in ("best", "latest", "0")} == {
        "best": 1,
        "latest": 2,
        "0": 0,
    }


def test_the_first_checkpoint_is_read_back(tmp_path, state, monkeypatch):
    """Whatever went wrong before its files were summed is noticed at once."""
    write_checksums = files.write_checksums

    def damage(folder):
        path = max(folder.rglob("d/*"), key=lambda path: path.stat().st_size)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        write_checksums(folder)

    monkeypatch.setattr(files, "write_checksums", damage)
    checkpoints = CheckpointManager(tmp_path, max_to_keep=1)
    checkpoints.save(1, state)
    with pytest.raises(UserError, match="what is saved cannot be read again: checkpoint 1"):
        checkpoints.close()


def test_the_best_of_several_seeds_is_the_best_mean(tmp_path, state):
    with CheckpointManager(tmp_path, max_to_keep=1) as checkpoints:
        for step, accuracies in enumerate([(0.9, 0.1), (0.6, 0.6), (0.5, 0.5)]):
            checkpoints.save(step, state, metrics_row(seed_statistics(accuracies)))
    assert kept_steps(tmp_path) == [1, 2]


def test_the_test_accuracy_does_not_choose_the_best(tmp_path, state):
    with CheckpointManager(tmp_path, max_to_keep=1) as checkpoints:
        for step, accuracy in enumerate([0.9, 0.5]):
            row = metrics_row(0.0) | {"test_accuracy": accuracy}
            del row["validation_accuracy"]
            checkpoints.save(step, state, row)
    assert kept_steps(tmp_path) == [1]


def test_a_checkpoint_without_metrics_is_not_the_best(tmp_path, state):
    with CheckpointManager(tmp_path, max_to_keep=1) as checkpoints:
        for step, row in enumerate([None, metrics_row(0.5), None]):
            checkpoints.save(step, state, row)
    assert kept_steps(tmp_path) == [1, 2]


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_plain_orbax_reads_a_checkpoint(tmp_path, state):
    from orbax.checkpoint import v1 as ocp

    with CheckpointManager(tmp_path, max_to_keep=1) as checkpoints:
        checkpoints.save(5, state)
    loaded = ocp.load(str(tmp_path / "5"))
    np.testing.assert_array_equal(loaded["a"], state["a"])


@pytest.mark.parametrize(
    "other",
    [
        {"a": jnp.zeros((2, 3), jnp.int32), "n": (jnp.int32(0), {})},
        {"a": jnp.zeros((3, 2), jnp.float32), "n": (jnp.int32(0), {})},
        {"b": jnp.zeros((2, 3), jnp.float32), "n": (jnp.int32(0), {})},
    ],
    ids=["dtype", "shape", "name"],
)
def test_another_kind_of_state_is_refused(tmp_path, state, other):
    with CheckpointManager(tmp_path, max_to_keep=1) as checkpoints:
        checkpoints.save(5, other)
    with (
        CheckpointManager(tmp_path, max_to_keep=1) as checkpoints,
        pytest.raises(UserError, match=r"checkpoint 5 in .* holds another kind of state"),
    ):
        checkpoints.restore(state)


def save_three(folder, state):
    """Saves checkpoints 1, 2 and 3, of different states."""
    with CheckpointManager(folder, max_to_keep=3) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state | {"a": state["a"] * step})


DAMAGES = {
    "truncated": lambda path, _: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path, _: path.write_bytes(b""),
    "flipped": lambda path, _: path.write_bytes(
        bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]
    ),
    "deleted": lambda path, _: path.unlink(),
    "swapped": lambda path, other: path.write_bytes(other.read_bytes()),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_to_any_file_is_detected(tmp_path, state, kind):
    save_three(tmp_path, state)
    newest = tmp_path / "3"
    assert files.find_corruption(newest) is None
    # Paired by their order: Orbax gives some of them random names.
    paths, others = (
        sorted(path for path in folder.rglob("*") if path.is_file())
        for folder in (newest, tmp_path / "2")
    )
    assert len(paths) == len(others) > 8
    for path, other in zip(paths, others, strict=True):
        content = path.read_bytes()
        DAMAGES[kind](path, other)
        unchanged = path.exists() and path.read_bytes() == content
        assert (files.find_corruption(newest) is None) == unchanged
        path.write_bytes(content)
    assert files.find_corruption(newest) is None


def test_damaged_checkpoints_are_quarantined_and_reported(tmp_path, state):
    save_three(tmp_path, state)
    for step in ("2", "3"):
        DAMAGES["flipped"](tmp_path / step / "state" / "manifest.ocdbt", None)
    lines = []
    with CheckpointManager(tmp_path, max_to_keep=3, log=lines.append) as checkpoints:
        restored = checkpoints.restore(state)
        assert checkpoint.tree_sha256(restored) == checkpoint.tree_sha256(state)
        checkpoints.save(3, state)
        assert checkpoints.latest == 3
    for step, line in zip((2, 3), lines, strict=True):
        target = tmp_path / f"{step}.damaged"
        assert line == (
            f"checkpoint {step} is damaged: state/manifest.ocdbt is not as it was written; it is "
            f"now quarantined in {target}"
        )
        assert (target / "state").is_dir()
    with CheckpointManager(tmp_path, max_to_keep=3, log=pytest.fail) as checkpoints:
        assert checkpoints.latest == 3


def test_if_all_checkpoints_are_damaged_nothing_is_changed(tmp_path, state):
    save_three(tmp_path, state)
    for step in (1, 2, 3):
        (tmp_path / str(step) / "state" / "_METADATA").unlink()
    before = sorted(tmp_path.rglob("*"))
    message = r"no checkpoint in .* is intact \(1: state/_METADATA is missing; 2: .*; 3: .*\)"
    with pytest.raises(UserError, match=message):
        CheckpointManager(tmp_path, max_to_keep=3)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_incomplete_deletion_is_completed(tmp_path, state):
    save_three(tmp_path, state)
    lines = []
    (tmp_path / "1" / files.CHECKSUMS).unlink()
    with CheckpointManager(tmp_path, max_to_keep=2, log=lines.append):
        assert kept_steps(tmp_path) == [2, 3]
    assert lines == ["checkpoint 1 was being deleted and is now removed"]


def test_a_deletion_begins_with_the_checksums(tmp_path, state, monkeypatch):
    save_three(tmp_path, state)
    with CheckpointManager(tmp_path, max_to_keep=2) as checkpoints:
        monkeypatch.setattr(checkpoints._orbax, "delete", lambda _: None)  # as if killed before
        checkpoints.save(4, state)
    assert not (tmp_path / "1" / files.CHECKSUMS).exists()
    assert (tmp_path / "1" / "state" / "_METADATA").exists()


def test_an_old_checkpoint_that_lacks_a_file_is_damaged(tmp_path, state):
    """It may be the best one, which is not about to be deleted."""
    save_three(tmp_path, state)
    lines = []
    (tmp_path / "1" / "state" / "_METADATA").unlink()
    with CheckpointManager(tmp_path, max_to_keep=2, log=lines.append) as checkpoints:
        assert checkpoints.latest == 3
    assert [line.partition(";")[0] for line in lines] == [
        "checkpoint 1 is damaged: state/_METADATA is missing"
    ]
    assert (tmp_path / "1.damaged").is_dir()


def test_an_unreadable_checkpoint_is_reported(tmp_path, state, monkeypatch):
    with CheckpointManager(tmp_path, max_to_keep=1) as checkpoints:
        checkpoints.save(1, {"params": state})

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(files, "file_sha256", refuse)
    with pytest.raises(UserError, match=r"the latest checkpoint in .* cannot be read \(.*denied"):
        checkpoint.load_params(tmp_path)


def test_an_incomplete_save_is_removed(tmp_path, state):
    save_three(tmp_path, state)
    (tmp_path / "3" / files.CHECKSUMS).unlink()
    (tmp_path / checkpoint.SAVING).write_text("3")
    with CheckpointManager(tmp_path, max_to_keep=2, log=pytest.fail) as checkpoints:
        assert checkpoints.latest == 2
    shutil.rmtree(tmp_path / "1")
    (tmp_path / "2" / files.CHECKSUMS).unlink()
    with pytest.raises(UserError, match="2: SHA256SUMS is missing"):
        CheckpointManager(tmp_path, max_to_keep=2)
    (tmp_path / checkpoint.SAVING).write_text("2")  # the first checkpoint was being saved
    with CheckpointManager(tmp_path, max_to_keep=2, log=pytest.fail) as checkpoints:
        assert checkpoints.latest is None
        checkpoints.save(2, state)
    assert [path.name for path in tmp_path.iterdir()] == ["2"]


def test_an_intact_checkpoint_of_another_step_is_refused(tmp_path, state):
    save_three(tmp_path, state | {"step": jnp.int32(1)})
    shutil.rmtree(tmp_path / "3")
    shutil.copytree(tmp_path / "2", tmp_path / "3")
    with (
        CheckpointManager(tmp_path, max_to_keep=3) as checkpoints,
        pytest.raises(UserError, match=r"checkpoint 3 in .* was not restored as it was saved"),
    ):
        checkpoints.restore(state | {"step": jnp.int32(1)})


def test_a_checkpoint_is_on_disk_before_an_older_one_is_deleted(tmp_path, state, monkeypatch):
    events = []
    fsync, delete = os.fsync, CheckpointManager._delete

    def record_fsync(descriptor):
        events.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    def record_delete(self, step):
        events.append(step)
        delete(self, step)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(CheckpointManager, "_delete", record_delete)
    with CheckpointManager(tmp_path, max_to_keep=1) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.save(2, state)
    before = events[: events.index(1)]
    entries = {path for path in (tmp_path / "2").rglob("*") if path.name != files.CHECKSUMS}
    assert entries | {tmp_path / "2", tmp_path} <= set(before)
    assert tmp_path / "2" / f"{files.CHECKSUMS}.tmp" in before


def test_a_deletion_is_marked_on_disk_before_files_are_lost(tmp_path, state, monkeypatch):
    """Else what remains after a power failure would look damaged."""
    contents, fsync = [], os.fsync

    def record_fsync(descriptor):
        if Path(f"/proc/self/fd/{descriptor}").readlink() == tmp_path / "1":
            contents.append({path.name for path in (tmp_path / "1").iterdir()})
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record_fsync)
    with CheckpointManager(tmp_path, max_to_keep=1) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.save(2, state)
    complete, deleted = contents[-2:]
    assert complete - deleted == {files.CHECKSUMS}


def test_temporary_folders_of_a_killed_process_are_removed(tmp_path, state):
    with CheckpointManager(tmp_path, max_to_keep=2) as checkpoints:
        checkpoints.save(5, state)
    for step in (6, 7):
        (tmp_path / f"{step}.orbax-checkpoint-tmp").mkdir()
    with CheckpointManager(tmp_path, max_to_keep=2) as checkpoints:
        assert checkpoints.latest == 5
        checkpoints.save(6, state)
    assert kept_steps(tmp_path) == [5, 6]


def test_the_hash_of_a_tree_depends_on_every_bit_name_shape_and_dtype(state):
    trees = (
        state,
        state | {"a": state["a"].at[1, 2].add(1e-6)},
        state | {"a": state["a"].reshape((3, 2))},
        state | {"n": (jnp.uint32(7), {})},
        {"b": state["a"], "n": state["n"]},
    )
    hashes = set(map(checkpoint.tree_sha256, trees))
    assert len(hashes) == 5
    assert checkpoint.tree_sha256(dict(reversed(state.items()))) in hashes


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            'UNAVAILABLE: Error writing "a/d" in "/tmp/w/": Failed to write: "/tmp/w/d": '
            "Input/output error [os_error_code='5'] [source locations='file.cc:1']",
            "Input/output error",
        ),
        (
            'RESOURCE_EXHAUSTED: Error opening "zarr3": Failed to open: "/tmp/w/manifest": '
            "Too many open files [tensorstore_spec='{\"a\":[0]}}'] [os_error_code='24']",
            "Too many open files",
        ),
        ("[Errno 28] No space left on device", "[Errno 28] No space left on device"),
    ],
)
def test_of_an_error_of_orbax_the_system_message_is_told(text, reason):
    assert checkpoint._reason(ValueError(text)) == reason


def test_a_failed_save_leaves_no_noise(tmp_path, monkeypatch):
    """Threads of TensorStore that find the event loop closed, and coroutines that never ran."""
    heard: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", heard.append)
    checkpoint._silence_orbax.cache_clear()
    with warnings.catch_warnings():
        CheckpointManager(tmp_path, max_to_keep=1).close()
        warnings.warn("coroutine 'cancellable' was never awaited", RuntimeWarning, stacklevel=1)
    other: Any = SimpleNamespace(exc_value=RuntimeError("something else"))
    closed: Any = SimpleNamespace(exc_value=RuntimeError("Event loop is closed"))
    for raised in (closed, other):
        sys.unraisablehook(raised)
    assert heard == [other]
