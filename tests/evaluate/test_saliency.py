"""The saliency map against the gradient of each image alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mnist_flax.core import model
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
