"""The training loop: parts of epochs, evaluation, checkpoints, and what may end it early."""

import contextlib
import dataclasses
import datetime
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from mnist_flax import processes, workdir
from mnist_flax.checkpoint import Checkpoints
from mnist_flax.config import Config
from mnist_flax.optimizer import learning_rate
from mnist_flax.programs import Programs
from mnist_flax.spread import figure, mean_of, percent
from mnist_flax.tensorboard import TensorBoard
from mnist_flax.timing import Meter
from mnist_flax.train import TrainState

# Seconds of work handed to the device at a time: how soon a signal is heeded.
PACE_SECONDS = 1.0

# The loss of a network that finds every digit equally probable; and an epoch's that is past hope.
GUESSING = math.log(10)
HOPELESS = 100 * GUESSING

Log = Callable[[str], None]


class Stopped(Exception):
    """A signal ended the training early, after the state had been saved."""

    def __init__(self, signum: int, step: int):
        super().__init__(f"stopped by {signal.Signals(signum).name}, saved at step {step:,}")
        self.signum = signum


class Diverged(Exception):
    """The training is past hope; the checkpoints are from before that."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What the training loop works with."""

    config: Config
    folder: Path
    log: Log
    programs: Programs
    checkpoints: Checkpoints
    tensorboard: TensorBoard | None  # the first process's
    metrics: list[dict[str, Any]]  # the lines of metrics.jsonl
    signals: list[int]  # that ask the training to stop


