r"""Searches for the best values of config fields by the accuracy on held-out training images.

python -m experiments.sweep --workdir runs/sweep1 \
    --vary learning_rate=1e-3,3e-3,1e-2 --vary batch_size=32,64
python -m experiments.sweep --workdir runs/sweep2 --preset quick --jobs 2 --trials 20 \
    --sample learning_rate=log:1e-4:1e-1 --vary batch_size=32,64,128

The first tries all combinations, the second draws 20 of them. Other options, like `--preset`, are
those of `python -m mnist_flax.run`, for all runs. The same command resumes; several of them on one
folder, on any machines, share the trials.
"""

import argparse
import dataclasses
import difflib
import shlex
import signal
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

try:
    import optuna
    from matplotlib import pyplot
except ImportError as error:
    sys.exit(
        f"error: {error.name} is missing; run pip install -c constraints.txt -e '.[experiments]'"
    )

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.visualization.matplotlib import plot_slice

from experiments.common.provenance import provenance
from experiments.sweep_study import DONE, SweepStudy, Values, format_outcome, format_point, shorten
from mnist_flax.core.config import DATASET_SIZES, Config, ExpectedError, UserError
from mnist_flax.engine.cli import run_command
from mnist_flax.engine.files import write_json
from mnist_flax.engine.seed_stats import mean_of

FIELDS: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(Config)}
FIXED = ("dataset", "validation_fraction")  # scores on other images are not comparable
Row = dict[str, Any]


class Parser(argparse.ArgumentParser):
    """Reports mistakes as the other commands do."""

    def error(self, message: str) -> NoReturn:
        """Raises `UserError`."""
        raise UserError(f"{message}; see {self.prog} --help")


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of the sweep, and those of its runs; raises a UserError if one is not valid."""
    style = argparse.RawDescriptionHelpFormatter
    parser = Parser("python -m experiments.sweep", description=__doc__, formatter_class=style)
    parser.allow_abbrev, add = False, parser.add_argument
    text = "for the study and its runs"
    add("--workdir", type=Path, required=True, dest="runs", metavar="FOLDER", help=text)
    text, several = "values to try", {"type": parse_values, "action": "append", "default": []}
    add("--vary", dest="space", metavar="FIELD=A,B,...", help=text, **several)
    text = "range to draw from, evenly in the logarithm; or FIELD=uniform:LOW:HIGH"
    add("--sample", dest="space", metavar="FIELD=log:LOW:HIGH", help=text, **several)
    text = "default: tpe; but without --sample and --trials grid, which tries all combinations"
    add("--sampler", choices=("tpe", "random", "grid"), help=text)
    add("--trials", type=int, default=0, metavar="N", help="number of runs to draw")
    add("--no-prune", action="store_true", help="do not stop runs that are worse than the median")
    add("--seed", type=int, default=0, help="of the draws, and of the first network of each run")
    add("--seeds", type=int, default=1, metavar="N", help="networks in each run")
    text = "share of the training images to compare the runs on (default: a sixth)"
    add("--validation-fraction", type=float, default=1 / 6, metavar="SHARE", help=text)
    add("--dataset", default="mnist", help="as in the main command (default: mnist)")
    add("--jobs", type=int, default=1, metavar="N", help="runs at a time")
    options, flags = parser.parse_known_args(argv)
    space = dict(options.space)
    listed = all(isinstance(values, CategoricalDistribution) for values in space.values())
    options.sampler = options.sampler or ("grid" if listed and not options.trials else "tpe")
    for name, least in (("jobs", 1), ("trials", 0), ("seeds", 1)):
        if getattr(options, name) < least:
            parser.error(f"--{name} must be at least {least}, but is {getattr(options, name)}")
    if len(space) < max(len(options.space), 1):
        parser.error("a field varies twice" if space else "nothing varies; use --vary or --sample")
    if options.sampler == "grid" and (options.trials or not listed):
        parser.error("a grid is all combinations of --vary, without --sample and --trials")
    if options.sampler != "grid" and not options.trials:
        parser.error("--trials is missing, the number of runs to draw")
    if options.validation_fraction <= 0:
        parser.error("--validation-fraction must be above 0, as runs are compared on those images")
    options.runs, options.space = options.runs.expanduser().absolute(), space
    return options, flags


def parse_values(text: str) -> tuple[str, Values]:
    """The field and the values of FIELD=A,B,..., FIELD=log:LOW:HIGH or FIELD=uniform:LOW:HIGH."""
    name, _, values = text.partition("=")
    name, (kind, *ends) = name.replace("-", "_"), values.split(":")
    kinds = {int: IntDistribution, float: FloatDistribution}
    try:
        if name not in FIELDS:
            near = difflib.get_close_matches(name, FIELDS, n=1)
            hint = f" (perhaps you meant {near[0]}?)" if near else ""
            raise ValueError(f"the config has no field {name!r}{hint}")
        if name in FIXED:
            raise ValueError(f"scores with another {name} are not comparable")
        number = FIELDS[name] if FIELDS[name] in kinds else str
        if not ends and values:
            listed = [number(value.strip()) for value in values.split(",")]
            return name, CategoricalDistribution(list(dict.fromkeys(listed)))
        if number is str or kind not in ("log", "uniform") or len(ends) != 2:
            raise ValueError("is not FIELD=A,B,... or, for numbers, FIELD=log|uniform:LOW:HIGH")
        return name, kinds[number](number(ends[0]), number(ends[1]), log=kind == "log")
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from error


def command(study: SweepStudy, name: str, flags: Sequence[str]) -> str:
    """The command that trains a run of the sweep."""
    module = ("python", "-m", "mnist_flax.run", "--workdir", str(study.folder / name))
    return shlex.join([*module, "--dataset", study.options.dataset, *flags])


def make_rows(study: SweepStudy) -> list[Row]:
    """A row for each run: by accuracy on the held-out images, then loss; the unfinished last."""
    rows: list[Row] = []
    for name, trial in study.trials().items():
        point = trial.user_attrs["point"]
        row = {"run": name, "values": point, "command": command(study, name, study.flags(point))}
        rows.append(row | trial.user_attrs.get("result", {"status": trial.state.name.lower()}))
    finished = [row for row in rows if row["status"] == "finished"]
    finished.sort(key=lambda x: (-mean_of(x["validation_accuracy"]), mean_of(x["validation_loss"])))
    return [*finished, *(row for row in rows if row["status"] != "finished")]


def format_table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    header = [*rows[0]["values"], "validation accuracy", "validation loss", "seconds", "run"]
    lines = [header, ["---"] * len(header)]
    for row in rows:
        values = [shorten(value) for value in row["values"].values()]
        loss, seconds = "", ""
        if row["status"] == "finished":
            loss, seconds = f"{mean_of(row['validation_loss']):.4f}", f"{row['seconds']:.0f}"
        lines.append([*values, format_outcome(row), loss, seconds, row["run"]])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def draw(study: optuna.Study, examples: int, path: Path) -> None:
    """Plots the error rates of the finished runs on the held-out images against each field."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is experimental, and a field may have a single value
        plot_slice(
            study,
            # A run without errors is drawn at half an error, as the scale is logarithmic.
            target=lambda trial: 100 * max(1 - trial.values[0], 0.5 / examples),
            target_name="validation error (%)",
        )
    figure = pyplot.gcf()
    figure.suptitle("")
    figure.axes[0].set(title="", yscale="log")
    figure.axes[0].yaxis.set_major_formatter("{x:g}")
    figure.axes[0].yaxis.set_minor_formatter("{x:g}")
    figure.savefig(path, dpi=130, bbox_inches="tight")
    pyplot.close(figure)


