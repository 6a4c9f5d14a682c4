"""What a network answers about many images, and how right that is."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy import special

from mnist_flax import devices, model
from mnist_flax.augment import to_unit, window
from mnist_flax.config import Config
from mnist_flax.convolution import lax_pooled_convolution

BATCH = 200


@functools.partial(jax.jit, static_argnames="config")
def predict_logits(params: model.Params, images: jax.Array, config: Config) -> jax.Array:
    """Logits, float32 [N, 10], of uint8 images [N, 28, 28, 1], of which it sees the window."""
    count = images.shape[0]
    parts = devices.data_parts()
    size = max(1, math.ceil(min(BATCH, count) / parts)) * parts
    batches = math.ceil(count / size)
    fill = [(0, batches * size - count)] + [(0, 0)] * (images.ndim - 1)
    batched = jnp.pad(images, fill).reshape((batches, size, *images.shape[1:]))
    batched = devices.divide(batched, 1)

    def predict(images: jax.Array) -> jax.Array:
        return model.apply(params, to_unit(window(images, config)), config.precision)

    return lax.map(predict, batched).reshape((-1, model.NUM_CLASSES))[:count]


def losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The cross-entropy of each example in nats: logits [..., N, 10] to float64 [..., N]."""
    exact = np.asarray(logits, np.float64)
    chosen = np.take_along_axis(exact, np.broadcast_to(labels, exact.shape[:-1])[..., None], -1)
    return special.logsumexp(exact, axis=-1) - chosen[..., 0]


def scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """The mean `loss` in nats and the `accuracy`, float64 [seeds], of logits [seeds, N, 10]."""
    return {
        "loss": losses(logits, labels).mean(axis=-1),
        "accuracy": (logits.argmax(axis=-1) == labels).mean(axis=-1),
    }


def probabilities(logits: np.ndarray) -> np.ndarray:
    """The mean over the seeds of what logits [seeds, N, 10] make probable: float64 [N, 10]."""
    return special.softmax(np.asarray(logits, np.float64), axis=-1).mean(axis=0)


@functools.partial(jax.jit, static_argnames="config")
def sway(params: model.Params, images: jax.Array, config: Config) -> jax.Array:
    """How much each pixel of each image sways the answer: float32 [N, 28, 28].

    The size of the gradient of the loss that the network's own answer would have, scaled to a
    largest value of 1 in each image, for otherwise the few doubtful images decide the mean.
    """

    def loss(images: jax.Array) -> jax.Array:
        seen = window(images, config)
        logits = model.apply(params, seen, config.precision, lax_pooled_convolution)
        return (logits.max(axis=-1) - jax.nn.logsumexp(logits, axis=-1)).sum()

    # No image sways another's loss, so that the gradient of the sum holds that of each. XLA's
    # own convolution compiles seven times faster, which counts more where it runs but once.
    size = jnp.abs(jax.grad(loss)(to_unit(images)))[..., 0]
    return size / jnp.maximum(size.max(axis=(1, 2), keepdims=True), jnp.float32(1e-30))
