"""A run from data to report: load, compile, restore, train, evaluate, save, report."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from mnist_flax.core.config import DATASET_SIZES, Config, UserError
from mnist_flax.data.dataset import Dataset, load_dataset
from mnist_flax.engine import distributed, environment, workdir
from mnist_flax.engine.checkpoint import CheckpointManager, tree_sha256
from mnist_flax.engine.distributed import run_on_primary
from mnist_flax.engine.environment import Environment
from mnist_flax.engine.seed_stats import mean_of
from mnist_flax.engine.trained_model import TrainedModel
from mnist_flax.engine.workdir import MetricsRow, Summary, diff_configs, from_dict
from mnist_flax.run import display, loop
from mnist_flax.run.compilation import compile_training
from mnist_flax.run.loop import CHANCE_LOSS, TrainingContext, step_of
from mnist_flax.run.signals import TrainingInterrupted, capture_signals, first_signal
from mnist_flax.run.tensorboard import TensorBoard
from mnist_flax.run.timing import Stopwatch

Log = Callable[[str], None]


def run_experiment(
    config: Config,
    folder: Path,
    data_dir: Path | None = None,
    manual_dir: Path | None = None,
    log: Log = print,
    import_seconds: float = 0.0,
    with_report: bool = True,
    fallback: Callable[[], Config] | None = None,
) -> Summary:
    """Runs or resumes the experiment in a workdir; returns the content of `summary.json`.

    The config is from `workdir.resolve_config`; the folders of the data are as in `load_dataset`.
    `log` receives the progress, line by line. The summary includes `import_seconds`. `fallback` is
    the config for scikit-learn's digits where the dataset is `auto` and MNIST is unavailable; by
    default it is the same one.

    Raises a UserError about what the user can correct, TrainingInterrupted after a SIGTERM or
    Ctrl-C while training, when the state is saved, and TrainingDiverged if the loss or a parameter
    is not finite, or the loss is far too large.
    """
    stopwatch = Stopwatch(import_seconds)
    log = log if distributed.is_primary() else lambda _: None
    _require_same_config(config)
    with workdir.lock_workdir(folder), _explain_disk_errors(folder):
        dataset = _load_dataset(config, data_dir, manual_dir, log)
        if fallback and config.dataset == "auto" and dataset.name == "digits":
            config = fallback()
        config = dataclasses.replace(config, dataset=dataset.name)
        stopwatch.end_phase("data")

        if config.deterministic:
            environment.require_deterministic_backend()
        training = compile_training(dataset, config)
        stopwatch.end_phase("compile")
        # Not before, because a run that is refused leaves nothing behind.
        current = _check_environment(folder, config, log)

        checkpoints = CheckpointManager(folder / workdir.CHECKPOINTS, config.max_to_keep, log)
        with capture_signals() as signals, checkpoints:
            state = checkpoints.restore(training.abstract_state)
            if state is None:
                state = training.create_state()
            start = step_of(state)
            metrics = workdir.truncate_metrics(folder, config, start)
            for line in display.describe_start(config, folder, state.params, current, start):
                log(line)
            board = TensorBoard(folder / workdir.TENSORBOARD, metrics)
            with board, display.show_progress(config, start) as advance:
                context = TrainingContext(config, training, checkpoints, signals, advance)
                for epoch in range(start // config.steps_per_epoch + 1, config.epochs + 1):
                    state = loop.train_epoch(context, state, epoch)
                    row = None
                    if config.is_evaluated(epoch):
                        row = loop.evaluate_epoch(context, state, epoch)
                        # Before the checkpoint, so that no checkpoint lacks its row.
                        workdir.append_metrics(folder, row)
                        board.write(row)
                        metrics.append(row)
                        log(display.describe_row(row, config))
                    if config.is_checkpointed(epoch):
                        checkpoints.save(step_of(state), state, row)
                    loop.stop_on_signal(context, state)
        if signum := first_signal(signals):  # while the last checkpoint was being saved
            raise TrainingInterrupted(signum, step_of(state))
        stopwatch.end_phase("train")

        params = distributed.gather_to_host(state.params)
        trained = TrainedModel(config, step_of(state), params)
        summary = _summarize(trained, metrics[-1], stopwatch.seconds, current)
        if with_report:
            log("writing the report")
            logits = training.predict(state)
            _write_report(folder, trained, dataset, logits, metrics, summary, log)
        if mean_of(summary["test_loss"]) > 0.99 * CHANCE_LOSS:
            log("WARNING: this is no better than guessing; try a lower --learning-rate")
        workdir.write_summary(folder, summary)
        return summary


def _require_same_config(config: Config) -> None:
    """Refuses processes that were started with different configs."""
    primary = run_on_primary(lambda: dataclasses.asdict(config))()
    differences = diff_configs(from_dict(primary), config)
    if distributed.allreduce_max(len(differences)):
        details = "; ".join(differences) or "another process than this one"
        raise UserError(f"the processes have different configs ({details}); use one for all")


def _load_dataset(
    config: Config, data_dir: Path | None, manual_dir: Path | None, log: Log
) -> Dataset:
    """The dataset, which the primary process prepares before the others read it."""

    @functools.cache
    def load(name: str) -> Dataset:
        return load_dataset(name, data_dir, manual_dir, config.validation_fraction, log)

    name = run_on_primary(lambda: load(config.dataset).name)()
    return load(config.dataset if distributed.is_primary() else name)


def _check_environment(folder: Path, config: Config, log: Log) -> Environment:
    """Initializes the workdir; reports a changed environment, or refuses it if `deterministic`."""
    current = environment.current_environment()
    original = workdir.initialize_workdir(folder, config, current)
    changes = "; ".join(environment.diff_environments(original, current))
    if changes and config.deterministic:
        raise UserError(f"--deterministic cannot resume where {changes}; use another --workdir")
    if changes:
        log(f"NOTE: {changes}, so the last bits of the result may differ from now on")
    if (
        config.precision == "bfloat16"
        and current["backend"] == "cpu"
        and not environment.multiplies_bfloat16()
    ):
        log("NOTE: this processor does not multiply bfloat16; --precision float32 is faster here")
    return current


def _summarize(
    trained: TrainedModel, row: MetricsRow, seconds: dict[str, float], current: Environment
) -> Summary:
    """The summary of a run, from the last row of its metrics."""
    summary: Summary = {
        "dataset": row["dataset"],
        "parameters": trained.num_parameters,
        "test_examples": DATASET_SIZES[row["dataset"]][1],
        "test_accuracy": row["test_accuracy"],
        "test_loss": row["test_loss"],
        "epochs": trained.config.epochs,
        "steps": trained.step,
        "params_sha256": tree_sha256(trained.params),
        "seconds": seconds,
        "environment": current,
    }
    if "validation_accuracy" in row and "validation_loss" in row:
        summary["validation_accuracy"] = row["validation_accuracy"]
        summary["validation_loss"] = row["validation_loss"]
    return summary


@run_on_primary
def _write_report(
    folder: Path,
    trained: TrainedModel,
    dataset: Dataset,
    logits: Mapping[str, np.ndarray],
    metrics: list[MetricsRow],
    summary: Summary,
    log: Log,
) -> None:
    """Evaluates in detail, and writes the report and TensorBoard's pictures."""
    from mnist_flax.evaluate import metrics as metrics_lib  # takes seconds to import
    from mnist_flax.evaluate import report

    held_out = (logits["validation"], dataset.validation[1]) if "validation" in logits else None
    images, labels = dataset.test
    evaluation = metrics_lib.evaluate_logits(
        trained, dataset.name, "test", logits["test"], labels, held_out
    )
    made = report.make_report(folder, trained, images, labels, evaluation, summary)
    report.write_report(folder / workdir.REPORT, made)
    with TensorBoard(folder / workdir.TENSORBOARD, metrics) as board:
        board.finish(trained.config, summary, report.draw_pictures(made))
    for line in report.summary_lines(evaluation):
        log(line)


@contextlib.contextmanager
def _explain_disk_errors(folder: Path) -> Iterator[None]:
    """Reports a full or read-only disk in one line."""
    try:
        yield
    except OSError as error:
        message = f"cannot write to {error.filename or folder}: {error.strerror or error}"
        raise UserError(f"{message}; the earlier checkpoints are intact") from error
