"""One run from data to report: load, restore, loop, save, report."""

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

from mnist_flax import checkpoint, determinism, workdir
from mnist_flax.checkpoint import Checkpoints
from mnist_flax.config import Config, UserError
from mnist_flax.data import Dataset, load_dataset
from mnist_flax.optimizer import learning_rate
from mnist_flax.programs import Programs, compile_programs
from mnist_flax.spread import figure, mean_of, percent
from mnist_flax.tensorboard import TensorBoard
from mnist_flax.timing import Clock, Meter
from mnist_flax.train import TrainState
from mnist_flax.trained import Trained

# Seconds of work handed to the device at a time: how soon a signal is heeded.
PACE_SECONDS = 1.0

# The loss of a network that finds every digit equally probable; and an epoch's that is past hope.
GUESSING = math.log(10)
HOPELESS = 100 * GUESSING

SCORES = ("test_accuracy", "test_loss", "validation_accuracy", "validation_loss")

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
    tensorboard: TensorBoard
    metrics: list[dict[str, Any]]  # the lines of metrics.jsonl
    signals: list[int]  # that ask the training to stop


def run_experiment(
    config: Config,
    folder: Path,
    data_dir: Path | None = None,
    manual_dir: Path | None = None,
    log: Log = print,
    import_seconds: float = 0.0,
    with_report: bool = True,
) -> dict[str, Any]:
    """Runs, or goes on with, the experiment in a workdir.

    Args:
      config: as `workdir.settle_config` gave it.
      folder: the workdir; made where it is missing.
      data_dir: TFDS's data folder; its own default where None.
      manual_dir: a read-only folder with the original `.gz` files; or None.
      log: told one line at a time how things go.
      import_seconds: what importing took, for the summary.
      with_report: whether to write the report, which takes some seconds.

    Returns:
      The content of `summary.json`.

    Raises:
      UserError: something that the user can mend.
      Stopped: by SIGTERM or Ctrl-C while training, after saving.
      Diverged: the loss or a parameter is not finite, or the loss far too large.
    """
    clock = Clock(import_seconds)
    with workdir.held(folder), _explaining_disk_faults(folder):
        dataset = load_dataset(
            config.dataset, data_dir, manual_dir, config.validation_fraction, log
        )
        clock.lap("data")
        return _run(config, folder, dataset, log, clock, with_report)


def _run(
    config: Config, folder: Path, dataset: Dataset, log: Log, clock: Clock, with_report: bool
) -> dict[str, Any]:
    """`run_experiment` on a data set, in a workdir that is ours."""
    config = dataclasses.replace(config, dataset=dataset.name)
    if config.deterministic:
        determinism.require()
    environment = determinism.environment()
    _compare(workdir.begin(folder, config, environment), environment, config, log)
    programs = compile_programs(dataset, config)
    clock.lap("compile")

    kept = Checkpoints(folder / workdir.CHECKPOINTS, config.keep_checkpoints, log)
    with _noting_signals() as signals, kept as checkpoints:
        state = checkpoints.restore(programs.like)
        if state is None:
            state = programs.create_state()
        else:
            log(f"going on from step {_step_of(state):,} of {config.total_steps:,}")
        metrics = workdir.rewind_metrics(folder / workdir.METRICS, config, _step_of(state))
        with TensorBoard(folder / workdir.TENSORBOARD, metrics) as tensorboard:
            run = Run(config, folder, log, programs, checkpoints, tensorboard, metrics, signals)
            state = _train(run, state)
    if signals:
        raise Stopped(signals[0], _step_of(state))
    clock.lap("train")

    summary = _summarize(run, state, dataset, clock, environment)
    if with_report:
        _report(run, state, dataset, summary)
    if mean_of(summary["test_loss"]) > 0.99 * GUESSING:
        log("WARNING: this does no better than guessing; try a lower --learning-rate")
    workdir.write_json(folder / workdir.SUMMARY, summary)
    return summary


def _compare(begun: dict[str, Any], now: dict[str, Any], config: Config, log: Log) -> None:
    """Tells, or with `deterministic` refuses, what keeps a run from being as if undisturbed."""
    changes = "; ".join(determinism.changes(begun, now))
    if changes and config.deterministic:
        raise UserError(f"--deterministic cannot go on where {changes}; use another --workdir")
    if changes:
        log(f"NOTE: {changes}, so the last bits may differ from now on")


def _summarize(
    run: Run, state: TrainState, dataset: Dataset, clock: Clock, environment: dict[str, Any]
) -> dict[str, Any]:
    """The content of `summary.json`."""
    config, last = run.config, run.metrics[-1]
    return {
        "dataset": dataset.name,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)) // config.num_seeds,
        "test_examples": len(dataset.test[0]),
        **{name: last[name] for name in SCORES if name in last},
        "epochs": config.epochs,
        "steps": _step_of(state),
        "params_sha256": checkpoint.digest(state.params),
        "seconds": clock.seconds,
        "environment": environment,
    }


