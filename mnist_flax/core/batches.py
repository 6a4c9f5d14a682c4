"""The batches of an epoch: which images each step learns from, in an order from the seed's key."""

import functools
from typing import TypedDict

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float32, Int32, Key, UInt8

from mnist_flax.core.config import Config

# What `fold_in` derives from the seed's key. New streams get new numbers.
INIT_STREAM, ORDER_STREAM, AUGMENT_STREAM = range(3)


class Batch(TypedDict):
    """The images of one step. The weight is 1, or 0 for an image that only fills the batch."""

    images: UInt8[Array, "batch 28 28 1"]
    labels: Int32[Array, " batch"]
    weights: Float32[Array, " batch"]


@functools.partial(jax.jit, static_argnames="config")
def epoch_order(
    key: Key[Array, ""], epoch: Int32[Array, ""], config: Config
) -> Int32[Array, "steps batch"]:
    """The indices of the images of each step of an epoch, in random order.

    Every image comes once. If the batch size does not divide their number, the last step is
    filled with an index past the end, which stands for no image: that step averages over fewer.
    """
    epoch_key = jax.random.fold_in(jax.random.fold_in(key, ORDER_STREAM), epoch)
    order = jax.random.permutation(epoch_key, config.train_examples).astype(jnp.int32)
    missing = config.steps_per_epoch * config.batch_size - config.train_examples
    padded = jnp.pad(order, (0, missing), constant_values=config.train_examples)
    return padded.reshape((config.steps_per_epoch, config.batch_size))


def gather_batch(
    images: UInt8[Array, "N 28 28 1"], labels: Int32[Array, " N"], indices: Int32[Array, " batch"]
) -> Batch:
    """The batch of the images at some indices; an index past the end gets weight 0."""
    return {
        "images": images.at[indices].get(mode="clip"),
        "labels": labels.at[indices].get(mode="clip"),
        "weights": (indices < images.shape[0]).astype(jnp.float32),
    }
