"""Images made worse, a little or a lot: what a network meets outside of its data set.

Pure functions on the device. Each kind has five severities; the scale is this project's own,
in the spirit of MNIST-C (https://arxiv.org/abs/1906.02337).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mnist_flax.augment import bilinear
from mnist_flax.metrics import right_share
from mnist_flax.trained import Trained

SEVERITIES = (1, 2, 3, 4, 5)

Images = jax.Array  # float32 [batch, 28, 28, 1] from 0 to 1


def corrupt(key: jax.Array, images: jax.Array, kind: str, severity: int) -> jax.Array:
    """Images uint8 [batch, 28, 28, 1], made worse; the same for the same key.

    Args:
      key: decides what is random about it.
      images: uint8 [batch, 28, 28, 1].
      kind: a name in `KINDS`.
      severity: 1 to 5.
    """
    corrupted = KINDS[kind](key, images.astype(jnp.float32) / 255, severity / 5)
    return jnp.round(corrupted.clip(0, 1) * 255).astype(jnp.uint8)


def noise(key: jax.Array, images: Images, strength: float) -> Images:
    """Gaussian noise, with a standard deviation of up to 0.6."""
    return images + 0.6 * strength * jax.random.normal(key, images.shape, jnp.float32)


def blur(_: jax.Array, images: Images, strength: float) -> Images:
    """A Gaussian blur, with a standard deviation of up to 2.5 pixels."""
    place = jnp.arange(images.shape[1], dtype=jnp.float32)
    weights = jnp.exp(-0.5 * ((place[:, None] - place[None]) / (2.5 * strength)) ** 2)
    weights = weights / weights.sum(axis=1, keepdims=True)
    return jnp.einsum("ij,bjkc,lk->bilc", weights, images, weights)


def shift(key: jax.Array, images: Images, strength: float) -> Images:
    """Moved by up to 5 pixels, in any direction."""
    angle = jax.random.uniform(key, (images.shape[0],), jnp.float32, 0, 2 * math.pi)
    still = jnp.zeros_like(angle)
    offset = 5 * strength * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
    return _moved(images, still, still + 1, offset)


def rotation(key: jax.Array, images: Images, strength: float) -> Images:
    """Turned by up to 60 degrees, either way."""
    sign = jax.random.rademacher(key, (images.shape[0],), jnp.float32)
    return _moved(images, sign * math.radians(60) * strength, jnp.ones_like(sign))


def zoom(key: jax.Array, images: Images, strength: float) -> Images:
    """Shrunk or grown by a factor of up to 2."""
    sign = jax.random.rademacher(key, (images.shape[0],), jnp.float32)
    return _moved(images, jnp.zeros_like(sign), jnp.exp(sign * math.log(2) * strength))


def occlusion(key: jax.Array, images: Images, strength: float) -> Images:
    """A grey square of up to 14 pixels a side hides a part of the middle 20x20."""
    side = 14 * strength
    centre = jax.random.uniform(key, (2, images.shape[0], 1, 1), jnp.float32, 4, 24)
    place = jnp.arange(images.shape[1], dtype=jnp.float32)
    inside_rows = jnp.abs(place[None, :, None] - centre[0]) < side / 2
    inside_columns = jnp.abs(place[None, None, :] - centre[1]) < side / 2
    return jnp.where((inside_rows & inside_columns)[..., None], jnp.float32(0.5), images)


def contrast(_: jax.Array, images: Images, strength: float) -> Images:
    """Down to a tenth of the contrast, around middle grey."""
    return 0.5 + (images - 0.5) * (1 - 0.9 * strength)


def inversion(_: jax.Array, images: Images, strength: float) -> Images:
    """Towards black on white; at severity 5 it is that."""
    return images * (1 - strength) + (1 - images) * strength


def _moved(
    images: Images, angle: jax.Array, factor: jax.Array, offset: jax.Array | float = 0.0
) -> Images:
    """Turned by an angle [batch], grown by a factor [batch] and moved by pixels [2, batch]."""
    middle = (images.shape[1] - 1) / 2
    place = jnp.arange(images.shape[1], dtype=jnp.float32) - middle
    cos, sin = (f(angle)[:, None, None] / factor[:, None, None] for f in (jnp.cos, jnp.sin))
    down, right = jnp.broadcast_to(offset, (2, images.shape[0]))[..., None, None]
    row, column = place[None, :, None] - down, place[None, None, :] - right
    found = bilinear(
        images * 255, cos * row - sin * column + middle, sin * row + cos * column + middle
    )
    return found.astype(jnp.float32) / 255


KINDS: dict[str, Callable[[jax.Array, Images, float], Images]] = {
    function.__name__: function
    for function in (noise, blur, shift, rotation, zoom, occlusion, contrast, inversion)
}


def robustness(trained: Trained, images: np.ndarray, labels: np.ndarray) -> dict[str, list[float]]:
    """The share of right answers for each kind at severities 0 (clean) to 5."""
    clean = right_share(trained.logits(images), labels)
    worse = jax.jit(corrupt, static_argnames=("kind", "severity"))
    found = {}
    for number, kind in enumerate(KINDS):
        key = jax.random.fold_in(jax.random.key(trained.config.seed), number)
        found[kind] = [clean]
        for severity in SEVERITIES:
            corrupted = np.asarray(worse(key, images, kind, severity))
            found[kind].append(right_share(trained.logits(corrupted), labels))
    return found
