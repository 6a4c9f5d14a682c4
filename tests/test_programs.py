"""The compiled programs against the functions that they are made of."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from mnist_flax import train
from mnist_flax.config import Config
from mnist_flax.data import load_dataset
from mnist_flax.programs import compile_programs
from tests.conftest import to_device


def test_programs_do_what_the_functions_do():
    config = Config(dataset="digits", validation_fraction=0.25, seed=3)
    dataset = load_dataset("digits", validation_fraction=0.25)
    programs = compile_programs(dataset, config)
    key = jax.random.key(3)

    state, plain = programs.create_state(), train.create_state(key, config=config)
    for like, ours, other in zip(*map(jax.tree.leaves, (programs.like, state, plain)), strict=True):
        assert (like.shape, like.dtype) == (ours.shape, ours.dtype)
        np.testing.assert_allclose(ours, other, rtol=1e-6)
    order = programs.epoch_order(1)
    np.testing.assert_array_equal(order, train.epoch_order(key, jnp.int32(1), config))

    arrays = to_device(dataset.train)
    state = programs.train_steps(state, order, 3)
    plain = train.train_steps(plain, *arrays, order, key, jnp.int32(3), config=config)
    assert int(state.step) == 3
    np.testing.assert_allclose(state.epoch_loss, plain.epoch_loss, rtol=1e-5)

    scores = programs.evaluate(state)
    assert set(scores) == {
        "test_loss", "test_accuracy", "validation_loss", "validation_accuracy"
    }  # fmt: skip
    for name, split in (("test", dataset.test), ("validation", dataset.validation)):
        sums = train.evaluate(state.params, *to_device(split), config=config)
        count = len(split[0])
        np.testing.assert_allclose(scores[f"{name}_loss"], sums["loss"] / count, rtol=1e-5)
        np.testing.assert_allclose(scores[f"{name}_accuracy"], sums["correct"] / count, rtol=1e-6)


def test_only_the_splits_that_there_are_get_scored(digits):
    config = dataclasses.replace(Config(), dataset="digits")
    programs = compile_programs(digits, config)
    assert set(programs.evaluate(programs.create_state())) == {"test_loss", "test_accuracy"}
