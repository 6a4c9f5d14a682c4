"""Saving, restoring and what is kept."""

import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_flax import checkpoint, sums
from mnist_flax.checkpoint import Checkpoints
from mnist_flax.config import UserError


@pytest.fixture
def state():
    return {"a": jnp.arange(6, dtype=jnp.float32).reshape((2, 3)), "n": (jnp.int32(7), {})}


def kept_steps(folder):
    return sorted(int(path.name) for path in folder.iterdir())


def test_restores_the_latest_bit_for_bit(tmp_path, state):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.restore(state) is None
        for step in (1, 2, 3):
            saved = jax.tree.map(lambda leaf, step=step: leaf + step, state)
            checkpoints.save(step, saved)
            checkpoints.save(step, state)  # already there: changes nothing
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        restored = checkpoints.restore(state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert checkpoint.digest(restored) == checkpoint.digest(saved)
    assert kept_steps(tmp_path) == [2, 3]


def test_keeps_the_best_by_validation(tmp_path, state):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        for step, accuracy in enumerate([0.5, 0.9, 0.8, 0.7]):
            checkpoints.save(step, state, {"validation_accuracy": accuracy})
    assert kept_steps(tmp_path) == [1, 3]


def test_the_test_set_does_not_choose(tmp_path, state):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        for step, accuracy in enumerate([0.9, 0.5]):
            checkpoints.save(step, state, {"test_accuracy": accuracy})
    assert kept_steps(tmp_path) == [1]


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_plain_orbax_reads_it(tmp_path, state):
    from orbax.checkpoint import v1 as ocp

    with Checkpoints(tmp_path, keep=1) as checkpoints:
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
def test_refuses_another_kind_of_state(tmp_path, state, other):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(5, other)
    with (
        Checkpoints(tmp_path, keep=1) as checkpoints,
        pytest.raises(UserError, match=r"checkpoint 5 in .* holds another kind of state"),
    ):
        checkpoints.restore(state)


def fill(folder, state):
    """Checkpoints 1, 2 and 3, of different states."""
    with Checkpoints(folder, keep=3) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state | {"a": state["a"] * step})


DAMAGES = {
    "truncated": lambda path, _: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path, _: path.write_bytes(b""),
    "flipped": lambda path, _: path.write_bytes(
        bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]
    ),
    "deleted": lambda path, _: path.unlink(),
    "another's": lambda path, other: path.write_bytes(other.read_bytes()),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_in_any_file_is_noticed(tmp_path, state, kind):
    fill(tmp_path / "good", state)
    newest = tmp_path / "good" / "3"
    assert sums.damage(newest) is None
    # By their order: Orbax gives some of them random names.
    files, others = (
        sorted(path for path in folder.rglob("*") if path.is_file())
        for folder in (newest, tmp_path / "good" / "2")
    )
    assert len(files) == len(others) > 8
    for file, other in zip(files, others, strict=True):
        content = file.read_bytes()
        DAMAGES[kind](file, other)
        assert (sums.damage(newest) is None) == (file.exists() and file.read_bytes() == content)
        file.write_bytes(content)
    assert sums.damage(newest) is None


def test_goes_back_to_the_newest_intact_one_and_says_so(tmp_path, state):
    fill(tmp_path, state)
    for step in ("2", "3"):
        DAMAGES["flipped"](tmp_path / step / "state" / "manifest.ocdbt", None)
    lines = []
    with Checkpoints(tmp_path, keep=3, log=lines.append) as checkpoints:
        restored = checkpoints.restore(state)
        assert checkpoint.digest(restored) == checkpoint.digest(state)
        checkpoints.save(3, state)
        assert checkpoints.latest == 3
    for step, line in zip((2, 3), lines, strict=True):
        assert line == (
            f"checkpoint {step} is damaged: state/manifest.ocdbt is not as it was written; it is "
            f"set aside as {tmp_path / f'{step}.damaged'}"
        )
        assert (tmp_path / f"{step}.damaged" / "state").is_dir()
    with Checkpoints(tmp_path, keep=3, log=pytest.fail) as checkpoints:
        assert checkpoints.latest == 3


def test_where_none_is_intact_nothing_is_touched(tmp_path, state):
    fill(tmp_path, state)
    for step in (1, 2, 3):
        (tmp_path / str(step) / "state" / "_METADATA").unlink()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        UserError, match=r"no checkpoint in .* is intact \(1: state/_METADATA is mis"
    ):
        Checkpoints(tmp_path, keep=3)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_was_being_deleted_is_no_damage(tmp_path, state):
    fill(tmp_path, state)
    told = []
    (tmp_path / "1" / sums.NAME).unlink()
    with Checkpoints(tmp_path, keep=2, log=told.append):
        assert kept_steps(tmp_path) == [2, 3]
    assert told == ["checkpoint 1 was being deleted, and is gone now"]