def sweep(argv: Sequence[str]) -> int:
    """Trains, stores, plots and prints; returns the exit code, or raises an ExpectedError."""
    options, flags = parse(argv)
    study = SweepStudy(options, flags)
    study.prepare()
    print(f"{options.runs}: {study.progress()}", flush=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, _: study.signals.append(signum))
    with ThreadPoolExecutor(options.jobs) as pool:
        for worker in [pool.submit(study.work) for _ in range(options.jobs)]:
            worker.result()
    rows, config = make_rows(study), study.plan({}).config
    examples = DATASET_SIZES[config.dataset][0] - config.train_examples
    about = {
        "dataset": config.dataset,
        "chosen_by": "validation_accuracy",
        "validation_examples": examples,
        "seeds": list(range(config.seed, config.seed + config.num_seeds)),
    }
    write_json(options.runs / "sweep.json", provenance() | about | {"rows": rows})
    if study.signals:
        print(f"stopped with {study.progress()}; the same command resumes", file=sys.stderr)
        return 128 + study.signals[0]
    print(f"\n{format_table(rows)}\n")
    best = rows[0]
    if best["status"] == "finished":
        draw(study.study, examples, options.runs / "sweep.png")
        flags = study.flags(best["values"], held_out=False)
        print(f"best on the held-out images: {format_point(best['values'])}")
        print(f"to train on all images and test once: {command(study, 'best', flags)}")
        print(f"see sweep.json and sweep.png in {options.runs}")
    for row in rows:
        if "reason" in row:
            print(f"{format_point(row['values'])}: {row['status']}: {row['reason']}")
    if failed := len(rows) - len(study.trials(*DONE)):
        message = f"{failed} of {len(rows)} runs did not finish; the same command tries them again"
        raise ExpectedError(message)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(sweep, None, interrupted="interrupted; the same command resumes"))
