"""The training loop with a fake compiled training: what it does after which step, in milliseconds.

Every moment at which a run can be stopped is tried. Real processes that are killed are in
`tests/integration/test_run_processes.py`.
"""

import dataclasses
import functools
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_flax.core.config import Config, UserError
from mnist_flax.core.train import TrainState
from mnist_flax.engine.workdir import read_summary
from mnist_flax.run import experiment, loop
from mnist_flax.run.experiment import run_experiment
from mnist_flax.run.loop import TrainingDiverged
from mnist_flax.run.signals import TrainingInterrupted, capture_signals
from tests.conftest import read_metrics, without_timing

CONFIG = Config(dataset="digits", epochs=4, batch_size=512)  # 3 steps an epoch
STEPS = range(1, CONFIG.total_steps + 1)


class Killed(BaseException):
    """Ends the process at once, as SIGKILL does: nothing is saved."""


class FakeTraining:
    """Steps whose result depends on all steps before and on the order of their epoch.

    The event with the number of a step gets the state at its end, and returns another.
    """

    abstract_state = None

    def __init__(self, config, events):
        self.config, self.events, self.counts = config, events, []

    def create_state(self):
        values: Any = np.arange(self.config.num_seeds, dtype=np.float32)
        step: Any = np.zeros(self.config.num_seeds, np.int32)
        return TrainState(step, {"layer": values}, {"mean": values}, 100 + values)

    def epoch_order(self, epoch):
        return epoch

    def train_steps(self, state, order, count):
        self.counts.append(count)
        for step in range(int(state.step[0]), int(state.step[0]) + count):
            is_first = step % self.config.steps_per_epoch == 0
            values = (31 * state.params["layer"] + 7 * order + step) % 9973
            state = state.replace(
                step=state.step + 1,
                params={"layer": values},
                opt_state={"mean": 0.9 * state.opt_state["mean"] + values},
                epoch_loss=(0 if is_first else state.epoch_loss) + values,
            )
            state = self.events.get(step + 1, lambda state: state)(state)
        return state

    def evaluate(self, state):
        splits = ["test", *(["validation"] if self.config.validation_fraction else [])]
        scores = {"loss": state.params["layer"] / 1e4, "accuracy": state.opt_state["mean"] / 1e6}
        scores = {f"{split}_{name}": scores[name] for split in splits for name in scores}
        return self.events.get("evaluate", lambda scores: scores)(scores)


class FakeCheckpoints:
    """Checkpoints in memory."""

    def __init__(self, folder, max_to_keep, log, *, saved, events):
        self.folder, self.saved, self.events = folder, saved, events

    latest = property(lambda self: max(self.saved, default=None))

    def restore(self, abstract_state):
        return self.saved.get(self.latest)

    def save(self, step, state, row=None):
        assert row is None or row["step"] == step
        self.events.get("save", lambda _: None)(step)
        self.saved[step] = state

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.events.get("close", lambda: None)()


@pytest.fixture
def train(tmp_path, monkeypatch, digits):
    """Runs or resumes a training; an event happens `at` a step, or when something is called."""
    stores = {}
    monkeypatch.setattr(experiment, "load_dataset", lambda *_: digits)
    monkeypatch.setattr(loop, "CHUNK_SECONDS", 0.0)  # one step at a time

    def train(name="run", config=CONFIG, at=(), **events):
        events |= dict(at)
        saved, lines = stores.setdefault(name, {}), []
        training = FakeTraining(config, events)
        checkpoints = functools.partial(FakeCheckpoints, saved=saved, events=events)
        monkeypatch.setattr(experiment, "compile_training", lambda *_: training)
        monkeypatch.setattr(experiment, "CheckpointManager", checkpoints)
        error = None
        try:
            run_experiment(config, tmp_path / name, log=lines.append, with_report=False)
        except (Killed, TrainingInterrupted, TrainingDiverged, UserError) as raised:
            error = raised
        return Result(tmp_path / name, saved, lines, training.counts, error)

    return train


@dataclasses.dataclass
class Result:
    folder: Path
    saved: dict[int, TrainState]
    lines: list[str]
    counts: list[int]
    error: Any

    @property
    def rows(self):
        path = self.folder / "metrics.jsonl"
        return without_timing(read_metrics(self.folder)) if path.exists() else []

    @property
    def sha256(self):
        return (read_summary(self.folder) or {}).get("params_sha256")


def send(signum):
    def event(state):
        os.kill(os.getpid(), signum)
        return state

    return event


def kill(*_):
    raise Killed


def assert_equal_runs(ours, theirs):
    assert ours.error is None
    assert ours.sha256 == theirs.sha256 is not None
    assert ours.rows == theirs.rows
    last = CONFIG.total_steps
    assert ours.saved[last].opt_state["mean"] == theirs.saved[last].opt_state["mean"]


