"""The parts of the training loop: an epoch, its evaluation, and what ends the training early."""

import contextlib
import dataclasses
import datetime
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from mnist_flax.core.config import Config, ExpectedError
from mnist_flax.core.optimizer import learning_rate_schedule
from mnist_flax.core.train import TrainState
from mnist_flax.engine import distributed
from mnist_flax.engine.checkpoint import CheckpointManager
from mnist_flax.engine.seed_stats import aggregate, format_percent, mean_of
from mnist_flax.engine.workdir import MetricsRow
from mnist_flax.run.compilation import CompiledTraining
from mnist_flax.run.timing import ThroughputMeter

# Seconds of work given to the device at a time; a signal is noticed after each chunk.
CHUNK_SECONDS = 1.0

# The loss of a network that finds every digit equally probable, and the training loss of an epoch
# from which no training recovers.
CHANCE_LOSS = math.log(10)
DIVERGED_LOSS = 100 * CHANCE_LOSS


class TrainingInterrupted(ExpectedError):
    """A signal ended the training early, after the state had been saved."""

    prefix = ""
    raised_everywhere = True

    def __init__(self, signum: int, step: int):
        name = signal.Signals(signum).name
        super().__init__(
            f"stopped by {name}, saved at step {step:,}; the same command resumes from there"
        )
        self.exit_code = 128 + signum


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
    progress: "tqdm[Any]"
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
        losses = _epoch_losses(state)  # waits for the device
        meter.add(count, _count_images(step, count, config), time.perf_counter() - start)
        step += count
        context.progress.update(count)
        _require(context, "training loss", losses, np.isfinite(losses), step)
        if step < end:
            stop_on_signal(context, state)
    losses = _epoch_losses(state) / config.train_examples
    _require(context, "training loss", losses, losses < DIVERGED_LOSS, step)
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
        "train_loss": aggregate(_epoch_losses(state) / config.train_examples),
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
    signum = first_signal(context.signals)
    if signum:
        _require_finite(context, state)
        context.checkpoints.save(step_of(state), state)
        raise TrainingInterrupted(signum, step_of(state))


def first_signal(signals: list[int]) -> int:
    """The number of a signal that one of the processes has received; 0 if none has."""
    return distributed.allreduce_max(signals[0] if signals else 0)


@contextlib.contextmanager
def capture_signals() -> Iterator[list[int]]:
    """Collects SIGTERM and Ctrl-C instead of dying from them; a second one kills."""
    signals: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return

    def restore_handlers() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def handle(signum: int, _: object) -> None:
        signals.append(signum)
        restore_handlers()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield signals
    finally:
        restore_handlers()


def progress_bar(config: Config, step: int) -> "tqdm[Any]":
    """A progress bar on a terminal, on the primary process; elsewhere it shows nothing."""
    hidden = not (sys.stderr.isatty() and distributed.is_primary())
    return tqdm(total=config.total_steps, initial=step, unit="step", disable=hidden)


def step_of(state: TrainState) -> int:
    """The number of optimizer steps taken, the same for all seeds."""
    return int(np.ravel(distributed.gather_to_host(state.step))[0])


def describe_row(row: MetricsRow, config: Config) -> str:
    """A row of metrics as a line for the terminal, with the remaining time."""
    parts = [
        f"epoch {row['epoch']}/{config.epochs}",
        f"train loss {mean_of(row['train_loss']):.4f}",
    ]
    if "validation_loss" in row and "validation_accuracy" in row:
        accuracy = format_percent(row["validation_accuracy"])
        parts.append(f"validation loss {mean_of(row['validation_loss']):.4f} accuracy {accuracy}")
    accuracy = format_percent(row["test_accuracy"])
    parts.append(f"test loss {mean_of(row['test_loss']):.4f} accuracy {accuracy}")
    parts.append(f"{row['images_per_second']:,.0f} images/s")
    images = (config.epochs - row["epoch"]) * config.train_examples * config.num_seeds
    seconds = round(images / row["images_per_second"])
    if seconds:
        parts.append(f"{datetime.timedelta(seconds=seconds)} left")
    return "  ".join(parts)


def _epoch_losses(state: TrainState) -> np.ndarray:
    """The training loss of each seed, summed over this epoch's images so far."""
    return np.atleast_1d(distributed.gather_to_host(state.epoch_loss))


def _last_learning_rate(step: int, config: Config) -> float:
    return float(learning_rate_schedule(jnp.int32(step - 1), config))


def _count_images(step: int, count: int, config: Config) -> int:
    """How many images the `count` steps after `step`, all in one epoch, train on."""
    first = step % config.steps_per_epoch * config.batch_size
    images = min(first + count * config.batch_size, config.train_examples) - first
    return images * config.num_seeds


def _require_finite(context: TrainingContext, state: TrainState) -> None:
    """Stops a training before a state that is not finite is saved."""
    arrays = jax.tree.leaves(distributed.gather_to_host((state.params, state.opt_state)))
    shape = (context.config.num_seeds, -1)
    largest = np.max([np.abs(array).reshape(shape).max(axis=1) for array in arrays], axis=0)
    name = "largest number in the state"
    _require(context, name, largest, np.isfinite(largest), step_of(state))


def _require(
    context: TrainingContext, name: str, values: np.ndarray, valid: np.ndarray, step: int
) -> None:
    """Stops a training in which a value is not valid for one of the seeds."""
    if valid.all():
        return
    index = int(np.flatnonzero(~valid)[0])
    seed = f" of seed {context.config.seed + index}" if len(values) > 1 else ""
    checkpoints = context.checkpoints
    latest = checkpoints.latest
    hint = f"the last good checkpoint is {latest}" if latest else "there is no checkpoint yet"
    raise TrainingDiverged(
        f"the {name}{seed} became {values[index]:.3g} by step {step:,}, at learning rate "
        f"{_last_learning_rate(step, context.config):.3g}; {hint} in {checkpoints.folder}; try a "
        "lower --learning-rate in another --workdir"
    )