def _report(run: Run, state: TrainState, dataset: Dataset, summary: dict[str, Any]) -> None:
    """Evaluates in detail, and writes the report and TensorBoard's pictures."""
    from mnist_flax import report  # matplotlib and scikit-learn take seconds to import
    from mnist_flax.metrics import assess

    logits = run.programs.predict(state)
    held_out = (logits["validation"], dataset.validation[1]) if "validation" in logits else None
    images, labels = dataset.test
    trained = Trained(run.config, _step_of(state), state.params)
    evaluation = {
        "step": trained.step,
        "seeds": trained.seeds,
        "dataset": run.config.dataset,
        "split": "test",
        **assess(logits["test"], labels, held_out),
    }
    pictures = report.draw(trained, images, labels, run.metrics, evaluation)
    config = dataclasses.asdict(run.config)
    folder = run.folder / workdir.REPORT
    report.write_report(folder, config, run.metrics, summary, evaluation, pictures)
    with TensorBoard(run.folder / workdir.TENSORBOARD, run.metrics) as tensorboard:
        tensorboard.finish(config, summary, pictures)
    for line in report.in_short(evaluation):
        run.log(line)


def _train(run: Run, state: TrainState) -> TrainState:
    """The loop: trains to the last step, evaluating and saving at the ends of epochs."""
    config, step, meter = run.config, _step_of(state), Meter()
    bar = tqdm(total=config.total_steps, initial=step, unit="step", disable=not sys.stderr.isatty())
    with bar:
        for epoch in range(step // config.steps_per_epoch, config.epochs):
            state = _train_epoch(run, state, epoch, meter, bar)
            _end_epoch(run, state, meter)
            _heed_signals(run, state)
    return state


def _train_epoch(run: Run, state: TrainState, epoch: int, meter: Meter, bar: tqdm) -> TrainState:
    """Trains to the end of an epoch, in parts of about `PACE_SECONDS`."""
    step, end = _step_of(state), (epoch + 1) * run.config.steps_per_epoch
    order = run.programs.epoch_order(epoch)
    while step < end:
        count = min(meter.steps_in(PACE_SECONDS), end - step)
        began = time.perf_counter()
        state = run.programs.train_steps(state, order, count)
        epoch_loss = np.atleast_1d(state.epoch_loss)  # waits for the device
        meter.add(count, _images_in(step, count, run.config), time.perf_counter() - began)
        step += count
        bar.update(count)
        _require("training loss", epoch_loss, np.isfinite(epoch_loss), step, run)
        if step < end:
            _heed_signals(run, state)
    return state


def _heed_signals(run: Run, state: TrainState) -> None:
    if run.signals:
        run.checkpoints.save(_step_of(state), state)
        raise Stopped(run.signals[0], _step_of(state))


def _end_epoch(run: Run, state: TrainState, meter: Meter) -> None:
    """Evaluates, writes a line of metrics and saves, each if it is due."""
    config, step = run.config, _step_of(state)
    epoch = step // config.steps_per_epoch
    last = epoch == config.epochs
    train_loss = np.atleast_1d(state.epoch_loss) / config.train_examples
    _require("training loss", train_loss, train_loss < HOPELESS, step, run)
    largest = _largest(state, config.num_seeds)
    _require("largest number in the state", largest, np.isfinite(largest), step, run)
    line = None
    if last or epoch % config.eval_every == 0:
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
        workdir.append_metrics(run.folder / workdir.METRICS, line)
        run.metrics.append(line)
        run.tensorboard.write(line)
        run.log(_describe(line, config))
    if last or epoch % config.checkpoint_every == 0:
        run.checkpoints.save(step, state, line)


def _step_of(state: TrainState) -> int:
    """Optimizer steps taken, the same for all seeds."""
    return int(np.ravel(state.step)[0])


def _images_in(step: int, count: int, config: Config) -> int:
    """How many images the `count` steps after `step` train on, all in one epoch."""
    first = step % config.steps_per_epoch * config.batch_size
    images = min(first + count * config.batch_size, config.train_examples) - first
    return images * config.num_seeds


def _largest(state: TrainState, num_seeds: int) -> np.ndarray:
    """The size of the largest number in each seed's parameters and optimizer state."""
    leaves = [
        np.abs(np.asarray(leaf)).reshape((num_seeds, -1)).max(axis=1)
        for leaf in jax.tree.leaves((state.params, state.opt_state))
    ]
    return np.max(leaves, axis=0)


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
def _noting_signals() -> Iterator[list[int]]:
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


@contextlib.contextmanager
def _explaining_disk_faults(folder: Path) -> Iterator[None]:
    """Turns what a full or a forbidden disk raises into what people can read."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write to {error.filename or folder}: {error.strerror or error}; the "
            "checkpoints saved before are intact"
        ) from error
