"""Predictions for many images, and their losses."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Float32, Float64, Int, UInt8

from mnist_flax.core import model, sharding
from mnist_flax.core.augment import center_crop, to_float
from mnist_flax.core.config import Config

BATCH = 200


@functools.partial(jax.jit, static_argnames="config")
def predict_logits(
    params: model.Params, images: UInt8[Array, "N 28 28 1"], config: Config
) -> Float32[Array, "N 10"]:
    """The logits of many images, computed in batches."""
    count = images.shape[0]
    devices = sharding.data_axis_size()
    size = max(1, math.ceil(min(BATCH, count) / devices)) * devices
    batches = math.ceil(count / size)
    padding = [(0, batches * size - count)] + [(0, 0)] * (images.ndim - 1)
    batched = jnp.pad(images, padding).reshape((batches, size, *images.shape[1:]))
    batched = sharding.shard_axis(batched, 1)

    def predict(images: Array) -> Array:
        return model.apply(params, to_float(center_crop(images, config)), config.precision)

    return lax.map(predict, batched).reshape((-1, model.NUM_CLASSES))[:count]


def cross_entropy(
    logits: Float[np.ndarray, "*seeds N 10"], labels: Int[np.ndarray, " N"]
) -> Float64[np.ndarray, "*seeds N"]:
    """The cross-entropy of each example, in nats."""
    exact = np.asarray(logits, np.float64)
    chosen = np.take_along_axis(exact, np.broadcast_to(labels, exact.shape[:-1])[..., None], -1)
    return np.logaddexp.reduce(exact, axis=-1) - chosen[..., 0]


def loss_and_accuracy(
    logits: Float[np.ndarray, "seeds N 10"], labels: Int[np.ndarray, " N"]
) -> dict[str, Float64[np.ndarray, " seeds"]]:
    """The mean `loss` in nats and the `accuracy` of each seed."""
    return {
        "loss": cross_entropy(logits, labels).mean(axis=-1),
        "accuracy": (logits.argmax(axis=-1) == labels).mean(axis=-1),
    }


def probabilities(logits: Float[np.ndarray, "seeds N 10"]) -> Float64[np.ndarray, "N 10"]:
    """The probability of each digit, averaged over the seeds."""
    exact = np.asarray(logits, np.float64)
    return np.exp(exact - np.logaddexp.reduce(exact, axis=-1, keepdims=True)).mean(axis=0)