def test_a_deletion_begins_with_the_sums(tmp_path, state, monkeypatch):
    fill(tmp_path, state)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        monkeypatch.setattr(checkpoints._orbax, "delete", lambda _: None)  # killed before that
        checkpoints.save(4, state)
    assert not (tmp_path / "1" / sums.NAME).exists()
    assert (tmp_path / "1" / "state" / "_METADATA").exists()


def test_an_old_one_that_lacks_a_file_is_damaged(tmp_path, state):
    fill(tmp_path, state)
    told = []
    (tmp_path / "1" / "state" / "_METADATA").unlink()  # the best, say
    with Checkpoints(tmp_path, keep=2, log=told.append) as checkpoints:
        assert checkpoints.latest == 3
    assert [line.partition(";")[0] for line in told] == [
        "checkpoint 1 is damaged: state/_METADATA is missing"
    ]
    assert (tmp_path / "1.damaged").is_dir()


def test_one_that_cannot_be_read_is_told(tmp_path, state, monkeypatch):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, {"params": state})

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(sums, "_sha256", refuse)
    with pytest.raises(UserError, match=r"the latest checkpoint in .* cannot be read \(.*denied"):
        checkpoint.load_params(tmp_path)


def test_what_was_being_saved_is_no_damage(tmp_path, state):
    fill(tmp_path, state)
    (tmp_path / "3" / sums.NAME).unlink()
    (tmp_path / checkpoint.SAVING).write_text("3")
    with Checkpoints(tmp_path, keep=2, log=pytest.fail) as checkpoints:
        assert checkpoints.latest == 2
    shutil.rmtree(tmp_path / "1")
    (tmp_path / "2" / sums.NAME).unlink()
    with pytest.raises(UserError, match="2: SHA256SUMS is missing"):
        Checkpoints(tmp_path, keep=2)
    (tmp_path / checkpoint.SAVING).write_text("2")  # the very first was being saved
    with Checkpoints(tmp_path, keep=2, log=pytest.fail) as checkpoints:
        assert checkpoints.latest is None
        checkpoints.save(2, state)
    assert [path.name for path in tmp_path.iterdir()] == ["2"]


def test_another_checkpoint_in_its_place_is_noticed(tmp_path, state):
    fill(tmp_path, state | {"step": jnp.int32(1)})
    shutil.rmtree(tmp_path / "3")
    shutil.copytree(tmp_path / "2", tmp_path / "3")
    with (
        Checkpoints(tmp_path, keep=3) as checkpoints,
        pytest.raises(UserError, match=r"checkpoint 3 in .* was not restored as it was saved"),
    ):
        checkpoints.restore(state | {"step": jnp.int32(1)})


def test_a_checkpoint_is_on_disk_before_an_older_one_goes(tmp_path, state, monkeypatch):
    done = []
    sync, delete = os.fsync, Checkpoints._delete

    def note_sync(descriptor):
        done.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        sync(descriptor)

    def note_delete(self, step):
        done.append(step)
        delete(self, step)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Checkpoints, "_delete", note_delete)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.save(2, state)
    before = done[: done.index(1)]
    entries = {path for path in (tmp_path / "2").rglob("*") if path.name != sums.NAME}
    assert entries | {tmp_path / "2", tmp_path} <= set(before)
    assert tmp_path / "2" / f"{sums.NAME}.tmp" in before


def test_removes_what_a_killed_process_left(tmp_path, state):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(5, state)
    for step in (6, 7):
        (tmp_path / f"{step}.orbax-checkpoint-tmp").mkdir()
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest == 5
        checkpoints.save(6, state)
    assert kept_steps(tmp_path) == [5, 6]


def test_digest_depends_on_every_bit_name_and_dtype(state):
    digests = {
        checkpoint.digest(tree)
        for tree in (
            state,
            state | {"a": state["a"].at[1, 2].add(1e-6)},
            state | {"a": state["a"].reshape((3, 2))},
            state | {"n": (jnp.uint32(7), {})},
            {"b": state["a"], "n": state["n"]},
        )
    }
    assert len(digests) == 5
    assert checkpoint.digest(dict(reversed(state.items()))) in digests
