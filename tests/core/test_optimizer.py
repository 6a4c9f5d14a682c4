"""The learning rate schedule, and Muon against its definition and against optax."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from mnist_flax.core import model
from mnist_flax.core.config import Config
from mnist_flax.core.optimizer import (
    NEWTON_SCHULZ,
    ROUNDS,
    learning_rate_schedule,
    make_optimizer,
    orthogonalize,
)

SHAPES = [(3, 3, 64, 64), (3, 3, 1, 64), (64, 64), (64, 32), (32, 10), (4, 30)]


def test_the_triangular_schedule_rises_to_the_peak_and_falls_toward_zero():
    config = Config(dataset="digits", epochs=50, learning_rate=0.5, warmup_fraction=0.2)
    rates = np.array([learning_rate_schedule(step, config) for step in range(config.total_steps)])
    peak = rates.argmax()
    assert rates.max() == pytest.approx(0.5, rel=1e-7)
    assert abs(peak - 0.2 * config.total_steps) <= 1
    assert rates[0] > 0
    assert rates[-1] > 0
    assert rates[-1] < 0.01
    np.testing.assert_allclose(np.diff(rates[:peak]), rates[0], rtol=1e-3)
    np.testing.assert_allclose(np.diff(rates[peak + 1 :]), -rates[-1], rtol=1e-3)
    constant = dataclasses.replace(config, schedule="constant")
    assert {float(learning_rate_schedule(step, constant)) for step in (0, 300, 599)} == {0.5}


@pytest.mark.parametrize("warmup_fraction", [0.0, 1.0])
def test_the_triangular_schedule_may_only_fall_or_only_rise(warmup_fraction):
    config = Config(dataset="digits", learning_rate=0.5, warmup_fraction=warmup_fraction)
    rates = np.array([learning_rate_schedule(step, config) for step in range(config.total_steps)])
    ordered = np.sort(rates) if warmup_fraction else np.sort(rates)[::-1]
    np.testing.assert_array_equal(rates, ordered)
    assert rates.max() == pytest.approx(0.5, rel=1e-7)
    assert rates.min() > 0


def plain_newton_schulz(update):
    """Newton-Schulz as published by the author of Muon, in float64."""
    matrix = np.asarray(update, np.float64).reshape((-1, update.shape[-1])).T
    scale = max(1, matrix.shape[0] / matrix.shape[1]) ** 0.5
    a, b, c = NEWTON_SCHULZ
    tall = matrix.shape[0] > matrix.shape[1]
    matrix = matrix.T if tall else matrix
    matrix = matrix / np.linalg.norm(matrix)
    for _ in range(ROUNDS):
        gram = matrix @ matrix.T
        matrix = a * matrix + (b * gram + c * gram @ gram) @ matrix
    matrix = matrix.T if tall else matrix
    return (scale * matrix).T.reshape(update.shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalize_is_newton_schulz(key, shape):
    scales = np.linspace(0.1, 1, shape[-1], dtype=np.float32)
    update = np.asarray(jax.random.normal(key, shape)) * scales
    result = jax.jit(orthogonalize)(update)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, plain_newton_schulz(update), atol=2e-5)
    values = np.linalg.svd(np.asarray(result).reshape((-1, shape[-1])), compute_uv=False)
    scale = max(1, shape[-1] / (update.size / shape[-1])) ** 0.5
    assert 0.4 < values.min() / scale <= values.max() / scale < 1.25


def muon_config(weight_decay=0.05):
    return Config(
        dataset="digits",
        optimizer="muon",
        schedule="constant",
        learning_rate=1e-3,
        weight_decay=weight_decay,
    )


def test_a_zero_update_stays_zero():
    assert not orthogonalize(jnp.zeros((64, 32))).any()


@pytest.mark.slow
def test_muon_updates_kernels_as_optax_does(key):
    """Optax corrects the bias of its momentum, so the first steps differ a little."""
    config = muon_config(weight_decay=0.5)
    ours = make_optimizer(config)
    theirs = optax.contrib.muon(
        1e-3,
        weight_decay=0.5,
        muon_weight_dimension_numbers=lambda params: jax.tree.map(
            lambda x: (
                optax.contrib.MuonDimensionNumbers(tuple(range(x.ndim - 1)), x.ndim - 1)
                if x.ndim > 1
                else None
            ),
            params,
        ),
    )
    params = {name: model.init(key, Config())[name] for name in ("Conv_1", "Dense_1")}

    def last_update(transformation):
        def step(index, carry):
            step_key = jax.random.fold_in(key, index)
            gradients = jax.tree.map(
                lambda x: 0.3 * jax.random.normal(step_key, x.shape) + x, params
            )
            with jax.numpy_dtype_promotion("standard"):
                return transformation.update(gradients, carry[1], params)

        start = (jax.tree.map(jnp.zeros_like, params), transformation.init(params))
        return jax.jit(lambda: jax.lax.fori_loop(0, 100, step, start))()[0]

    ours, theirs = last_update(ours), last_update(theirs)
    for layer in params:
        update, expected = ours[layer]["kernel"], theirs[layer]["kernel"]
        assert jnp.linalg.norm(update - expected) < 0.03 * jnp.linalg.norm(expected)


def test_muon_updates_biases_by_adam_without_weight_decay(key):
    config = muon_config()
    params = {"Dense_0": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}}
    gradients = jax.tree.map(lambda x: jax.random.normal(key, x.shape), params)
    adam = optax.adam(1e-3, eps=config.adam_epsilon)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = make_optimizer(config).update(
            gradients, make_optimizer(config).init(params), params
        )
        expected, _ = adam.update(gradients, adam.init(params))
    ours, theirs = (np.asarray(tree["Dense_0"]["bias"]) for tree in (updates, expected))  # pyright: ignore
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
