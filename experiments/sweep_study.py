"""The trials of a sweep: an Optuna study whose trials are runs of the main command.

Any number of processes may work on a study at the same time, also on several machines.
"""

import argparse
import contextlib
import fcntl
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import optuna
from filelock import FileLock
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from experiments.common.runs import Run, plan
from mnist_flax.core.config import UserError, flag_name
from mnist_flax.engine.seed_stats import format_percent, mean_of
from mnist_flax.engine.workdir import read_metrics, read_summary

Values = CategoricalDistribution | FloatDistribution | IntDistribution
Point = Mapping[str, Any]  # a value for each field
Result = dict[str, Any]

SAMPLERS = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
DONE = (TrialState.COMPLETE, TrialState.PRUNED)
STATES = {
    "finished": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "diverged": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
SCORES = ("validation_accuracy", "validation_loss", "parameters", "environment")
DRAWS_PER_TRIAL = 10  # limits the search for a run that is not in the study yet
POLL_SECONDS = 0.5


def choices(values: Values) -> Sequence[Any]:
    """The listed values of a field, or the ends of its range."""
    listed = isinstance(values, CategoricalDistribution)
    return values.choices if listed else (values.low, values.high)


def shorten(value: object) -> str:
    """A value with at most six digits."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def format_point(point: Point) -> str:
    """The values in one line."""
    return " ".join(f"{name}={shorten(value)}" for name, value in point.items())


def format_outcome(result: Result) -> str:
    """The accuracy of a finished trial, or the status of another one."""
    if "validation_accuracy" in result:
        return format_percent(result["validation_accuracy"])
    return result["status"]


def claim(log: Path) -> IO[bytes] | None:
    """Opens and locks the log of a run; None if it is locked.

    The training process inherits the lock, so it lasts until both processes have ended.
    """
    file = log.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


class SweepStudy:
    """A study in a folder, and what this process does for it; both are created if missing.

    A trial trains the run in `RUN/`, with the output in `RUN.log`. If that is not locked, although
    the trial is RUNNING, it was interrupted; then, or if it failed, the run gets another trial.

    Raises a UserError if the folder cannot be used, or its studies are damaged.
    """

    def __init__(self, options: argparse.Namespace, flags: Sequence[str]):
        self.options, self.space, self.folder = options, options.space, options.runs
        self.recipe = ["--seed", str(options.seed), "--num-seeds", str(options.seeds), *flags]
        self.signals: list[int] = []  # stop this process, and are passed on to its runs
        for name, values in self.space.items():
            for value in choices(values):  # so that nothing is refused later
                self.plan({name: value})
        path, pruners = self.folder / "study.log", optuna.pruners
        # Scores after the same epoch are comparable only between runs of the same length.
        prune = not options.no_prune and "epochs" not in self.space
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.study = optuna.create_study(
                storage=optuna.storages.JournalStorage(JournalFileBackend(str(path))),
                pruner=pruners.MedianPruner() if prune else pruners.NopPruner(),
                # Scores are comparable only between runs that are equal in all other fields.
                study_name=f"{self.plan({}).workdir.name} {self.space}",
                direction="maximize",
                load_if_exists=True,
            )
        except OSError as error:
            raise UserError(f"cannot write to {self.folder}: {error.strerror}") from error
        except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise UserError(f"{path} is damaged; remove it, finished runs are kept") from error
        self.lock = FileLock(self.folder / ".lock")

    def flags(self, point: Point, held_out: bool = True) -> list[str]:
        """The config of a run, with or without held-out images, as flags of the main command."""
        fraction = self.options.validation_fraction
        split = ["--validation-fraction", str(fraction), "--no-report"] if held_out else []
        values = [f"{flag_name(name)}={value}" for name, value in point.items()]
        return [*split, *self.recipe, *values]

    def plan(self, point: Point) -> Run:
        """The run with these values; raises `UserError` if the main command would refuse it."""
        return plan(self.options, *self.flags(point))

    def trials(self, *states: TrialState) -> dict[str, FrozenTrial]:
        """The last trial of each run, or those of them that are in one of the states."""
        trials = self.study.get_trials(deepcopy=False)
        last = {trial.user_attrs["run"]: trial for trial in trials if "run" in trial.user_attrs}
        return {run: trial for run, trial in last.items() if not states or trial.state in states}

    def progress(self) -> str:
        """What all processes have done so far."""
        total = max(len(self.trials()), self.options.trials)
        return f"{len(self.trials(*DONE))} of {total} trials done"

    def prepare(self) -> None:
        """Adds trials for runs that failed, and for new combinations of a grid."""
        with self.lock:
            self.retry(TrialState.FAIL)
            lists = map(choices, self.space.values())
            for values in itertools.product(*lists) if self.options.sampler == "grid" else ():
                point = dict(zip(self.space, values, strict=True))
                run = self.plan(point).workdir.name
                if run not in self.trials():
                    self.study.enqueue_trial(point, {"run": run, "point": point})

    def work(self) -> None:
        """Trains until all trials are done, here or elsewhere, or a signal has come."""
        try:
            while not self.signals:
                if task := self.ask():
                    self.train(*task)
                elif self.trials(TrialState.RUNNING, TrialState.WAITING):
                    time.sleep(POLL_SECONDS)  # they may be interrupted elsewhere
                else:
                    return
        except BaseException:
            self.signals.append(signal.SIGTERM)
            raise

    def retry(self, state: TrialState) -> None:
        """Adds a trial for each run whose last one is in this state and not under way."""
        for run in self.trials(state):
            if log := claim(self.folder / f"{run}.log"):
                with log:
                    trial = self.trials(state).get(run)
                    if trial is None:  # it ended before the claim
                        continue
                    if state == TrialState.RUNNING:
                        self.study.tell(trial.number, state=TrialState.FAIL)
                    point = trial.user_attrs["point"]
                    self.study.enqueue_trial(point, {"run": run, "point": point})

    def ask(self) -> tuple[Trial, Run, IO[bytes]] | None:
        """A waiting or new trial, its run and the locked log; None if there is nothing to do."""
        with self.lock:
            self.retry(TrialState.RUNNING)
            while True:
                runs, waiting = self.trials(), self.trials(TrialState.WAITING)
                wanted, draws = self.options.trials, len(self.study.get_trials(deepcopy=False))
                if not waiting and (len(runs) >= wanted or draws >= DRAWS_PER_TRIAL * wanted):
                    return None
                if not waiting:  # with one seed for all draws, each process would draw the same
                    seed = (self.options.seed + 1_000_003 * draws) % 2**32
                    self.study.sampler = SAMPLERS[self.options.sampler](seed=seed)
                trial = self.study.ask(self.space)
                run = self.plan(trial.params)
                if waiting or run.workdir.name not in runs:
                    trial.set_user_attr("point", trial.params)
                    trial.set_user_attr("run", run.workdir.name)
                    if log := claim(run.workdir.with_suffix(".log")):
                        return trial, run, log
                    reason = "another sweep is training this run"
                    trial.set_user_attr("result", {"status": "failed", "reason": reason})
                self.study.tell(trial, state=TrialState.FAIL)

    def train(self, trial: Trial, run: Run, log: IO[bytes]) -> None:
        """Trains a run, and stores how it ended, unless it was interrupted."""
        values = format_point(trial.params)
        with log:
            result, summary = None, read_summary(run.workdir)
            if summary is None:
                print(f"begin {values}; see {log.name}", flush=True)
                result, summary = self.follow(trial, run, log), read_summary(run.workdir)
            if summary is not None:
                result = {"status": "finished", "seconds": summary["seconds"]["total"]}
                result |= {name: value for name, value in summary.items() if name in SCORES}
            elif result is None:
                return
            trial.set_user_attr("result", result)
            score = mean_of(result["validation_accuracy"]) if summary is not None else None
            self.study.tell(trial, score, STATES[result["status"]])
        print(f"{self.progress()}: {values}: {format_outcome(result)}", flush=True)

    def follow(self, trial: Trial, run: Run, log: IO[bytes]) -> Result | None:
        """Trains a run, while it is worth it; returns why it failed, None if it was interrupted."""
        process = subprocess.Popen(
            [sys.executable, "-m", "mnist_flax.run", *run.arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,  # or the terminal would send each Ctrl-C to it as well
            # JAX reserves three quarters of a GPU's memory.
            env={"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.75 / self.options.jobs:.3f}"} | os.environ,
        )
        reported, sent, pruned = 0, 0, ""
        while True:
            code = process.poll()  # before the rows, so that all of them are seen
            for row in read_metrics(run.workdir)[reported:]:
                epoch, reported = row["epoch"], reported + 1
                trial.report(mean_of(row.get("validation_accuracy", 0.0)), epoch)
                if not pruned and epoch < run.config.epochs and trial.should_prune():
                    process.terminate()
                    pruned = f"worse than the median after {epoch} of {run.config.epochs} epochs"
            if code is not None:
                break
            for signum in self.signals[sent:]:
                process.send_signal(signum)
                sent += 1
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(POLL_SECONDS)
        lines = Path(log.name).read_text(errors="replace").split("\n")
        last = next(filter(None, map(str.strip, reversed(lines))), "it printed nothing")
        reason = last.removeprefix("error: ")
        if pruned:
            return {"status": "pruned", "reason": pruned}
        if code == 1 and last != reason:  # without the prefix, it is the end of a traceback
            return {"status": "diverged", "reason": reason}
        return None if self.signals else {"status": "failed", "reason": reason}
