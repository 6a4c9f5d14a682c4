r"""Which values of some fields of the config are best? Tries them, each as a run of its own.

python experiments/sweep.py --workdir runs/sweep1 \
    --vary learning_rate=1e-3,3e-3,1e-2 --vary batch_size=32,64
python experiments/sweep.py --workdir runs/sweep2 --preset quick --jobs 2 \
    --random 20 --sample learning_rate=log:1e-4:1e-1 --vary batch_size=32,64,128

Further options, like `--preset` and `--epochs`, are those of `python -m mnist_flax.run`, for all
runs. The choice is by images held out from training; the test images have no say in it, and
their scores are not shown.

The same command goes on where it was stopped. A run's workdir is named by its config, so other
values, or more draws, in the same folder add runs to those that are there, and nothing is
trained twice; the table and the picture are of what the command asks for. A run that diverged,
or that Slurm has, is not begun again unless `sweep.json` is removed.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import search
import sweep_tables
import training
from local_runs import Processes, log_of
from provenance import provenance
from training import Run

from mnist_flax import workdir
from mnist_flax.command import run_command
from mnist_flax.config import UserError, flag

INTERRUPTED = "interrupted; the same command goes on; what Slurm has, goes on anyway"

# How a run ended, by its exit code; and what is not tried again.
ENDS = {1: "failed", 2: "refused", 130: "stopped", 143: "stopped"}
FINAL = ("finished", "diverged")

Rows = dict[Run, dict[str, Any]]


class Parser(argparse.ArgumentParser):
    """Tells mistakes as the other commands do."""

    def error(self, message: str):
        """Raises `UserError`."""
        raise UserError(f"{message}; see {self.prog} --help")


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of the sweep, and the flags that are for its runs."""
    parser = Parser(
        "python experiments/sweep.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--workdir",
        type=Path,
        required=True,
        dest="runs",
        metavar="FOLDER",
        help="for all that it leaves behind",
    )
    add("--vary", action="append", default=[], metavar="FIELD=A,B,...", help="values to try")
    text = "numbers to draw, evenly in their logarithm; or FIELD=uniform:LOW:HIGH"
    add("--sample", action="append", default=[], metavar="FIELD=log:LOW:HIGH", help=text)
    text = "so many random draws of all fields, instead of all combinations"
    add("--random", type=int, default=0, metavar="N", help=text)
    add("--seed", type=int, default=0, help="of the draws, and of each run's first network")
    add("--seeds", type=int, default=1, metavar="N", help="networks in each run")
    text = "share of the training images to choose by (default: a sixth)"
    add("--validation-fraction", type=float, default=1 / 6, metavar="SHARE", help=text)
    add("--dataset", default="mnist", help="as in the main command (default: mnist)")
    where = parser.add_mutually_exclusive_group().add_argument
    where("--jobs", type=int, default=1, metavar="N", help="runs at a time, on this machine")
    text = "submit the runs as a Slurm array instead, with sbatch's options (time in minutes)"
    where("--slurm", nargs="?", const="", metavar="partition=gpu,time=60,...", help=text)
    options, flags = parser.parse_known_args(argv)
    for name, least in (("jobs", 1), ("random", 0), ("seeds", 1)):
        if getattr(options, name) < least:
            raise UserError(f"--{name} must be at least {least}, but is {getattr(options, name)}")
    if options.validation_fraction <= 0:
        raise UserError("--validation-fraction must be above 0: the choice is by those images")
    options.runs = options.runs.expanduser().absolute()
    return options, flags


def define(
    options: argparse.Namespace, flags: Sequence[str], space: search.Space
) -> dict[Run, list[str]]:
    """The runs of the sweep, each once, and what each has besides the validation split.

    Raises:
      UserError: the main command would refuse one of them.
    """
    trainer = training.Runs(options)
    seeds = ("--seed", str(options.seed), "--num-seeds", str(options.seeds))
    held_out = ("--validation-fraction", str(options.validation_fraction), "--no-report")
    if options.random:
        points = search.draws(space, options.random, options.seed)
    else:
        points = search.grid(space)
    runs: dict[Path, tuple[Run, list[str]]] = {}
    for point in points:
        recipe = [*seeds, *flags, *(f"{flag(name)}={value}" for name, value in point.items())]
        run = trainer.plan(*held_out, *recipe)
        runs.setdefault(run.workdir, (run, ["--dataset", options.dataset, *recipe]))
    return dict(runs.values())


def known(folder: Path, runs: Sequence[Run], fields: Sequence[str]) -> Rows:
    """What is known of each run from earlier commands.

    Raises:
      UserError: the folder cannot be used, or something in it is damaged.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from error
    path = folder / sweep_tables.RESULT
    stored = workdir.read_json(path)
    try:
        before = {row["run"]: row for row in stored["rows"]} if stored is not None else {}
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged; remove it, and it is written again") from error
    rows = {}
    for run in runs:
        row = before.get(run.workdir.name, {})
        if row.get("status") not in ("diverged", "submitted"):
            row = {"status": "waiting"}
        kept = {name: row[name] for name in ("status", "said", "job") if name in row}
        rows[run] = described(run, fields) | kept | finished(run)
    return rows


def described(run: Run, fields: Sequence[str]) -> dict[str, Any]:
    """The part of a run's row that is known in advance."""
    values = {name: getattr(run.config, name) for name in fields}
    command = shlex.join(["python", "-m", "mnist_flax.run", *run.arguments])
    return {"run": run.workdir.name, "values": values, "command": command}