def test_each_epoch_is_trained_evaluated_and_saved_once(train):
    result = train()
    assert result.error is None
    assert result.counts == [1] * 12
    assert [(row["epoch"], row["step"]) for row in result.rows] == [(1, 3), (2, 6), (3, 9), (4, 12)]
    assert list(result.saved) == [3, 6, 9, 12]
    epochs = [line.split("  ")[0] for line in result.lines if line.startswith("epoch")]
    assert epochs == [f"epoch {i}/4" for i in (1, 2, 3, 4)]
    # The loss of a row is summed over its own epoch only.
    values, expected = 0, []
    for step in range(12):
        values = (31 * values + 7 * (step // 3) + step) % 9973
        expected = [*expected, values] if step % 3 == 0 else [*expected[:-1], expected[-1] + values]
    losses = [row["train_loss"] for row in result.rows]
    assert losses == pytest.approx([loss / 1_437 for loss in expected])
    assert result.rows[-1]["test_loss"] == pytest.approx(values / 1e4)


@pytest.mark.parametrize(
    ("evaluate", "save", "rows", "saved"),
    [(1, 3, [1, 2, 3, 4], [9, 12]), (3, 1, [3, 4], [3, 6, 9, 12]), (9, 9, [4], [12])],
)
def test_the_last_epoch_is_always_evaluated_and_saved(train, evaluate, save, rows, saved):
    config = dataclasses.replace(CONFIG, eval_every_epochs=evaluate, checkpoint_every_epochs=save)
    result = train(config=config)
    assert [row["epoch"] for row in result.rows] == rows
    assert list(result.saved) == saved
    assert result.sha256 == train("often").sha256


def test_a_chunk_of_steps_ends_with_its_epoch(train, monkeypatch):
    monkeypatch.setattr(loop, "CHUNK_SECONDS", 1e9)
    result = train()
    assert result.counts == [1, 2, 3, 3, 3]
    assert_equal_runs(result, train("again"))


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", STEPS)
def test_a_signal_saves_its_step_and_the_same_command_resumes(train, signum, step):
    handler = signal.getsignal(signum)
    stopped = train(at={step: send(signum)})
    assert str(stopped.error) == (
        f"stopped by {signal.Signals(signum).name}, saved at step {step}; "
        "the same command resumes from there"
    )
    assert stopped.error.exit_code == 128 + signum
    assert max(stopped.saved) == step
    assert stopped.sha256 is None
    assert signal.getsignal(signum) == handler
    resumed = train()
    assert f"start    resuming from step {step} of 12" in resumed.lines
    assert resumed.counts == [1] * (12 - step)
    assert_equal_runs(resumed, train("uninterrupted"))


@pytest.mark.parametrize("step", STEPS)
def test_a_killed_run_resumes_from_its_last_checkpoint(train, step):
    assert isinstance(train(at={step: kill}).error, Killed)
    resumed = train()
    assert len(resumed.counts) == 12 - (step - 1) // 3 * 3
    assert_equal_runs(resumed, train("uninterrupted"))


@pytest.mark.parametrize("epoch", [1, 2, 3, 4])
def test_a_run_killed_between_row_and_checkpoint_writes_the_row_once(train, epoch):
    def kill_at(step):
        if step == 3 * epoch:
            raise Killed

    killed = train(save=kill_at)
    assert len(killed.rows) == epoch
    assert len(killed.saved) == epoch - 1
    assert_equal_runs(train(), train("uninterrupted"))


@pytest.mark.parametrize("rows", ["", "not a row\n"])
def test_a_missing_row_before_the_checkpoint_is_reported(train, rows):
    result = train(at={5: kill})
    (result.folder / "metrics.jsonl").write_text(rows)
    message = "metrics.jsonl is damaged: epoch 1 is missing, but there is a checkpoint after it"
    assert message in str(train().error)


def test_a_signal_during_the_last_save_ends_the_run_as_stopped(train):
    stopped = train(close=lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert "stopped by SIGTERM, saved at step 12" in str(stopped.error)
    assert stopped.sha256 is None
    resumed = train()
    assert resumed.counts == []
    assert_equal_runs(resumed, train("uninterrupted"))


def test_a_second_signal_is_not_captured():
    signums = (signal.SIGTERM, signal.SIGINT)
    handlers = list(map(signal.getsignal, signums))
    with capture_signals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals == [signal.SIGTERM]
        assert list(map(signal.getsignal, signums)) == handlers


@pytest.mark.parametrize("value", [np.nan, np.inf, 1_437.01 * loop.DIVERGED_LOSS])
@pytest.mark.parametrize(("step", "saved"), [(2, []), (3, []), (8, [3, 6]), (12, [3, 6, 9])])
def test_a_diverged_loss_ends_the_run_at_its_step(train, value, step, saved):
    result = train(at={step: lambda state: state.replace(epoch_loss=np.array([value], np.float32))})
    assert isinstance(result.error, TrainingDiverged)
    assert result.error.exit_code == 1
    assert "\n" not in str(result.error)
    message = f"the training loss became {value / 1_437:.3g} by step {step}, at learning rate "
    assert str(result.error).startswith(message)
    hint = f"the last good checkpoint is {saved[-1]}" if saved else "there is no checkpoint yet"
    assert hint in str(result.error)
    assert list(result.saved) == saved
    assert len(result.rows) == len(saved)
    assert result.sha256 is None


def test_a_large_loss_below_the_limit_does_not_end_the_run(train):
    loss = np.array([1_436.9 * loop.DIVERGED_LOSS], np.float32)
    assert train(at={12: lambda state: state.replace(epoch_loss=loss)}).error is None


@pytest.mark.parametrize("part", ["params", "opt_state"])
def test_a_state_that_is_not_finite_is_never_saved(train, part):
    def spoil(state):
        return state.replace(**{part: {"x": np.array([np.nan], np.float32)}})

    ended = train("ended", at={12: spoil})
    assert "the largest number in the state became nan by step 12" in str(ended.error)
    assert list(ended.saved) == [3, 6, 9]
    # Even if a signal asks for it.
    stopped = train("stopped", at={5: lambda state: spoil(send(signal.SIGTERM)(state))})
    assert "the largest number in the state became nan by step 5" in str(stopped.error)
    assert list(stopped.saved) == [3]


def test_a_test_loss_that_is_not_finite_ends_the_run(train):
    result = train(evaluate=lambda scores: scores | {"test_loss": np.array([np.inf])})
    assert "the test loss became inf by step 3" in str(result.error)
    assert (result.rows, result.saved) == ([], {})


def test_the_diverged_seed_is_named(train):
    config = dataclasses.replace(CONFIG, num_seeds=3, seed=7)
    loss = np.array([1, 1, np.nan], np.float32)
    result = train(config=config, at={4: lambda state: state.replace(epoch_loss=loss)})
    assert str(result.error).startswith("the training loss of seed 9 became nan by step 4")
    params = {"layer": np.array([1, 1, np.inf], np.float32)}
    result = train("params", config, {3: lambda state: state.replace(params=params)})
    message = "the largest number in the state of seed 9 became inf by step 3"
    assert str(result.error).startswith(message)


def test_rows_of_several_seeds_and_validation(train):
    config = dataclasses.replace(CONFIG, num_seeds=3, validation_fraction=0.2)
    result = train(config=config)
    for row in result.rows:
        for name in ("train_loss", "validation_loss", "validation_accuracy", "test_accuracy"):
            assert len(row[name]["per_seed"]) == 3
    assert any("val loss  val acc" in line for line in result.lines)
    summary = read_summary(result.folder)
    assert summary
    assert summary.get("validation_accuracy") == result.rows[-1]["validation_accuracy"]


def test_no_better_than_guessing_is_reported(train):
    warning = "WARNING: this is no better than guessing; try a lower --learning-rate"
    for loss, expected in ((2.30, True), (2.25, False)):
        scores = {"test_loss": np.array([loss]), "test_accuracy": np.array([0.1])}
        result = train(str(loss), evaluate=lambda _, scores=scores: scores)
        assert result.error is None
        assert (warning in result.lines) == expected


def test_a_full_disk_is_reported_in_one_line(train):
    def fill(step):
        raise OSError(28, "No space left on device", "checkpoints/3")

    message = str(train(save=fill).error)
    assert message.startswith("cannot write to checkpoints/3: No space left on device")
    assert "the earlier checkpoints are intact" in message
    assert_equal_runs(train(), train("uninterrupted"))


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_changed_environment_is_reported_or_refused(train, deterministic):
    config = dataclasses.replace(CONFIG, deterministic=deterministic)
    path = train(config=config, at={5: kill}).folder / "environment.json"
    original = json.loads(path.read_text())
    path.write_text(json.dumps(original | {"jax": "0.9", "python": "3.10", "jaxlib": "0.8"}))
    changes = f"jax was 0.9, now {original['jax']}; jaxlib was 0.8, now {original['jaxlib']}"
    resumed = train(config=config)
    assert "python" not in f"{resumed.error} {resumed.lines}"
    if deterministic:
        assert f"--deterministic cannot resume where {changes}" in str(resumed.error)
        assert resumed.counts == []
    else:
        assert resumed.lines[0].startswith(f"NOTE: {changes}, so the last bits of the result may")
        summary = read_summary(resumed.folder)
        assert summary
        assert summary["environment"] == original
