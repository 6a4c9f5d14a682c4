"""From stored images to what the network is given: the window, moved at random in training."""

import jax
import jax.numpy as jnp
from jax import lax

from mnist_flax.config import Config


def window(images: jax.Array, config: Config) -> jax.Array:
    """The centre of each image: uint8 [batch, 28, 28, 1] to [batch, size, size, 1]."""
    size = config.input_size
    start = (images.shape[1] - size) // 2
    return images[:, start : start + size, start : start + size]


def to_unit(images: jax.Array) -> jax.Array:
    """Scales uint8 0..255 to float32 0..1."""
    return images.astype(jnp.float32) / 255.0


def augment(key: jax.Array, images: jax.Array, config: Config) -> jax.Array:
    """The centre of each image, moved by up to `config.shift` pixels each way.

    Moving the window instead of the image costs nothing and brings in real pixels;
    where it leaves the image it sees black.

    Args:
      key: decides the moves.
      images: uint8 [batch, 28, 28, 1].

    Returns:
      uint8 [batch, size, size, 1].
    """
    if not config.shift:
        return window(images, config)
    batch, _, _, channels = images.shape
    size = config.input_size
    margin = (images.shape[1] - size) // 2
    pad = max(0, config.shift - margin)
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    first = margin + pad - config.shift
    starts = first + jax.random.randint(key, (batch, 2), 0, 2 * config.shift + 1)

    def crop(image: jax.Array, start: jax.Array) -> jax.Array:
        return lax.dynamic_slice(image, (start[0], start[1], 0), (size, size, channels))

    return jax.vmap(crop)(padded, starts)
