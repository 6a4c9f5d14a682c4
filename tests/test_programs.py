"""The compiled programs against the functions that they are made of."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_flax import devices, inference, programs, seeds, train
from mnist_flax.config import Config, UserError
from mnist_flax.data import load_dataset
from mnist_flax.programs import compile_programs
from tests.conftest import to_device


def test_programs_do_what_the_functions_do():
    config = Config(dataset="digits", validation_fraction=0.25, seed=3)
    dataset = load_dataset("digits", validation_fraction=0.25)
    compiled = compile_programs(dataset, config)
    key = jax.random.key(3)

    state, plain = compiled.create_state(), train.create_state(key, config=config)
    for like, ours, other in zip(*map(jax.tree.leaves, (compiled.like, state, plain)), strict=True):
        assert (like.shape, like.dtype) == (ours.shape, ours.dtype)
        np.testing.assert_allclose(ours, other, rtol=1e-6)
    order = compiled.epoch_order(1)
    np.testing.assert_array_equal(order, train.epoch_order(key, jnp.int32(1), config))

    arrays = to_device(dataset.train)
    state = compiled.train_steps(state, order, 3)
    plain = train.train_steps(plain, *arrays, order, key, jnp.int32(3), config=config)
    assert int(state.step) == 3
    np.testing.assert_allclose(state.epoch_loss, plain.epoch_loss, rtol=1e-5)

    scores = compiled.evaluate(state)
    assert set(scores) == {
        "test_loss", "test_accuracy", "validation_loss", "validation_accuracy"
    }  # fmt: skip
    for name, split in (("test", dataset.test), ("validation", dataset.validation)):
        logits = inference.predict_logits(state.params, jnp.asarray(split[0]), config=config)
        expected = inference.scores(np.asarray(logits)[None], split[1])
        np.testing.assert_allclose(scores[f"{name}_loss"], expected["loss"], rtol=1e-5)
        np.testing.assert_array_equal(scores[f"{name}_accuracy"], expected["accuracy"])


SEEDS = Config(dataset="digits", num_seeds=3, seed=5)


def train_a_little(dataset, config):
    """The state after 5 steps and 3 more in the next epoch, and its scores."""
    compiled = compile_programs(dataset, config)
    state = compiled.train_steps(compiled.create_state(), compiled.epoch_order(0), 5)
    state = compiled.train_steps(state, compiled.epoch_order(1), 3)
    return state, compiled.evaluate(state)


def assert_same_up_to_rounding(ours, theirs):
    """Two different programs' params of the same seeds, after the same few steps.

    They round differently. While biases are 0, rounding decides ReLU's derivative on blank
    places (see `_winograd`), and the first step of Adam is as long for a gradient of nearly
    nothing: so single biases may differ by a step. Kernels differ by up to 0.2 % of their
    norm; those of another seed by more than 100 %.
    """
    for layer in ours:
        mine, other = (np.asarray(tree[layer]["kernel"]) for tree in (ours, theirs))
        assert np.linalg.norm(mine - other) < 0.005 * np.linalg.norm(other)


def test_each_of_many_seeds_is_its_own_run(digits):
    """A seed among others against the same seed alone."""
    states, scores = train_a_little(digits, SEEDS)
    for index, seed in enumerate((5, 6, 7)):
        config = dataclasses.replace(SEEDS, num_seeds=1, seed=seed)
        alone, its_scores = train_a_little(digits, config)
        mine = jax.tree.map(lambda leaf, index=index: leaf[index], states.params)
        assert_same_up_to_rounding(mine, alone.params)
        loss, its_loss = scores["test_loss"][index], its_scores["test_loss"][0]
        np.testing.assert_allclose(loss, its_loss, rtol=1e-3)
    assert len(set(scores["test_loss"])) == 3


def test_a_seed_has_the_same_bits_whichever_others_run_beside_it(digits):
    first, _ = train_a_little(digits, SEEDS)
    second, _ = train_a_little(digits, dataclasses.replace(SEEDS, seed=7))
    for ours, theirs in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(ours[2], theirs[0])


@pytest.mark.parametrize("at_once", [2, 64])
def test_seeds_side_by_side_are_those_one_after_the_other(digits, monkeypatch, at_once):
    """An accelerator computes them side by side, so many at once that memory allows."""
    expected, scores = train_a_little(digits, SEEDS)
    monkeypatch.setattr(devices, "on_cpu", lambda: False)
    monkeypatch.setattr(seeds, "SEEDS_AT_ONCE", at_once)
    found, other_scores = train_a_little(digits, SEEDS)
    assert_same_up_to_rounding(found.params, expected.params)
    np.testing.assert_allclose(scores["test_loss"], other_scores["test_loss"], rtol=1e-3)


def test_many_seeds_that_cannot_fit_are_refused_before_they_are_allocated(digits, monkeypatch):
    monkeypatch.setattr(programs, "_free_memory", lambda: 64 * 2**20)
    with pytest.raises(UserError, match=r"needs \d.*GiB.*would fit") as refusal:
        compile_programs(digits, dataclasses.replace(SEEDS, num_seeds=1000))
    fitting = int(str(refusal.value).split()[-3].replace(",", ""))
    compile_programs(digits, dataclasses.replace(SEEDS, num_seeds=fitting // 2))


def test_only_the_splits_that_there_are_get_scored(digits):
    config = dataclasses.replace(Config(), dataset="digits")
    compiled = compile_programs(digits, config)
    assert set(compiled.evaluate(compiled.create_state())) == {"test_loss", "test_accuracy"}