def train(run: Run, state: TrainState) -> TrainState:
    """Trains to the last step, evaluating and saving at the ends of epochs.

    Raises:
      Stopped: a signal came, to any of the processes; the state has been saved.
      Diverged: the loss or a parameter is not finite, or the loss far too large.
      UserError: a checkpoint cannot be saved.
    """
    config, step, meter = run.config, step_of(state), Meter()
    shown = sys.stderr.isatty() and processes.is_first()
    with tqdm(total=config.total_steps, initial=step, unit="step", disable=not shown) as bar:
        for epoch in range(step // config.steps_per_epoch, config.epochs):
            state = _train_epoch(run, state, epoch, meter, bar)
            _end_epoch(run, state, meter)
            _heed_signals(run, state)
    return state


def _train_epoch(run: Run, state: TrainState, epoch: int, meter: Meter, bar: Any) -> TrainState:
    """Trains to the end of an epoch, in parts of about `PACE_SECONDS`."""
    step, end = step_of(state), (epoch + 1) * run.config.steps_per_epoch
    order = run.programs.epoch_order(epoch)
    while step < end:
        count = processes.first_of(min(meter.steps_in(PACE_SECONDS), end - step))
        began = time.perf_counter()
        state = run.programs.train_steps(state, order, count)
        epoch_loss = _each_loss(state)  # waits for the device
        meter.add(count, _images_in(step, count, run.config), time.perf_counter() - began)
        step += count
        bar.update(count)
        _require("training loss", epoch_loss, np.isfinite(epoch_loss), step, run)
        if step < end:
            _heed_signals(run, state)
    return state


def _heed_signals(run: Run, state: TrainState) -> None:
    signum = first_signal(run)
    if signum:
        _require_finite(run, state)
        run.checkpoints.save(step_of(state), state)
        raise Stopped(signum, step_of(state))


def first_signal(run: Run) -> int:
    """The number of a signal that one of the processes has got; 0 where none has."""
    return processes.largest_of(run.signals[0] if run.signals else 0)


def _end_epoch(run: Run, state: TrainState, meter: Meter) -> None:
    """Evaluates, writes a line of metrics and saves, each if it is due."""
    config, step = run.config, step_of(state)
    epoch = step // config.steps_per_epoch
    train_loss = _each_loss(state) / config.train_examples
    _require("training loss", train_loss, train_loss < HOPELESS, step, run)
    _require_finite(run, state)
    line: dict[str, Any] | None = None
    if config.is_evaluated(epoch):
        scores = run.programs.evaluate(state)
        _require("test loss", scores["test_loss"], np.isfinite(scores["test_loss"]), step, run)
        line = {
            "step": step,
            "epoch": epoch,
            "dataset": config.dataset,
            "learning_rate": float(learning_rate(jnp.int32(step - 1), config)),
            "train_loss": figure(train_loss),
            **{name: figure(values) for name, values in scores.items()},
            **meter.read(),
        }
        # Before the checkpoint, so that none is ever without its line.
        if run.tensorboard:
            workdir.append_metrics(run.folder / workdir.METRICS, line)
            run.tensorboard.write(line)
        run.metrics.append(line)
        run.log(_describe(line, config))
    if epoch == config.epochs or epoch % config.checkpoint_every == 0:
        run.checkpoints.save(step, state, line)


def step_of(state: TrainState) -> int:
    """Optimizer steps taken, the same for all seeds."""
    return int(np.ravel(processes.to_host(state.step))[0])


def _each_loss(state: TrainState) -> np.ndarray:
    """The training loss of each seed, summed over this epoch's images so far."""
    return np.atleast_1d(processes.to_host(state.epoch_loss))


def _images_in(step: int, count: int, config: Config) -> int:
    """How many images the `count` steps after `step` train on, all in one epoch."""
    first = step % config.steps_per_epoch * config.batch_size
    images = min(first + count * config.batch_size, config.train_examples) - first
    return images * config.num_seeds


def _largest(state: TrainState, num_seeds: int) -> np.ndarray:
    """The size of the largest number in each seed's parameters and optimizer state."""
    leaves = [
        np.abs(leaf).reshape((num_seeds, -1)).max(axis=1)
        for leaf in jax.tree.leaves(processes.to_host((state.params, state.opt_state)))
    ]
    return np.max(leaves, axis=0)


def _require_finite(run: Run, state: TrainState) -> None:
    """Stops a training before what is not finite would be saved."""
    largest = _largest(state, run.config.num_seeds)
    _require("largest number in the state", largest, np.isfinite(largest), step_of(state), run)


def _require(what: str, values: np.ndarray, good: np.ndarray, step: int, run: Run) -> None:
    """Stops a training in which something is not good for one of the seeds."""
    if good.all():
        return
    bad = int(np.flatnonzero(~good)[0])
    whose = f" of seed {run.config.seed + bad}" if len(values) > 1 else ""
    rate = float(learning_rate(jnp.int32(step - 1), run.config))
    latest = run.checkpoints.latest
    kept = f"the last good checkpoint is {latest}" if latest else "there is no checkpoint yet"
    raise Diverged(
        f"the {what}{whose} became {values[bad]:.3g} by step {step:,}, at learning rate "
        f"{rate:.3g}; {kept} in {run.checkpoints.folder}; try a lower --learning-rate in "
        "another --workdir"
    )


def _describe(line: dict[str, Any], config: Config) -> str:
    scores = "  ".join(
        f"{split} loss {mean_of(line[f'{split}_loss']):.4f} "
        f"accuracy {percent(line[f'{split}_accuracy'])}"
        for split in ("validation", "test")
        if f"{split}_loss" in line
    )
    return (
        f"epoch {line['epoch']}/{config.epochs}  train loss {mean_of(line['train_loss']):.4f}  "
        f"{scores}  {line['images_per_second']:,.0f} images/s{_left(line, config)}"
    )


def _left(line: dict[str, Any], config: Config) -> str:
    images = (config.epochs - line["epoch"]) * config.train_examples * config.num_seeds
    seconds = round(images / line["images_per_second"])
    return f"  {datetime.timedelta(seconds=seconds)} left" if seconds else ""


@contextlib.contextmanager
def noting_signals() -> Iterator[list[int]]:
    """Collects SIGTERM and Ctrl-C instead of dying of them; of a second one it does die."""
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return

    def note(signum: int, _: Any) -> None:
        noted.append(signum)
        for number, handler in previous.items():
            signal.signal(number, handler)

    previous = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield noted
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
