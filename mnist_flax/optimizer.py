"""The optimizer: Muon or Adam, under a learning rate that may rise and fall."""

import functools

import jax
import jax.numpy as jnp
import optax

from mnist_flax import model
from mnist_flax.config import Config

# Of the quintic x -> ax + bx^3 + cx^5, which takes any singular value of 0.002 to 1 to between
# 0.7 and 1.2 in five rounds, and of the momentum: https://kellerjordan.github.io/posts/muon.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
ROUNDS = 5
MOMENTUM = 0.95


def learning_rate(step: jax.typing.ArrayLike, config: Config) -> jax.Array:
    """The learning rate, float32 [], of the update that follows `step` updates."""
    peak = jnp.float32(config.learning_rate)
    if config.schedule == "constant":
        return peak
    rise = max(1.0, config.warmup_fraction * config.total_steps)
    fall = max(1.0, config.total_steps - rise)
    now = jnp.asarray(step, jnp.float32)
    return peak * jnp.minimum((now + 1) / rise, (config.total_steps - now) / fall).clip(0, 1)


def optimizer(config: Config) -> optax.GradientTransformation:
    """Muon for the kernels and Adam for the biases; or AdamW for all.

    AdamW, which is Adam without a decay: https://arxiv.org/abs/1711.05101.
    """
    rate = functools.partial(learning_rate, config=config)
    adam = functools.partial(optax.adamw, rate, config.adam_b1, config.adam_b2, config.adam_epsilon)
    if config.optimizer == "adam":
        return adam(weight_decay=config.weight_decay)
    muon = optax.chain(
        optax.trace(MOMENTUM, nesterov=True),
        optax.stateless(lambda updates, _: jax.tree.map(orthogonal, updates)),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(rate),
    )
    return optax.partition({"kernel": muon, "bias": adam(weight_decay=0.0)}, _kinds)


def orthogonal(update: jax.Array) -> jax.Array:
    """Brings all singular values of an update near to 1, keeping its singular vectors.

    Args:
      update: float32 [..., out], taken as a matrix from all that an output sees to the outputs.

    Returns:
      The same shape. Where there are more outputs than inputs its values are larger than 1, by
      the square root of their ratio.
    """
    matrix = update.reshape((-1, update.shape[-1]))
    inputs, outputs = matrix.shape
    if inputs > outputs:
        matrix = matrix.T
    matrix = matrix / (jnp.linalg.norm(matrix) + jnp.float32(1e-8))
    # Every round multiplies by a polynomial of the small square matrix M M^T, so all but the
    # first and the last product can stay that small.
    a, b, c = (jnp.float32(x) for x in NEWTON_SCHULZ)
    gram = matrix @ matrix.T
    identity = jnp.eye(len(gram), dtype=gram.dtype)
    factor = identity
    for _ in range(ROUNDS):
        polynomial = a * identity + b * gram + c * (gram @ gram)
        factor = polynomial @ factor
        gram = polynomial @ gram @ polynomial
    matrix = factor @ matrix
    if inputs > outputs:
        matrix = matrix.T
    return matrix.reshape(update.shape) * jnp.float32(max(1, outputs / inputs) ** 0.5)


def _kinds(params: model.Params) -> model.Params:
    return jax.tree.map(lambda leaf: "kernel" if leaf.ndim > 1 else "bias", params)
