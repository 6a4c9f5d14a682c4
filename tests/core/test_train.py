"""The training functions: golden values, determinism, and that no image is lost."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mnist_flax.core import batches, model, sharding, train
from mnist_flax.core.augment import center_crop
from mnist_flax.core.config import Config
from mnist_flax.core.conv_pool import conv_pool_lax, default_conv_pool
from mnist_flax.core.inference import cross_entropy, predict_logits
from mnist_flax.engine.checkpoint import tree_sha256
from tests.conftest import reference_config, to_device, with_biases


def create(key, config):
    return train.create_state(key, config=config)


def first_batch(dataset, size):
    return batches.gather_batch(*to_device(dataset.train), jnp.arange(size, dtype=jnp.int32))


# Loss, gradient norm and update norm of the first step, seed 0, biases 0.01, on the first
# images of the bundled digits. Only a change that is meant to alter the mathematics of the network,
# its initial values, the augmentation or the optimizer may change them; say so in the commit.
GOLDEN = {
    "default": (Config(dataset="digits"), 2.3078651, 0.2534478, 0.06919342),
    "muon": (
        Config(dataset="digits", optimizer="muon", learning_rate=1e-2),
        *(2.3078651, 0.2534478, 0.009387022),
    ),
    "reference": (reference_config(dataset="digits"), 2.3034985, 0.25316244, 0.26294147),
}


@pytest.mark.parametrize(("config", "loss", "gradient_norm", "update_norm"), GOLDEN.values())
def test_the_first_step_has_the_golden_values(
    digits, key, config, loss, gradient_norm, update_norm
):
    step = jax.jit(train.train_step, static_argnames="config")
    state = create(key, config)
    state = state.replace(params=with_biases(state.params))
    _, metrics = step(state, first_batch(digits, config.batch_size), key, config=config)
    values = [float(metrics[name]) for name in ("loss", "gradient_norm", "update_norm")]
    np.testing.assert_allclose(values, [loss, gradient_norm, update_norm], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("decay", [pytest.param(0.0, marks=pytest.mark.nightly), 0.5])
def test_a_step_is_plain_adam_on_the_mean_loss(digits, key, decay):
    """Compares with the same step without micro-batches, weights and sums."""
    config = reference_config(
        dataset="digits", input_size=22, batch_size=128, adam_epsilon=1e-8, weight_decay=decay
    )
    state = create(key, config)
    batch = first_batch(digits, config.batch_size)

    def mean_loss(params):
        logits = model.apply(params, batch["images"][:, 3:25, 3:25].astype(jnp.float32) / 255)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"]).mean()

    loss, gradients = jax.jit(jax.value_and_grad(mean_loss))(state.params)
    adam = optax.adam(1e-3)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = jax.jit(adam.update)(gradients, jax.jit(adam.init)(state.params))
    expected = jax.tree.map(
        lambda p, u: p + u - np.float32(1e-3 * decay) * p, *jax.device_get((state.params, updates))
    )
    step = jax.jit(train.train_step, static_argnames="config")
    after, metrics = step(state, batch, key, config=config)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(metrics["gradient_norm"], optax.tree.norm(gradients), rtol=1e-5)
    # Adam's first update is about the sign of the gradient, so it is compared where that is clear.
    trees = jax.device_get((after.params, expected, gradients))
    for ours, plain, gradient in zip(*map(jax.tree.leaves, trees), strict=True):
        clear = np.abs(gradient) > 1e-5
        assert clear.any()
        np.testing.assert_allclose(ours[clear], plain[clear], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_the_accelerator_implementation_gives_the_same_gradients(digits, key, config, monkeypatch):
    """A TPU's is XLA's convolution, and the batch is not divided into micro-batches."""
    params = with_biases(create(key, config).params)
    batch = first_batch(digits, 100)
    images = center_crop(batch["images"], config)

    def loss_and_gradients():
        # A new function each time, so that JAX traces it again.
        value_and_grad = jax.value_and_grad(train.weighted_loss_sum)
        accumulate = functools.partial(sharding.accumulate_gradients, value_and_grad)
        return jax.jit(accumulate)(params, images, batch["labels"], batch["weights"])

    loss, gradients = loss_and_gradients()
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert default_conv_pool() is conv_pool_lax
    other_loss, other_gradients = loss_and_gradients()
    np.testing.assert_allclose(loss, other_loss, rtol=1e-6)
    leaves = map(jax.tree.leaves, (gradients, other_gradients))
    for ours, other in zip(*leaves, strict=True):
        assert jnp.linalg.norm(ours - other) <= 1e-4 * jnp.linalg.norm(other)


# 12 small steps an epoch; several tests share its programs.
SMALL = Config(dataset="digits", validation_fraction=0.8, batch_size=24)


def take_steps(config, dataset, key, state, *counts):
    arrays = [array[: config.train_examples] for array in to_device(dataset.train)]
    for count in counts:
        order = batches.epoch_order(key, state.step // config.steps_per_epoch, config)
        state = train.train_steps(state, order, key, *arrays, jnp.int32(count), config=config)
    return state


def test_the_same_key_gives_the_same_bits(digits, key):
    def digest(key):
        return tree_sha256(take_steps(SMALL, digits, key, create(key, SMALL), 6))

    assert digest(key) == digest(key)
    assert digest(jax.random.key(1)) != digest(key)


def test_the_steps_take_the_batches_in_the_order_of_the_epoch(digits, key):
    order = batches.epoch_order(key, jnp.int32(0), SMALL)
    step = jax.jit(train.train_step, static_argnames="config")
    state, total = create(key, SMALL), 0.0
    for indices in order[:2]:
        batch = batches.gather_batch(*to_device(digits.train), indices)
        state, metrics = step(state, batch, key, config=SMALL)
        total += float(metrics["loss"]) * SMALL.batch_size
    two = take_steps(SMALL, digits, key, create(key, SMALL), 2)
    np.testing.assert_allclose(float(two.epoch_loss), total, rtol=1e-4)


def test_the_network_is_the_moving_average_of_the_parameters(digits, key):
    """Recomputes in float64 what the state holds, from the parameters after each step."""
    averaged = dataclasses.replace(SMALL, ema_fraction=0.25)  # a time constant of 15 of 60 steps
    plain, state = create(key, SMALL), create(key, averaged)
    mean = jax.tree.map(lambda x: 0 * x, jax.device_get(plain.params))
    for step in range(SMALL.steps_per_epoch + 8):
        plain = take_steps(SMALL, digits, key, plain, 1)
        state = take_steps(averaged, digits, key, state, 1)
        weight = 1 / min(0.25 * SMALL.total_steps, step + 1)
        mean = jax.tree.map(
            lambda old, new, weight=weight: old + weight * (np.float64(new) - old),
            *(mean, jax.device_get(plain.params)),
        )
    assert tree_sha256(state.raw_params) == tree_sha256(plain.params)
    assert plain.raw_params is None
    for ours, expected in zip(*map(jax.tree.leaves, (state.params, mean)), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)


def test_dividing_an_epoch_into_parts_changes_no_bit(digits, key):
    assert SMALL.steps_per_epoch == 12
    whole = take_steps(SMALL, digits, key, create(key, SMALL), 12, 3)
    parts = take_steps(SMALL, digits, key, create(key, SMALL), 1, 4, 7, 1, 2)
    assert tree_sha256(whole) == tree_sha256(parts)
    assert int(parts.step) == 15


@pytest.mark.slow
def test_the_epoch_loss_covers_this_epoch_only(digits, key):
    """With a negligible learning rate, the loss of each epoch is that of the initial network."""
    config = Config(
        dataset="digits",
        validation_fraction=0.8,
        shift_pixels=0,
        schedule="constant",
        learning_rate=1e-30,
    )
    images, labels = (x[: config.train_examples] for x in to_device(digits.train))
    state = create(key, config)
    logits = np.asarray(predict_logits(state.params, images, config=config))
    expected = cross_entropy(logits, np.asarray(labels)).sum()
    for _ in range(2):
        state = take_steps(config, digits, key, state, config.steps_per_epoch)
        np.testing.assert_allclose(float(state.epoch_loss), expected, rtol=1e-5)


def test_the_last_step_averages_over_the_remaining_images(digits, key):
    """A batch of 29 images that is padded to 50 gives the same step as the 29 images."""
    config = Config(dataset="digits", shift_pixels=0, batch_size=50)
    state = create(key, config)
    indices = jnp.arange(1_437 - 29, 1_437 + 21, dtype=jnp.int32)
    arrays = to_device(digits.train)
    step = jax.jit(train.train_step, static_argnames="config")
    padded = step(state, batches.gather_batch(*arrays, indices), key, config=config)[1]
    unpadded = step(state, batches.gather_batch(*arrays, indices[:29]), key, config=config)[1]
    for name, value in unpadded.items():
        np.testing.assert_allclose(padded[name], value, rtol=1e-5)
