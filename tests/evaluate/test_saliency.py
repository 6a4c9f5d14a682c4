"""The saliency map against the gradient of each image alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mnist_flax import load
from mnist_flax.core import model
from mnist_flax.core.augment import center_crop, to_float
from mnist_flax.core.config import Config
from mnist_flax.core.conv_pool import conv_pool_lax
from mnist_flax.evaluate.saliency import saliency_map
from tests.conftest import with_biases


def test_the_saliency_map_is_the_gradient_of_each_image_divided_by_its_maximum(digits, key, config):
    params = with_biases(model.init(key, Config()))
    images = jnp.asarray(digits.test[0][:3])
    saliency = np.asarray(saliency_map(params, images, config))
    assert saliency.shape == (3, 28, 28)

    def loss(image):
        logits = model.apply(params, image[None, 3:25, 3:25], conv_pool=conv_pool_lax)
        return optax.softmax_cross_entropy_with_integer_labels(logits, logits.argmax(axis=-1))[0]

    gradient = jax.jit(jax.grad(loss))
    for image, actual in zip(images, saliency, strict=True):
        expected = np.abs(gradient(image.astype(jnp.float32) / 255)[..., 0])
        np.testing.assert_allclose(actual, expected / expected.max(), atol=1e-4)
    assert not saliency[:, :3].any()  # outside the center crop


def test_the_saliency_map_of_a_confident_prediction_is_no_rounding_error(digits):
    trained = load()
    last = jax.tree.map(lambda leaf: 5 * leaf, trained.params["Dense_2"])
    trained = dataclasses.replace(trained, params=trained.params | {"Dense_2": last})
    images = jnp.asarray(digits.test[0][:20])
    odds = np.asarray(trained.logits(np.asarray(images))[0], np.float64)
    odds = np.exp(odds - odds.max(axis=-1, keepdims=True))
    is_other = odds < 1
    doubt = (odds * is_other).sum(axis=-1, keepdims=True)
    assert (doubt < 1e-7).any()  # where 1 minus the probability is 0 in float32

    def logits(images):
        cropped = center_crop(images, trained.config)
        return model.apply(trained.params, cropped, conv_pool=conv_pool_lax)

    # The gradient of the loss by the logits, divided by one minus the probability.
    weights = jnp.asarray(np.where(is_other, -odds / doubt, 1), jnp.float32)
    pull_back = jax.jit(lambda x: jax.vjp(logits, x)[1](weights)[0])
    gradient = np.abs(pull_back(to_float(images))[..., 0])
    expected = gradient / gradient.max(axis=(1, 2), keepdims=True)
    actual = saliency_map(trained.params, images, trained.config)
    np.testing.assert_allclose(actual, expected, atol=1e-3)
