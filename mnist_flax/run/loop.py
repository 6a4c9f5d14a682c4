"""The parts of the training loop: an epoch, its evaluation, and what ends the training early.

`train_epoch` gives the device the order of an epoch's images; `core/train.py` is what it does with
each batch of them.
"""

import dataclasses
import math
import time
from collections.abc import Callable

import jax
import numpy as np

from mnist_flax.core.config import Config, ExpectedError
from mnist_flax.core.optimizer import learning_rate_schedule
from mnist_flax.core.train import TrainState
from mnist_flax.engine import distributed
from mnist_flax.engine.checkpoint import CheckpointManager
from mnist_flax.engine.seed_stats import aggregate
from mnist_flax.engine.workdir import MetricsRow
from mnist_flax.run.compilation import CompiledTraining
from mnist_flax.run.signals import TrainingInterrupted, first_signal
from mnist_flax.run.timing import ThroughputMeter

# Seconds of work given to the device at a time; a signal is noticed after each chunk.
CHUNK_SECONDS = 1.0

# The loss of a network that finds every digit equally probable, and the training loss of an epoch
# from which no training recovers.
CHANCE_LOSS = math.log(10)
DIVERGED_LOSS = 100 * CHANCE_LOSS


class TrainingDiverged(ExpectedError):
    """The training cannot recover; its checkpoints are from before that."""

    raised_everywhere = True


@dataclasses.dataclass(frozen=True)
class TrainingContext:
    """What the parts of the training loop share."""

    config: Config
    training: CompiledTraining
    checkpoints: CheckpointManager
    signals: list[int]
    """Received signals that ask the training to stop."""
    advance: Callable[[int], object]
    """Shows that so many steps more have been taken."""
    meter: ThroughputMeter = dataclasses.field(default_factory=ThroughputMeter)


def train_epoch(context: TrainingContext, state: TrainState, epoch: int) -> TrainState:
    """Trains to the end of an epoch, counted from 1, in chunks of about `CHUNK_SECONDS`.

    Raises TrainingInterrupted after a signal, and TrainingDiverged if the loss or a parameter is
    not finite, or the loss is far too large.
    """
    config, meter = context.config, context.meter
    step, end = step_of(state), epoch * config.steps_per_epoch
    order = context.training.epoch_order(epoch - 1)
    while step < end:
        count = distributed.broadcast_from_primary(min(meter.steps_in(CHUNK_SECONDS), end - step))
        start = time.perf_counter()
        state = context.training.train_steps(state, order, count)
        losses = _epoch_losses(state, config)  # waits for the device
        remaining = config.train_examples - step % config.steps_per_epoch * config.batch_size
        images = min(count * config.batch_size, remaining) * config.num_seeds
        meter.add(count, images, time.perf_counter() - start)
        step += count
        context.advance(count)
        _require(context, "training loss", losses, losses < DIVERGED_LOSS, step)
        if step < end:
            stop_on_signal(context, state)
    _require_finite(context, state)
    return state


def evaluate_epoch(context: TrainingContext, state: TrainState, epoch: int) -> MetricsRow:
    """The metrics of an epoch, counted from 1, at whose end the state is.

    Raises TrainingDiverged if the test loss is not finite.
    """
    config, step = context.config, step_of(state)
    scores = context.training.evaluate(state)
    test_loss = scores["test_loss"]
    _require(context, "test loss", test_loss, np.isfinite(test_loss), step)
    seconds, images_per_second = context.meter.read()
    row: MetricsRow = {
        "step": step,
        "epoch": epoch,
        "dataset": config.dataset,
        "learning_rate": _last_learning_rate(step, config),
        "train_loss": aggregate(_epoch_losses(state, config)),
        "test_loss": aggregate(test_loss),
        "test_accuracy": aggregate(scores["test_accuracy"]),
        "seconds": seconds,
        "images_per_second": images_per_second,
    }
    if config.validation_fraction:
        row["validation_loss"] = aggregate(scores["validation_loss"])
        row["validation_accuracy"] = aggregate(scores["validation_accuracy"])
    return row


def stop_on_signal(context: TrainingContext, state: TrainState) -> None:
    """Saves the state and raises TrainingInterrupted, if a process has received a signal."""
    if signum := first_signal(context.signals):
        _require_finite(context, state)
        context.checkpoints.save(step_of(state), state)
        raise TrainingInterrupted(signum, step_of(state))


def step_of(state: TrainState) -> int:
    """The number of optimizer steps taken, the same for all seeds."""
    return int(np.ravel(distributed.gather_to_host(state.step))[0])


def _epoch_losses(state: TrainState, config: Config) -> np.ndarray:
    """The training loss of each seed: this epoch's sum so far, divided by all images."""
    return np.atleast_1d(distributed.gather_to_host(state.epoch_loss)) / config.train_examples


def _last_learning_rate(step: int, config: Config) -> float:
    return float(learning_rate_schedule(step - 1, config))


def _require_finite(context: TrainingContext, state: TrainState) -> None:
    """Stops a training before a state that is not finite is saved."""
    arrays = jax.tree.leaves(distributed.gather_to_host((state.params, state.opt_state)))
    shape = (context.config.num_seeds, -1)
    largest = np.max([np.abs(array).reshape(shape).max(axis=1) for array in arrays], axis=0)
    valid = np.isfinite(largest)
    _require(context, "largest number in the state", largest, valid, step_of(state))


def _require(
    context: TrainingContext, name: str, values: np.ndarray, valid: np.ndarray, step: int
) -> None:
    """Stops a training in which a value is not valid for one of the seeds."""
    if valid.all():
        return
    index = int(valid.argmin())
    seed = f" of seed {context.config.seed + index}" if len(values) > 1 else ""
    latest = context.checkpoints.latest
    hint = f"the last good checkpoint is {latest}" if latest else "there is no checkpoint yet"
    raise TrainingDiverged(
        f"the {name}{seed} became {values[index]:.3g} by step {step:,}, at learning rate "
        f"{_last_learning_rate(step, context.config):.3g}; {hint} in "
        f"{context.checkpoints.folder}; try a lower --learning-rate in another --workdir"
    )
