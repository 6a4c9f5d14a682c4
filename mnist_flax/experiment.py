"""One run from data to report: load, restore, loop, save, report."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mnist_flax import checkpoint, determinism, loop, processes, workdir
from mnist_flax.checkpoint import Checkpoints
from mnist_flax.config import Config, UserError, differences, from_dict
from mnist_flax.data import Dataset, load_dataset
from mnist_flax.loop import GUESSING, Log, Run, Stopped, step_of
from mnist_flax.programs import compile_programs
from mnist_flax.spread import mean_of
from mnist_flax.tensorboard import TensorBoard
from mnist_flax.timing import Clock
from mnist_flax.trained import Trained

SCORES = ("test_accuracy", "test_loss", "validation_accuracy", "validation_loss")


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
    if not processes.is_first():
        log = lambda _: None  # noqa: E731
    with contextlib.ExitStack() as stack:
        stack.enter_context(processes.noticing_loss())
        _require_same(config)
        processes.on_first(lambda: stack.enter_context(workdir.held(folder)))
        stack.enter_context(_explaining_disk_faults(folder))
        dataset = _load(config, data_dir, manual_dir, log)
        clock.lap("data")
        return _run(config, folder, dataset, log, clock, with_report)


def _require_same(config: Config) -> None:
    """Refuses processes that were asked for different runs."""
    asked = processes.on_first(lambda: dataclasses.asdict(config))
    changes = differences(from_dict(asked), config)
    if processes.largest_of(len(changes)):
        which = "; ".join(changes) or "another process than this one"
        raise UserError(f"the processes were given different configs ({which}); give all the same")


def _load(config: Config, data_dir: Path | None, manual_dir: Path | None, log: Log) -> Dataset:
    """The data set, which the first process prepares while the others wait."""
    found: list[Dataset] = []

    def load(name: str) -> str:
        fraction = config.validation_fraction
        found.append(load_dataset(name, data_dir, manual_dir, fraction, log))
        return found[0].name

    name = processes.on_first(lambda: load(config.dataset))
    if not found:
        load(name)
    return found[0]


def _run(
    config: Config, folder: Path, dataset: Dataset, log: Log, clock: Clock, with_report: bool
) -> dict[str, Any]:
    """`run_experiment` on a data set, in a workdir that is ours."""
    config = dataclasses.replace(config, dataset=dataset.name)
    if config.deterministic:
        determinism.require()
    environment = determinism.environment()
    begun = processes.on_first(lambda: workdir.begin(folder, config, environment))
    _compare(begun, processes.on_first(lambda: environment), config, log)
    programs = compile_programs(dataset, config)
    clock.lap("compile")

    kept = Checkpoints(folder / workdir.CHECKPOINTS, config.keep_checkpoints, log)
    with loop.noting_signals() as signals, kept as checkpoints:
        state = checkpoints.restore(programs.like)
        if state is None:
            state = programs.create_state()
        else:
            log(f"going on from step {step_of(state):,} of {config.total_steps:,}")
        begin, path = step_of(state), folder / workdir.METRICS
        metrics = processes.on_first(lambda: workdir.rewind_metrics(path, config, begin))
        writes = processes.is_first()
        board = TensorBoard(folder / workdir.TENSORBOARD, metrics) if writes else None
        with board or contextlib.nullcontext():
            run = Run(config, folder, log, programs, checkpoints, board, metrics, signals)
            state = loop.train(run, state)
    if signum := loop.first_signal(run):
        raise Stopped(signum, step_of(state))
    clock.lap("train")
    logits = programs.predict(state) if with_report else {}
    trained = Trained(config, step_of(state), processes.to_host(state.params))

    def finish() -> dict[str, Any]:
        summary = _summarize(run, trained, dataset, clock, environment)
        if with_report:
            _report(run, trained, logits, dataset, summary)
        if mean_of(summary["test_loss"]) > 0.99 * GUESSING:
            log("WARNING: this does no better than guessing; try a lower --learning-rate")
        workdir.write_json(folder / workdir.SUMMARY, summary)
        return summary

    return processes.on_first(finish)


def _compare(begun: dict[str, Any], now: dict[str, Any], config: Config, log: Log) -> None:
    """Tells, or with `deterministic` refuses, what keeps a run from being as if undisturbed."""
    changes = "; ".join(determinism.changes(begun, now))
    if changes and config.deterministic:
        raise UserError(f"--deterministic cannot go on where {changes}; use another --workdir")
    if changes:
        log(f"NOTE: {changes}, so the last bits may differ from now on")


def _summarize(
    run: Run, trained: Trained, dataset: Dataset, clock: Clock, environment: dict[str, Any]
) -> dict[str, Any]:
    """The content of `summary.json`."""
    config, last = run.config, run.metrics[-1]
    parameters = sum(leaf.size for leaf in jax.tree.leaves(trained.params))
    return {
        "dataset": dataset.name,
        "parameters": parameters // config.num_seeds,
        "test_examples": len(dataset.test[0]),
        **{name: last[name] for name in SCORES if name in last},
        "epochs": config.epochs,
        "steps": trained.step,
        "params_sha256": checkpoint.digest(trained.params),
        "seconds": clock.seconds,
        "environment": environment,
    }


def _report(
    run: Run,
    trained: Trained,
    logits: dict[str, np.ndarray],
    dataset: Dataset,
    summary: dict[str, Any],
) -> None:
    """Evaluates in detail, and writes the report and TensorBoard's pictures."""
    from mnist_flax import report  # matplotlib and scikit-learn take seconds to import
    from mnist_flax.metrics import assess

    held_out = (logits["validation"], dataset.validation[1]) if "validation" in logits else None
    images, labels = dataset.test
    evaluation = {
        "step": trained.step,
        "epochs": trained.epochs,
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
