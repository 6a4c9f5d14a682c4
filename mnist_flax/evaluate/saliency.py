"""Which pixels a prediction depends on."""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from mnist_flax.core import model
from mnist_flax.core.augment import center_crop, to_float
from mnist_flax.core.config import Config
from mnist_flax.core.conv_pool import conv_pool_lax


@functools.partial(jax.jit, static_argnames="config")
def saliency_map(params: model.Params, images: Array, config: Config) -> Array:
    """How strongly each pixel of uint8 images [N, 28, 28, 1] influences the prediction.

    Float32 [N, 28, 28] from 0 to 1: the absolute gradient of the loss with the prediction as its
    label, divided by its largest value in each image; without that, the few uncertain images
    would dominate an average.
    """

    def log_odds_sum(images: Array) -> Array:
        cropped = center_crop(images, config)
        # XLA's own convolution compiles seven times faster, which counts more for a single call.
        logits = model.apply(params, cropped, config.precision, conv_pool_lax)
        # Proportional in each image to the gradient of the loss, which for a confident prediction
        # would be nothing but rounding errors.
        is_prediction = jax.nn.one_hot(logits.argmax(axis=-1), model.NUM_CLASSES, dtype=bool)
        others = jnp.where(is_prediction, -jnp.inf, logits)
        return (logits.max(axis=-1) - jax.nn.logsumexp(others, axis=-1)).sum()

    # No image influences another one's loss, so the gradient of the sum holds each gradient.
    size = jnp.abs(jax.grad(log_odds_sum)(to_float(images)))[..., 0]
    return size / jnp.maximum(size.max(axis=(1, 2), keepdims=True), jnp.float32(1e-30))
