"""Training as pure functions over pytrees.

All randomness comes from `(key, step)` and `(key, epoch)`, so a state restored from any
step goes on exactly as if it had never stopped.
"""

import functools
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import lax

from mnist_flax import devices, model
from mnist_flax.augment import augment, to_unit
from mnist_flax.config import Config
from mnist_flax.optimizer import optimizer

# What `fold_in` derives from the seed's key. New streams get new numbers.
INIT_STREAM, ORDER_STREAM, AUGMENT_STREAM = range(3)

# On CPU a step's gradient is summed over micro-batches of at most this many images. Their
# patches stay in the cache, a tenth faster on two cores, and memory does not grow with the
# batch.
CPU_MICRO_BATCH = 64

Metrics = dict[str, jax.Array]


@flax.struct.dataclass
class TrainState:
    """All that training changes, and so all that a checkpoint holds."""

    step: jax.Array  # int32 []: optimizer steps taken
    params: model.Params
    opt_state: optax.OptState
    epoch_loss: jax.Array  # float32 []: training loss summed over this epoch's images so far


@functools.partial(jax.jit, static_argnames="config")
def create_state(key: jax.Array, config: Config) -> TrainState:
    """The state before the first step."""
    init_key = jax.random.fold_in(key, INIT_STREAM)
    params = model.init(init_key, config.input_size, config.channels)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer(config).init(params),
        epoch_loss=jnp.zeros((), jnp.float32),
    )


@functools.partial(jax.jit, static_argnames="config")
def epoch_order(key: jax.Array, epoch: jax.Array, config: Config) -> jax.Array:
    """Which images each step of an epoch takes: int32 [steps, batch_size].

    Every image comes once. Where the batch size does not divide their number, the last
    step is filled up with indices past the end; they stand for no image, so that step
    averages over fewer.
    """
    epoch_key = jax.random.fold_in(jax.random.fold_in(key, ORDER_STREAM), epoch)
    order = jax.random.permutation(epoch_key, config.train_examples).astype(jnp.int32)
    missing = config.steps_per_epoch * config.batch_size - config.train_examples
    padded = jnp.pad(order, (0, missing), constant_values=config.train_examples)
    return padded.reshape((config.steps_per_epoch, config.batch_size))


def take_batch(images: jax.Array, labels: jax.Array, indices: jax.Array) -> dict[str, jax.Array]:
    """The batch of those images; an index past the end gives weight 0."""
    return {
        "images": images.at[indices].get(mode="clip"),
        "labels": labels.at[indices].get(mode="clip"),
        "weights": (indices < images.shape[0]).astype(jnp.float32),
    }


def loss_sum(
    params: model.Params,
    images: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    precision: str = "float32",
) -> jax.Array:
    """Cross-entropy in nats, summed with weights, float32 [], of uint8 images."""
    logits = model.apply(params, to_unit(images), precision)
    return jnp.sum(weights * optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def train_step(
    state: TrainState, batch: dict[str, jax.Array], key: jax.Array, config: Config
) -> tuple[TrainState, Metrics]:
    """One update of the parameters.

    Args:
      state: the state after `state.step` updates.
      batch: `images` uint8 [batch, 28, 28, 1], `labels` int32 [batch] and `weights`
        float32 [batch], which are 1, or 0 for what only fills the batch up.
      key: the run's key; the step's own randomness is derived from it and `state.step`.
      config: static.

    Returns:
      The next state, and `loss` (mean over the batch, before the update),
      `gradient_norm` and `update_norm`.
    """
    step_key = jax.random.fold_in(jax.random.fold_in(key, AUGMENT_STREAM), state.step)
    images = augment(step_key, batch["images"], config)
    loss, gradients = _summed_gradients(
        state.params, images, batch["labels"], batch["weights"], config.precision
    )
    count = batch["weights"].sum()
    gradients = jax.tree.map(lambda gradient: gradient / count, gradients)
    # optax raises a float to an int; all of our own arithmetic holds under "strict".
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = optimizer(config).update(gradients, state.opt_state, state.params)
    first = state.step % config.steps_per_epoch == 0
    next_state = TrainState(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
        epoch_loss=jnp.where(first, jnp.float32(0), state.epoch_loss) + loss,
    )
    return next_state, {
        "loss": loss / count,
        "gradient_norm": optax.tree.norm(gradients),
        "update_norm": optax.tree.norm(updates),
    }


@functools.partial(jax.jit, static_argnames="config", donate_argnames="state")
def train_steps(
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    order: jax.Array,
    key: jax.Array,
    num_steps: jax.Array,
    config: Config,
) -> TrainState:
    """Takes `num_steps` (int32 []) steps, which must not go past the end of the epoch.

    The number of steps is not compiled in: one program serves a whole epoch and any part
    of it, and gives the same bits whichever way the epoch is divided.

    Args:
      state: donated; use the returned one.
      images: all training images, uint8 [train_examples, 28, 28, 1].
      labels: int32 [train_examples].
      order: the `epoch_order` of the epoch that `state.step` is in.
      key: the run's key.
    """

    def body(_: jax.Array, state: TrainState) -> TrainState:
        indices = devices.divide(order[state.step % config.steps_per_epoch], 0)
        batch = take_batch(images, labels, indices)
        return train_step(state, batch, key, config)[0]

    return lax.fori_loop(0, num_steps, body, state)


def _summed_gradients(
    params: model.Params,
    images: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    precision: str = "float32",
) -> tuple[jax.Array, model.Params]:
    """The loss summed over a batch, and its gradient, in micro-batches where that pays."""
    value_and_grad = jax.value_and_grad(functools.partial(loss_sum, precision=precision))
    batch_size, parts = images.shape[0], devices.data_parts()
    part = math.ceil(batch_size / parts)
    count = math.ceil(part / CPU_MICRO_BATCH) if devices.on_cpu() else 1
    size = math.ceil(part / count)

    def split(x: jax.Array) -> jax.Array:
        # Each part is filled up by itself, so that no image moves to another device.
        by_part = _filled(x, parts * part, 0).reshape((parts, part, *x.shape[1:]))
        return _filled(by_part, count * size, 1).reshape((parts * count, size, *x.shape[1:]))

    def of_part(params: model.Params, *micro_batches: jax.Array) -> tuple[jax.Array, model.Params]:
        if count == 1:
            return value_and_grad(params, *(x[0] for x in micro_batches))

        def add(total: Any, micro_batch: tuple[jax.Array, ...]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, value_and_grad(params, *micro_batch)), None

        zeros = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, params))
        return lax.scan(add, zeros, micro_batches)[0]

    return devices.summed_over_parts(of_part, params, split(images), split(labels), split(weights))


def _filled(x: jax.Array, size: int, axis: int) -> jax.Array:
    """With zeros at the end of an axis, which then has that size."""
    return jnp.pad(x, [(0, size - x.shape[i] if i == axis else 0) for i in range(x.ndim)])
