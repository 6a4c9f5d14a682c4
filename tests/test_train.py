"""The pure training functions: golden values, determinism, and that no image is lost."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mnist_flax import model, train
from mnist_flax.augment import window
from mnist_flax.checkpoint import digest
from mnist_flax.config import Config
from mnist_flax.convolution import lax_pooled_convolution, pooled_convolution
from mnist_flax.inference import losses, predict_logits
from tests.conftest import reference_config, to_device, with_biases


def create(key, config):
    return train.create_state(key, config=config)


def first_batch(dataset, size):
    return train.take_batch(*to_device(dataset.train), jnp.arange(size, dtype=jnp.int32))


# Loss, gradient norm and update norm of the first step, seed 0, biases 0.01, on the first
# images of the bundled digits. They may change only with a change that is meant to alter the
# mathematics of the network, its initial values, the augmentation or the optimizer; say so in
# the commit.
GOLDEN = {
    "default": (Config(dataset="digits"), 2.3078651, 0.2534478, 0.06919342),
    "muon": (
        Config(dataset="digits", optimizer="muon", learning_rate=1e-2),
        *(2.3078651, 0.2534478, 0.009387022),
    ),
    "reference": (reference_config(dataset="digits"), 2.3034985, 0.25316244, 0.26294147),
}


@pytest.mark.parametrize(("config", "loss", "gradient_norm", "update_norm"), GOLDEN.values())
def test_first_step_golden_values(digits, key, config, loss, gradient_norm, update_norm):
    step = jax.jit(train.train_step, static_argnames="config")
    state = create(key, config)
    state = state.replace(params=with_biases(state.params))
    _, metrics = step(state, first_batch(digits, config.batch_size), key, config=config)
    found = [float(metrics[name]) for name in ("loss", "gradient_norm", "update_norm")]
    np.testing.assert_allclose(found, [loss, gradient_norm, update_norm], rtol=1e-4)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_a_step_is_plain_adam_on_the_mean_loss(digits, key, decay):
    """One step against the same written out without micro-batches, weights or sums."""
    config = reference_config(
        dataset="digits", input_size=22, batch_size=128, adam_epsilon=1e-8, weight_decay=decay
    )
    state = create(key, config)
    batch = first_batch(digits, config.batch_size)

    def mean_loss(params):
        logits = model.apply(params, batch["images"][:, 3:25, 3:25].astype(jnp.float32) / 255)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"]).mean()

    loss, gradients = jax.jit(jax.value_and_grad(mean_loss))(state.params)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = optax.adam(1e-3).update(gradients, optax.adam(1e-3).init(state.params))
    expected = jax.tree.map(lambda p, u: p + u - 1e-3 * decay * p, state.params, updates)
    step = jax.jit(train.train_step, static_argnames="config")
    after, metrics = step(state, batch, key, config=config)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(metrics["gradient_norm"], optax.tree.norm(gradients), rtol=1e-5)
    # Adam's first update is about the sign of the gradient, so compare where that is clear.
    for ours, plain, gradient in zip(
        jax.tree.leaves(after.params), jax.tree.leaves(expected), jax.tree.leaves(gradients),
        strict=True,
    ):  # fmt: skip
        clear = np.abs(gradient) > 1e-5
        assert clear.any()
        np.testing.assert_allclose(ours[clear], plain[clear], rtol=0, atol=1e-6)


def test_an_accelerators_path_gives_the_same_gradients(digits, key, config, monkeypatch):
    """There the convolution is XLA's own and the batch is not divided."""
    params = with_biases(create(key, config).params)
    batch = first_batch(digits, 100)
    images = window(batch["images"], config)

    def gradients():
        whole = functools.partial(train._summed_gradients, images=images)
        return jax.jit(lambda p: whole(p, labels=batch["labels"], weights=batch["weights"]))(params)

    loss, ours = gradients()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert pooled_convolution() is lax_pooled_convolution
    other_loss, theirs = gradients()
    np.testing.assert_allclose(loss, other_loss, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert jnp.linalg.norm(a - b) <= 1e-4 * jnp.linalg.norm(b)


def steps(config, dataset, key, state, *counts):
    arrays = to_device(dataset.train)
    for count in counts:
        order = train.epoch_order(key, state.step // config.steps_per_epoch, config)
        state = train.train_steps(state, *arrays, order, key, jnp.int32(count), config=config)
    return state


def test_two_runs_of_the_jitted_steps_are_bit_identical(digits, key, config):
    runs = [digest(steps(config, digits, key, create(key, config), 6)) for _ in range(2)]
    assert runs[0] == runs[1]
    other = jax.random.key(1)
    assert digest(steps(config, digits, other, create(other, config), 6)) != runs[0]


def test_dividing_an_epoch_changes_no_bit(digits, key):
    config = Config(dataset="digits", batch_size=128)
    assert config.steps_per_epoch == 12
    whole = steps(config, digits, key, create(key, config), 12, 3)
    parts = steps(config, digits, key, create(key, config), 1, 4, 7, 1, 2)
    assert digest(whole) == digest(parts)
    assert int(parts.step) == 15


def test_the_epoch_loss_covers_this_epoch_only(digits, key):
    """With a rate too small to change a parameter, every epoch's loss is the evaluated one."""
    config = Config(dataset="digits", shift=0, schedule="constant", learning_rate=1e-30)
    images, labels = to_device(digits.train)
    state = create(key, config)
    logits = np.asarray(predict_logits(state.params, images, config=config))
    expected = losses(logits, np.asarray(labels)).sum()
    for _ in range(2):
        state = steps(config, digits, key, state, config.steps_per_epoch)
        np.testing.assert_allclose(float(state.epoch_loss), expected, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1_437, 128, 100, 479])
def test_an_epoch_takes_every_image_once(key, batch_size):
    config = Config(dataset="digits", batch_size=batch_size)
    orders = [np.asarray(train.epoch_order(key, jnp.int32(epoch), config)) for epoch in (0, 0, 1)]
    assert orders[0].shape == (config.steps_per_epoch, batch_size)
    real = orders[0][orders[0] < 1_437]
    assert sorted(real) == list(range(1_437))
    np.testing.assert_array_equal(orders[0], orders[1])
    assert (orders[0] != orders[2]).any()


def test_the_last_step_averages_over_what_is_left(digits, key):
    """A batch filled up to 50 with nothing gives the step of the 29 images in it."""
    config = Config(dataset="digits", shift=0, batch_size=50)
    state = create(key, config)
    indices = jnp.arange(1_437 - 29, 1_437 + 21, dtype=jnp.int32)
    arrays = to_device(digits.train)
    step = jax.jit(train.train_step, static_argnames="config")
    filled = step(state, train.take_batch(*arrays, indices), key, config=config)[1]
    short = step(state, train.take_batch(*arrays, indices[:29]), key, config=config)[1]
    for name, value in short.items():
        np.testing.assert_allclose(filled[name], value, rtol=1e-5)
