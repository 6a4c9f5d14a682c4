"""Training as pure functions: the state, the loss, one step, and a loop of steps.

All randomness is derived from `(key, step)` and `(key, epoch)`, so a state that is restored from
any step continues exactly as if the training had not stopped.
"""

import functools
from collections.abc import Callable
from typing import TypedDict

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jaxtyping import Float32, Int32, Key, UInt8

from mnist_flax.core import model, sharding
from mnist_flax.core.augment import augment, to_float
from mnist_flax.core.batches import AUGMENT_STREAM, INIT_STREAM, Batch, gather_batch
from mnist_flax.core.config import Config
from mnist_flax.core.optimizer import make_optimizer


@flax.struct.dataclass
class TrainState:
    """Everything that training changes, and so everything that a checkpoint holds."""

    step: Int32[Array, ""]  # optimizer steps taken
    params: model.Params  # of the network
    opt_state: optax.OptState
    epoch_loss: Float32[Array, ""]  # training loss summed over the epoch's images so far
    raw_params: model.Params | None = None  # what the optimizer moves, if `params` average it


class StepMetrics(TypedDict):
    """Measured in one step, before the update: the mean loss in nats, and norms."""

    loss: Float32[Array, ""]
    gradient_norm: Float32[Array, ""]
    update_norm: Float32[Array, ""]


@functools.partial(jax.jit, static_argnames="config")
def create_state(key: Key[Array, ""], config: Config) -> TrainState:
    """The state before the first step."""
    params = model.init(jax.random.fold_in(key, INIT_STREAM), config)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=make_optimizer(config).init(params),
        epoch_loss=jnp.zeros((), jnp.float32),
        raw_params=params if config.ema_fraction else None,
    )


def weighted_loss_sum(
    params: model.Params,
    images: UInt8[Array, "batch size size 1"],
    labels: Int32[Array, " batch"],
    weights: Float32[Array, " batch"],
    precision: str = "float32",
) -> Float32[Array, ""]:
    """The cross-entropy of cropped images in nats, summed with weights."""
    logits = model.apply(params, to_float(images), precision)
    return jnp.sum(weights * optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def train_step(
    state: TrainState,
    batch: Batch,
    key: Key[Array, ""],
    config: Config,
    loss_sum: Callable[..., Array] = weighted_loss_sum,
) -> tuple[TrainState, StepMetrics]:
    """One update of the parameters, with the state after `state.step` updates and the run's key.

    Another loss has the arguments of `weighted_loss_sum`, and adds nothing where weights are 0.
    """
    step_key = jax.random.fold_in(jax.random.fold_in(key, AUGMENT_STREAM), state.step)
    images = augment(step_key, batch["images"], config)
    loss_sum = functools.partial(loss_sum, precision=config.precision)
    params = state.params if state.raw_params is None else state.raw_params
    loss, gradients = sharding.accumulate_gradients(
        jax.value_and_grad(loss_sum), params, images, batch["labels"], batch["weights"]
    )
    count = batch["weights"].sum()
    gradients = jax.tree.map(lambda gradient: gradient / count, gradients)
    # optax raises a float to the power of an int, which "strict" promotion forbids.
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = make_optimizer(config).update(gradients, state.opt_state, params)
    params = raw_params = optax.apply_updates(params, updates)
    if config.ema_fraction:
        # The plain mean of the first steps, in which the initial parameters do not count.
        horizon = max(1.0, config.ema_fraction * config.total_steps)
        weight = 1 / jnp.minimum(horizon, (state.step + 1).astype(jnp.float32))
        params = optax.incremental_update(raw_params, state.params, weight)
    is_first = state.step % config.steps_per_epoch == 0
    next_state = TrainState(
        step=state.step + 1,
        params=params,  # pyright: ignore[reportArgumentType]
        opt_state=opt_state,
        epoch_loss=jnp.where(is_first, jnp.float32(0), state.epoch_loss) + loss,
        raw_params=raw_params if config.ema_fraction else None,  # pyright: ignore[reportArgumentType]
    )
    return next_state, {
        "loss": loss / count,
        "gradient_norm": optax.tree.norm(gradients),
        "update_norm": optax.tree.norm(updates),
    }


@functools.partial(jax.jit, static_argnames="config", donate_argnames="state")
def train_steps(
    state: TrainState,
    order: Int32[Array, "steps batch"],
    key: Key[Array, ""],
    images: UInt8[Array, "N 28 28 1"],
    labels: Int32[Array, " N"],
    num_steps: Int32[Array, ""],
    config: Config,
) -> TrainState:
    """Takes `num_steps` steps, which must not go past the end of the epoch.

    The number of steps is an argument of the compiled program, so one program serves an epoch and
    any part of it, with the same bits however the epoch is divided. The given state is donated.
    `order` is the `epoch_order` of the epoch that `state.step` is in.
    """

    def body(_: Array, state: TrainState) -> TrainState:
        indices = sharding.shard_axis(order[state.step % config.steps_per_epoch], 0)
        batch = gather_batch(images, labels, indices)
        return train_step(state, batch, key, config)[0]

    return lax.fori_loop(0, num_steps, body, state)
