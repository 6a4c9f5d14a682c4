"""Saving, restoring and what is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_flax import checkpoint
from mnist_flax.config import UserError


@pytest.fixture
def state():
    return {"a": jnp.arange(6, dtype=jnp.float32).reshape((2, 3)), "n": (jnp.int32(7), {})}


def kept_steps(folder):
    return sorted(int(path.name) for path in folder.iterdir())


def test_restores_the_latest_bit_for_bit(tmp_path, state):
    with checkpoint.open_checkpoints(tmp_path, keep=2) as checkpointer:
        assert checkpoint.restore(checkpointer, state) is None
        for step in (1, 2, 3):
            saved = jax.tree.map(lambda leaf, step=step: leaf + step, state)
            checkpoint.save(checkpointer, step, saved)
            checkpoint.save(checkpointer, step, state)  # already there: changes nothing
    with checkpoint.open_checkpoints(tmp_path, keep=2) as checkpointer:
        restored = checkpoint.restore(checkpointer, state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert checkpoint.digest(restored) == checkpoint.digest(saved)
    assert kept_steps(tmp_path) == [2, 3]


def test_keeps_the_best_by_validation(tmp_path, state):
    with checkpoint.open_checkpoints(tmp_path, keep=1) as checkpointer:
        for step, accuracy in enumerate([0.5, 0.9, 0.8, 0.7]):
            checkpoint.save(checkpointer, step, state, {"validation_accuracy": accuracy})
    assert kept_steps(tmp_path) == [1, 3]


def test_the_test_set_does_not_choose(tmp_path, state):
    with checkpoint.open_checkpoints(tmp_path, keep=1) as checkpointer:
        for step, accuracy in enumerate([0.9, 0.5]):
            checkpoint.save(checkpointer, step, state, {"test_accuracy": accuracy})
    assert kept_steps(tmp_path) == [1]


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_plain_orbax_reads_it(tmp_path, state):
    from orbax.checkpoint import v1 as ocp

    with checkpoint.open_checkpoints(tmp_path, keep=1) as checkpointer:
        checkpoint.save(checkpointer, 5, state)
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
    with checkpoint.open_checkpoints(tmp_path, keep=1) as checkpointer:
        checkpoint.save(checkpointer, 5, other)
    with (
        checkpoint.open_checkpoints(tmp_path, keep=1) as checkpointer,
        pytest.raises(
            UserError, match=r"checkpoint 5 in .* is damaged, or holds another kind of state"
        ),
    ):
        checkpoint.restore(checkpointer, state)


# When a read fails, Orbax may close its event loop under other reads that are under way.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", ["_METADATA", "manifest.ocdbt"])
def test_refuses_a_damaged_one(tmp_path, state, name):
    with checkpoint.open_checkpoints(tmp_path, keep=1) as checkpointer:
        checkpoint.save(checkpointer, 5, state)
    (tmp_path / "5" / "state" / name).write_text("{")
    with (
        checkpoint.open_checkpoints(tmp_path, keep=1) as checkpointer,
        pytest.raises(UserError, match=r"checkpoint 5 in .* (is damaged|cannot be read)"),
    ):
        checkpoint.restore(checkpointer, state)


def test_removes_what_a_killed_process_left(tmp_path, state):
    with checkpoint.open_checkpoints(tmp_path, keep=2) as checkpointer:
        checkpoint.save(checkpointer, 5, state)
    for step in (6, 7):
        (tmp_path / f"{step}.orbax-checkpoint-tmp").mkdir()
    with checkpoint.open_checkpoints(tmp_path, keep=2) as checkpointer:
        assert checkpointer.latest is not None
        assert checkpointer.latest.step == 5
        checkpoint.save(checkpointer, 6, state)
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
