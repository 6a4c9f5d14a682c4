"""From stored images to the network's input: the center crop, in training moved at random."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Int32, Key, Num, UInt8

from mnist_flax.core.config import Config

GRID = 5  # points per side of the coarse noise from which elastic distortions are interpolated


def center_crop(
    images: Num[Array, "batch 28 28 1"], config: Config
) -> Num[Array, "batch size size 1"]:
    """The central `config.input_size` rows and columns of each image in a black border."""
    size = config.input_size
    bordered = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    start = (bordered.shape[1] - size) // 2
    return bordered[:, start : start + size, start : start + size]


def to_float(images: UInt8[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Scales 0..255 to 0..1."""
    return images.astype(jnp.float32) / 255.0


def augment(
    key: Key[Array, ""], images: UInt8[Array, "batch 28 28 1"], config: Config
) -> UInt8[Array, "batch size size 1"]:
    """The center crop of each image, shifted, rotated, zoomed, sheared and distorted at random.

    Each image is transformed independently, uniformly within the limits of the config (a zoom's
    logarithm is uniform, elastic distortions are normally distributed). Pixels outside the image
    are black. With all limits at 0 this is exactly `center_crop`.
    """
    if config.rotation_degrees or config.zoom or config.shear or config.elastic_pixels:
        return _affine_elastic(key, images, config)
    if config.shift_pixels:
        return _shifted_crop(key, images, config)
    return center_crop(images, config)


def _shifted_crop(
    key: Key[Array, ""], images: UInt8[Array, "batch 28 28 1"], config: Config
) -> UInt8[Array, "batch size size 1"]:
    """Moves the crop by whole pixels, which is cheap and brings in real pixels."""
    batch, height, _, channels = images.shape
    size = config.input_size
    margin = (height - size) // 2
    padding = max(0, config.shift_pixels - margin)
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    starts = margin + padding + _draw_shifts(key, batch, config.shift_pixels)

    def crop(image: Array, start: Array) -> Array:
        return lax.dynamic_slice(image, (start[0], start[1], 0), (size, size, channels))

    return jax.vmap(crop)(padded, starts)


def _affine_elastic(
    key: Key[Array, ""], images: UInt8[Array, "batch 28 28 1"], config: Config
) -> UInt8[Array, "batch size size 1"]:
    """Samples each image where the inverse of a random transformation maps the crop's pixels."""
    batch, height, width, _ = images.shape
    keys = jax.random.split(key, 5)

    def draw(key: Array, limit: float, *shape: int) -> Array:
        return jax.random.uniform(key, (*shape, batch, 1, 1), jnp.float32, -limit, limit)

    angle = draw(keys[0], math.radians(config.rotation_degrees))
    zoom_rows, zoom_columns = jnp.exp(draw(keys[1], math.log1p(config.zoom), 2))
    shear = draw(keys[2], config.shear)
    shifts = _draw_shifts(keys[3], batch, config.shift_pixels)
    shift_rows, shift_columns = shifts.astype(jnp.float32).T[..., None, None]

    offset = jnp.arange(config.input_size, dtype=jnp.float32) - (config.input_size - 1) / 2
    row, column = offset[None, :, None], offset[None, None, :]
    row, column = row * zoom_rows, (column + shear * row) * zoom_columns
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    rows = cos * row - sin * column + shift_rows + (height - 1) / 2
    columns = sin * row + cos * column + shift_columns + (width - 1) / 2
    if config.elastic_pixels:
        displacements = _elastic_displacements(keys[4], batch, config.input_size)
        elastic_rows, elastic_columns = config.elastic_pixels * displacements
        rows, columns = rows + elastic_rows, columns + elastic_columns
    return bilinear(images, rows, columns)


def _elastic_displacements(
    key: Key[Array, ""], batch: int, size: int
) -> Float[Array, "2 batch size size"]:
    """Smooth random displacements of rows and of columns with a standard deviation of 1.

    Simard et al. 2003 (https://doi.org/10.1109/ICDAR.2003.1227801) smooth noise by a Gaussian of
    4 pixels; noise on a grid of `GRID` points per side gives the same smoothness for less.
    """
    distance = np.arange(size)[:, None] - np.linspace(0, size - 1, GRID)
    smoothing = np.exp(-0.5 * (distance / 4) ** 2)
    smoothing = np.float32(smoothing / np.linalg.norm(smoothing, axis=1, keepdims=True))
    noise = jax.random.normal(key, (2, batch, GRID, GRID), jnp.float32)
    return jnp.einsum("ik,dbkl,jl->dbij", smoothing, noise, smoothing, precision="float32")


def _draw_shifts(key: Key[Array, ""], batch: int, limit: int) -> Int32[Array, "batch 2"]:
    """Random shifts down and right, in pixels."""
    return jax.random.randint(key, (batch, 2), 0, 2 * limit + 1) - limit


def bilinear(
    images: Num[Array, "batch height width 1"],
    rows: Float[Array, "batch *shape"],
    columns: Float[Array, "batch *shape"],
) -> UInt8[Array, "batch *shape 1"]:
    """Samples images, from 0 to 255, between pixels; black outside.

    Row 0 and column 0 are the middles of the first ones. A little faster in the training loop than
    `jax.scipy.ndimage.map_coordinates`.
    """
    batch, height, width, _ = images.shape
    border = ((0, 0), (1, 2), (1, 2))
    stride = width + 3
    pixels = jnp.pad(images[..., 0], border).reshape((batch, -1)).astype(jnp.float32)
    rows, columns = rows.clip(-1, height) + 1, columns.clip(-1, width) + 1
    top, left = jnp.floor(rows), jnp.floor(columns)
    first = (top * stride + left).astype(jnp.int32).reshape((batch, -1))

    def neighbor(offset: int) -> Array:
        values = jnp.take_along_axis(pixels, first + offset, axis=1, mode="promise_in_bounds")
        return values.reshape(rows.shape)

    down, right = rows - top, columns - left
    above = neighbor(0) * (1 - right) + neighbor(1) * right
    below = neighbor(stride) * (1 - right) + neighbor(stride + 1) * right
    return jnp.round(above * (1 - down) + below * down).astype(jnp.uint8)[..., None]
