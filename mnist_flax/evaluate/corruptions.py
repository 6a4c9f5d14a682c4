"""Corrupted images: what a network may meet outside its dataset.

Pure functions on the device. Each kind has five severities, on a scale of this project, in the
spirit of MNIST-C (https://arxiv.org/abs/1906.02337).
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mnist_flax.core.augment import bilinear
from mnist_flax.engine.trained_model import TrainedModel
from mnist_flax.evaluate.metrics import ensemble_accuracy

SEVERITIES = (1, 2, 3, 4, 5)

Images = jax.Array  # float32 [batch, 28, 28, 1] from 0 to 1


@functools.partial(jax.jit, static_argnames=("kind", "severity"))
def apply_corruption(key: jax.Array, images: jax.Array, kind: str, severity: int) -> jax.Array:
    """Corrupted images, uint8 [batch, 28, 28, 1]; `kind` is of `KINDS`, `severity` 1 to 5."""
    corrupted = KINDS[kind](key, images.astype(jnp.float32) / 255, severity / 5)
    return jnp.round(corrupted.clip(0, 1) * 255).astype(jnp.uint8)


def noise(key: jax.Array, images: Images, strength: float) -> Images:
    """Gaussian noise, with a standard deviation of up to 0.6."""
    return images + 0.6 * strength * jax.random.normal(key, images.shape, jnp.float32)


def blur(_: jax.Array, images: Images, strength: float) -> Images:
    """A Gaussian blur, with a standard deviation of up to 2.5 pixels."""
    position = jnp.arange(images.shape[1], dtype=jnp.float32)
    distance = position[:, None] - position[None]
    weights = jnp.exp(-0.5 * (distance / (2.5 * strength)) ** 2)
    weights = weights / weights.sum(axis=1, keepdims=True)
    return jnp.einsum("ij,bjkc,lk->bilc", weights, images, weights)


def shift(key: jax.Array, images: Images, strength: float) -> Images:
    """A shift by up to 5 pixels, in a random direction."""
    direction = jax.random.uniform(key, (images.shape[0],), jnp.float32, 0, 2 * math.pi)
    zeros = jnp.zeros_like(direction)
    offset = 5 * strength * jnp.stack([jnp.cos(direction), jnp.sin(direction)])
    return _transform(images, zeros, zeros + 1, offset)


def rotation(key: jax.Array, images: Images, strength: float) -> Images:
    """A rotation by up to 60 degrees, clockwise or counterclockwise."""
    sign = jax.random.rademacher(key, (images.shape[0],), jnp.float32)
    return _transform(images, sign * math.radians(60) * strength, jnp.ones_like(sign))


def zoom(key: jax.Array, images: Images, strength: float) -> Images:
    """A zoom by a factor of up to 2, in or out."""
    sign = jax.random.rademacher(key, (images.shape[0],), jnp.float32)
    return _transform(images, jnp.zeros_like(sign), jnp.exp(sign * math.log(2) * strength))


def occlusion(key: jax.Array, images: Images, strength: float) -> Images:
    """A gray square of up to 14x14 pixels, centered within the middle 20x20."""
    center = jax.random.uniform(key, (2, images.shape[0], 1, 1), jnp.float32, 4, 24)
    position = jnp.arange(images.shape[1], dtype=jnp.float32)
    rows = jnp.abs(position[None, :, None] - center[0]) < 7 * strength
    columns = jnp.abs(position[None, None, :] - center[1]) < 7 * strength
    return jnp.where((rows & columns)[..., None], jnp.float32(0.5), images)


def contrast(_: jax.Array, images: Images, strength: float) -> Images:
    """Contrast reduced to as little as a tenth, around middle gray."""
    return 0.5 + (images - 0.5) * (1 - 0.9 * strength)


def inversion(_: jax.Array, images: Images, strength: float) -> Images:
    """A blend with the inverted image, which at severity 5 is black on white."""
    return images * (1 - strength) + (1 - images) * strength


def _transform(
    images: Images, angle: jax.Array, factor: jax.Array, offset: jax.Array | float = 0.0
) -> Images:
    """Rotates by an angle [batch], zooms by a factor [batch], shifts by pixels [2, batch]."""
    middle = (images.shape[1] - 1) / 2
    position = jnp.arange(images.shape[1], dtype=jnp.float32) - middle
    cos, sin = (f(angle)[:, None, None] / factor[:, None, None] for f in (jnp.cos, jnp.sin))
    down, right = jnp.broadcast_to(offset, (2, images.shape[0]))[..., None, None]
    row, column = position[None, :, None] - down, position[None, None, :] - right
    sampled = bilinear(
        images * 255, cos * row - sin * column + middle, sin * row + cos * column + middle
    )
    return sampled.astype(jnp.float32) / 255


KINDS: dict[str, Callable[[jax.Array, Images, float], Images]] = {
    function.__name__: function
    for function in (noise, blur, shift, rotation, zoom, occlusion, contrast, inversion)
}


def robustness(
    trained: TrainedModel, images: np.ndarray, labels: np.ndarray
) -> dict[str, list[float]]:
    """The accuracy of the ensemble for each kind at severities 0 (clean) to 5."""
    clean = ensemble_accuracy(trained.logits(images), labels)
    base = jax.random.key(trained.config.seed)
    table = {kind: [clean] for kind in KINDS}
    for number, (kind, accuracies) in enumerate(table.items()):
        key = jax.random.fold_in(base, number)
        for severity in SEVERITIES:
            corrupted = np.asarray(apply_corruption(key, images, kind, severity))
            accuracies.append(ensemble_accuracy(trained.logits(corrupted), labels))
    return table
