"""Runs of the main command as an array of Slurm jobs, through submitit."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import submitit
from local_runs import last_line
from submitit.helpers import FunctionSequence, as_completed
from training import Run

from mnist_flax import run as command
from mnist_flax.config import UserError

# Seconds between looks at what Slurm's jobs have left; Slurm itself is asked less often.
LOOK_SECONDS = 5

# How lines of submitit's own begin, once another library has set up logging.
OWN = "INFO:submitit:"


def executor(folder: Path, settings: str) -> submitit.SlurmExecutor:
    """What submits to Slurm.

    Args:
      folder: for the jobs' logs and pickles; all nodes have to see it.
      settings: `name=value,...` of `sbatch`, in its long options' names (`time` in minutes).

    Raises:
      UserError: one of them is not valid, or there is no Slurm here.
    """
    values: dict[str, str | int] = {}
    for setting in filter(None, settings.split(",")):
        name, _, value = setting.strip().partition("=")
        values[name.replace("-", "_")] = int(value) if value.isdecimal() else value
    if not isinstance(values.get("time", 0), int):
        raise UserError(f"--slurm: time is in minutes, but is {values['time']}")
    try:
        found = submitit.SlurmExecutor(folder)
        found.update_parameters(**{"job_name": "sweep"} | values)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"--slurm: {str(error).splitlines()[0]}") from error
    return found


def submit(executor: submitit.Executor, runs: Sequence[Run]) -> dict[Run, submitit.Job]:
    """One array of jobs that train the runs.

    A job that reaches its time limit or is preempted is queued again by submitit, some times,
    and goes on from its last checkpoint.
    """
    tasks = []
    for run in runs:
        # Which submitit can queue again, unlike a plain function.
        task: Any = FunctionSequence()
        task.add(command.main, run.arguments)
        tasks.append(task)
    return dict(zip(runs, executor.submit_array(tasks) if tasks else [], strict=True))


def known(executor: submitit.Executor, job_id: str) -> submitit.Job:
    """A job that was submitted earlier."""
    return executor.job_class(executor.folder, job_id)


def wait(jobs: Mapping[Run, submitit.Job]) -> Iterator[tuple[Run, int | None, str]]:
    """Each run as it ends, with its exit code (None: killed) and the last line it printed."""
    runs = {id(job): run for run, job in jobs.items()}
    for job in as_completed(list(jobs.values()), poll_frequency=LOOK_SECONDS):
        if job.exception() is None:
            yield runs[id(job)], job.result()[0], last_line(job.paths.stderr, unlike=OWN)
        else:
            log = os.path.relpath(job.paths.stderr)
            yield runs[id(job)], None, f"job {job.job_id} ({job.state}) left no result; see {log}"
