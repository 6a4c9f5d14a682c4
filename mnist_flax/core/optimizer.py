"""The optimizer, Muon or Adam, and its learning rate schedule."""

import functools

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float32

from mnist_flax.core import model
from mnist_flax.core.config import Config

# Coefficients of the polynomial x -> ax + bx^3 + cx^5, which in five rounds maps any singular
# value from 0.002 to 1 to between 0.7 and 1.2, and the momentum, from
# https://kellerjordan.github.io/posts/muon.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
ROUNDS = 5
MOMENTUM = 0.95


def learning_rate_schedule(step: jax.typing.ArrayLike, config: Config) -> Float32[Array, ""]:
    """The learning rate of the update that follows `step` updates."""
    peak = jnp.float32(config.learning_rate)
    if config.schedule == "constant":
        return peak
    rise = max(1.0, config.warmup_fraction * config.total_steps)
    fall = max(1.0, config.total_steps - rise)
    steps = jnp.asarray(step, jnp.float32)
    return peak * jnp.minimum((steps + 1) / rise, (config.total_steps - steps) / fall).clip(0, 1)


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """AdamW for all parameters, or Muon for the kernels and Adam for the biases.

    AdamW, which is Adam if the weight decay is 0: https://arxiv.org/abs/1711.05101.
    """
    schedule = functools.partial(learning_rate_schedule, config=config)
    adam = functools.partial(
        optax.adamw, schedule, config.adam_b1, config.adam_b2, config.adam_epsilon
    )
    if config.optimizer == "adam":
        return adam(weight_decay=config.weight_decay)
    muon = optax.chain(
        optax.trace(MOMENTUM, nesterov=True),
        optax.stateless(lambda updates, _: jax.tree.map(orthogonalize, updates)),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(schedule),
    )
    return optax.partition({"kernel": muon, "bias": adam(weight_decay=0.0)}, _partition_labels)


@jax.default_matmul_precision("float32")
def orthogonalize(update: Float32[Array, "*inputs out"]) -> Float32[Array, "*inputs out"]:
    """Brings all singular values of an update close to 1 and keeps its singular vectors.

    The update is taken as a matrix from all inputs of an output to the outputs. If there are more
    outputs than inputs, the values are larger by the square root of their ratio.
    """
    matrix = update.reshape((-1, update.shape[-1]))
    inputs, outputs = matrix.shape
    if inputs > outputs:
        matrix = matrix.T
    matrix = matrix / (jnp.linalg.norm(matrix) + jnp.float32(1e-8))
    # Each round multiplies by a polynomial of the small square matrix M M^T, so all products
    # but the first and the last stay that small.
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


def _partition_labels(params: model.Params) -> dict[str, dict[str, str]]:
    return jax.tree.map(lambda leaf: "kernel" if leaf.ndim > 1 else "bias", params)
