"""The network against an independent implementation of the Keras tutorial."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mnist_flax.core import model
from mnist_flax.core.config import Config


def plain_logits(params, images):
    """The reference network, written out with XLA's own convolution and pooling."""
    x = images
    for layer in ("Conv_0", "Conv_1", "Conv_2"):
        dimensions = ("NHWC", "HWIO", "NHWC")
        kernel = params[layer]["kernel"]
        x = lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=dimensions)
        x = jnp.maximum(x + params[layer]["bias"][None, None, None], 0)
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    x = x.mean(axis=(1, 2))
    for layer in ("Dense_0", "Dense_1"):
        x = jnp.maximum(x @ params[layer]["kernel"] + params[layer]["bias"][None], 0)
    return x @ params["Dense_2"]["kernel"] + params["Dense_2"]["bias"][None]


def random_params(key, config):
    """Parameters with biases that are not zero, so that every term counts."""
    params = model.init(key, config)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    noisy = [
        leaf + 0.05 * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, noisy)


@pytest.mark.parametrize("size", [22, 30, pytest.param(28, marks=pytest.mark.nightly)])
def test_logits_and_gradients_equal_a_plain_implementation(key, size):
    params = random_params(key, Config(input_size=size))
    images = jax.random.uniform(key, (5, size, size, 1))
    logits, expected = (jax.jit(f)(params, images) for f in (model.apply, plain_logits))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)

    def gradient(apply):
        return jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(apply(p, images)))))(params)

    for ours, plain in zip(
        jax.tree.leaves(gradient(model.apply)), jax.tree.leaves(gradient(plain_logits)), strict=True
    ):
        assert jnp.linalg.norm(ours - plain) <= 1e-4 * jnp.linalg.norm(plain)


@pytest.mark.parametrize("size", [22, 28, 30])
def test_each_layer_has_the_number_of_parameters_of_the_tutorial(key, size):
    params = model.init(key, Config(input_size=size))
    counts = {
        name: sum(leaf.size for leaf in jax.tree.leaves(layer)) for name, layer in params.items()
    }
    assert counts == {
        "Conv_0": 640,
        "Conv_1": 36_928,
        "Conv_2": 36_928,
        "Dense_0": 4_160,
        "Dense_1": 2_080,
        "Dense_2": 330,
    }
    assert sum(counts.values()) == 81_066
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_more_channels_make_a_larger_network(key):
    params = jax.eval_shape(lambda key: model.init(key, Config(channels=128)), key)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 307_114
    assert jax.eval_shape(model.apply, params, jnp.zeros((2, 22, 22, 1))).shape == (2, 10)


def test_an_image_in_a_border_is_seen_as_a_whole(key):
    assert model.visible_size(30) == 30
    params = random_params(key, Config(input_size=30))
    images = jax.random.uniform(key, (3, 30, 30, 1))
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(jnp.abs(model.apply(params, x)))))(images)
    assert jnp.where(gradient == 0, 0, 1).any(axis=0).all()


def test_parameters_are_initialized_as_by_keras(key):
    params = model.init(key, Config(input_size=28))
    for layer in params.values():
        assert not layer["bias"].any()
        *kernel_size, inputs, outputs = layer["kernel"].shape
        limit = np.sqrt(6 / (np.prod(kernel_size) * (inputs + outputs)))
        largest = jnp.abs(layer["kernel"]).max()
        assert 0.9 * limit < largest <= limit * (1 + 1e-6)


@pytest.mark.nightly
def test_the_last_six_rows_and_columns_of_28_do_not_influence_the_logits(key):
    assert model.visible_size(28) == 22
    assert model.visible_size(22) == 22
    params = random_params(key, Config(input_size=28))
    images = jax.random.uniform(key, (3, 28, 28, 1))
    hidden = jnp.zeros((28, 28), bool).at[22:].set(True).at[:, 22:].set(True)[None, :, :, None]
    noise = jax.random.uniform(jax.random.fold_in(key, 1), images.shape)
    for apply in (jax.jit(model.apply), jax.jit(plain_logits)):
        logits = apply(params, images)
        np.testing.assert_array_equal(apply(params, jnp.where(hidden, noise, images)), logits)
        gradient = jax.jit(jax.grad(lambda x, f=apply: jnp.sum(jnp.abs(f(params, x)))))(images)
        assert not jnp.where(hidden, gradient, 0).any()
        assert jnp.where(hidden, 1, gradient).any(axis=(1, 2, 3)).all()
        changed = apply(params, jnp.where(hidden, images, noise))
        assert (changed != logits).any(axis=1).all()
