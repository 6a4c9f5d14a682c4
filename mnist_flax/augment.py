"""From stored images to what the network is given: the window, in training moved at random."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mnist_flax.config import Config

GRID = 5


def window(images: jax.Array, config: Config) -> jax.Array:
    """The centre of each image: uint8 [batch, 28, 28, 1] to [batch, size, size, 1]."""
    size = config.input_size
    start = (images.shape[1] - size) // 2
    return images[:, start : start + size, start : start + size]


def to_unit(images: jax.Array) -> jax.Array:
    """Scales uint8 0..255 to float32 0..1."""
    return images.astype(jnp.float32) / 255.0


def augment(key: jax.Array, images: jax.Array, config: Config) -> jax.Array:
    """The window of each image, moved, turned, zoomed, sheared and bent at random.

    Each image draws its own, uniformly within the config's limits (bends: normally). Where
    the window leaves the image it sees black.

    Args:
      key: decides all of it.
      images: uint8 [batch, 28, 28, 1].

    Returns:
      uint8 [batch, size, size, 1]; with all strengths at 0 exactly the `window`.
    """
    if config.rotation or config.zoom or config.shear or config.elastic:
        return _warped(key, images, config)
    if config.shift:
        return _shifted(key, images, config)
    return window(images, config)


def _shifted(key: jax.Array, images: jax.Array, config: Config) -> jax.Array:
    """Moves the window by whole pixels, which costs nothing and brings in real pixels."""
    batch, height, _, channels = images.shape
    size = config.input_size
    margin = (height - size) // 2
    pad = max(0, config.shift - margin)
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    starts = margin + pad + _whole_shifts(key, batch, config.shift)

    def crop(image: jax.Array, start: jax.Array) -> jax.Array:
        return lax.dynamic_slice(image, (start[0], start[1], 0), (size, size, channels))

    return jax.vmap(crop)(padded, starts)


def _warped(key: jax.Array, images: jax.Array, config: Config) -> jax.Array:
    """Looks each pixel of the window up where the inverse of the random map takes it."""
    batch, height, width, _ = images.shape
    keys = jax.random.split(key, 5)

    def draw(key: jax.Array, limit: float, *shape: int) -> jax.Array:
        return jax.random.uniform(key, (*shape, batch, 1, 1), jnp.float32, -limit, limit)

    angle = draw(keys[0], math.radians(config.rotation))
    zoom_rows, zoom_columns = jnp.exp(draw(keys[1], math.log1p(config.zoom), 2))
    shear = draw(keys[2], config.shear)
    shift = _whole_shifts(keys[3], batch, config.shift).astype(jnp.float32).T[..., None, None]

    from_centre = jnp.arange(config.input_size, dtype=jnp.float32) - (config.input_size - 1) / 2
    row, column = from_centre[None, :, None], from_centre[None, None, :]
    row, column = row * zoom_rows, (column + shear * row) * zoom_columns
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    rows = cos * row - sin * column + shift[0] + (height - 1) / 2
    columns = sin * row + cos * column + shift[1] + (width - 1) / 2
    if config.elastic:
        bend_rows, bend_columns = config.elastic * _bends(keys[4], batch, config.input_size)
        rows, columns = rows + bend_rows, columns + bend_columns
    return bilinear(images, rows, columns)


def _bends(key: jax.Array, batch: int, size: int) -> jax.Array:
    """Smooth random displacements with a standard deviation of 1: float32 [2, batch, size, size].

    As in Simard et al. 2003 (https://doi.org/10.1109/ICDAR.2003.1227801), a Gaussian of 4
    pixels smooths noise; here noise on a grid of `GRID` points, which is as smooth.
    """
    distance = np.arange(size)[:, None] - np.linspace(0, size - 1, GRID)
    smooth = np.exp(-0.5 * (distance / 4) ** 2)
    smooth = np.float32(smooth / np.linalg.norm(smooth, axis=1, keepdims=True))
    noise = jax.random.normal(key, (2, batch, GRID, GRID), jnp.float32)
    return jnp.einsum("ik,dbkl,jl->dbij", smooth, noise, smooth)


def _whole_shifts(key: jax.Array, batch: int, limit: int) -> jax.Array:
    """Down and right, in pixels: int32 [batch, 2]."""
    return jax.random.randint(key, (batch, 2), 0, 2 * limit + 1) - limit


def bilinear(images: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """The images' values between pixels; black outside.

    Args:
      images: uint8 [batch, height, width, 1].
      rows: float32 [batch, *shape], 0 at the middle of the first.
      columns: the same.

    Returns:
      uint8 [batch, *shape, 1].
    """
    batch, height, width, _ = images.shape
    border = ((0, 0), (1, 2), (1, 2))
    stride = width + 3
    pixels = jnp.pad(images[..., 0], border).reshape((batch, -1)).astype(jnp.float32)
    rows, columns = rows.clip(-1, height) + 1, columns.clip(-1, width) + 1
    top, left = jnp.floor(rows), jnp.floor(columns)
    first = (top * stride + left).astype(jnp.int32).reshape((batch, -1))

    def neighbour(offset: int) -> jax.Array:
        found = jnp.take_along_axis(pixels, first + offset, axis=1, mode="promise_in_bounds")
        return found.reshape(rows.shape)

    down, right = rows - top, columns - left
    above = neighbour(0) * (1 - right) + neighbour(1) * right
    below = neighbour(stride) * (1 - right) + neighbour(stride + 1) * right
    return jnp.round(above * (1 - down) + below * down).astype(jnp.uint8)[..., None]