def finished(run: Run) -> dict[str, Any]:
    """The part of a run's row that its summary tells; empty where it has not finished."""
    summary = workdir.read_summary(run.workdir / workdir.SUMMARY)
    if summary is None:
        return {}
    names = ("validation_accuracy", "validation_loss", "parameters", "environment")
    scores = {name: summary[name] for name in names}
    return {"status": "finished", **scores, "seconds": summary["seconds"]["total"]}


def ended(run: Run, code: int | None, said: str) -> dict[str, Any]:
    """The part of a run's row that tells how it ended, with what it said last."""
    # A crash ends with the last line of a traceback.
    diverged = code == 1 and said.startswith("error: ")
    status = "diverged" if diverged else ENDS.get(code or -1, "failed")
    return finished(run) or {"status": status, "said": said.removeprefix("error: ")}


def slurm_executor(options: argparse.Namespace) -> Any:
    """What submits to Slurm.

    Raises:
      UserError: submitit is missing, or Slurm, or an option is not valid.
    """
    try:
        import slurm
    except ImportError as error:
        raise UserError("submitit is missing; pip install 'mnist-flax[sweep]'") from error
    return slurm.executor(options.runs / "slurm", options.slurm)


def in_slurm(
    executor: Any, rows: Rows, todo: Sequence[Run], save: Callable[[], None]
) -> Iterator[tuple[Run, int | None, str]]:
    """Submits what Slurm has not got yet, and waits; each run as it ends."""
    import slurm

    jobs = {run: slurm.known(executor, rows[run]["job"]) for run in todo if "job" in rows[run]}
    jobs |= slurm.submit(executor, [run for run in todo if run not in jobs])
    for run, job in jobs.items():
        rows[run] |= {"status": "submitted", "job": job.job_id}
    save()
    if jobs:
        print(f"{len(jobs)} jobs are with Slurm; Ctrl-C leaves them there", flush=True)
    yield from slurm.wait(jobs)


def sweep(argv: Sequence[str]) -> int:
    """Trains, stores, draws and prints; returns the exit code."""
    options, flags = parse(argv)
    space = search.space(options)
    runs = define(options, flags, space)
    executor = None if options.slurm is None else slurm_executor(options)
    rows = known(options.runs, list(runs), list(space))
    about = provenance() | sweep_tables.about(next(iter(runs)).config)

    def save() -> None:
        result = about | {"rows": list(rows.values())}
        workdir.write_json(options.runs / sweep_tables.RESULT, result)

    def done() -> str:
        return f"{sum(row['status'] in FINAL for row in rows.values())} of {len(rows)} runs done"

    print(f"{options.runs}: {done()}", flush=True)
    todo = [run for run in runs if rows[run]["status"] not in FINAL]
    with_slurm = sum(rows[run]["status"] == "submitted" for run in todo)
    if with_slurm and not executor:
        raise UserError(f"{with_slurm} runs are with Slurm; give --slurm again to wait for them")

    def begin(run: Run) -> None:
        print(f"begun: {sweep_tables.values(rows[run])}; see {log_of(run)}", flush=True)

    here = Processes(options.jobs, begin)
    for run, code, said in in_slurm(executor, rows, todo, save) if executor else here.train(todo):
        rows[run] = described(run, list(space)) | ended(run, code, said)
        save()
        print(f"{done()}: {sweep_tables.line(rows[run])}", flush=True)
    if here.signum:
        print(f"stopped with {done()}; the same command goes on", file=sys.stderr)
        return 128 + here.signum
    save()
    return conclude(options.runs, runs, rows, space)


def conclude(folder: Path, runs: dict[Run, list[str]], rows: Rows, space: search.Space) -> int:
    """Draws, and prints the table and what comes next; returns the exit code."""
    ranked = sorted(rows, key=lambda run: sweep_tables.rank(rows[run]))
    best = ranked[0]
    found = rows[best]["status"] == "finished"
    if found:
        sweep_tables.draw([rows[run] for run in ranked], space, best.config, folder)
    print("\n" + sweep_tables.table([rows[run] for run in ranked]) + "\n")
    if found:
        command = ["python", "-m", "mnist_flax.run", "--workdir", str(folder / "best"), *runs[best]]
        print(f"best by validation: {sweep_tables.line(rows[best])}")
        print(f"on all training images, and then tested once: {shlex.join(command)}")
        print(f"see {folder / sweep_tables.RESULT} and {folder / sweep_tables.PICTURE}")
    for run in ranked:
        if "said" in rows[run]:
            print(f"{sweep_tables.line(rows[run])}: {rows[run]['said']}")
    lost = sum(row["status"] not in FINAL for row in rows.values())
    if lost:
        message = f"{lost} of {len(rows)} runs came to no end; the same command tries them again"
        print(f"error: {message}", file=sys.stderr)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(run_command(sweep, None, interrupted=INTERRUPTED))
