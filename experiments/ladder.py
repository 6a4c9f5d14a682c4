"""How does the test error fall with the size of the network, and with the time of training?

python -m experiments.ladder

Trains the default recipe with 1 to 128 channels. Adds the presets, whose results `accuracy` has
stored, and published networks, and draws their errors against parameters and seconds.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from experiments.common.provenance import RESULTS, make_parser, provenance, store
from experiments.common.runs import load_result, train
from mnist_flax.core import config
from mnist_flax.engine.environment import current_environment
from mnist_flax.engine.seed_stats import format_percent
from mnist_flax.engine.workdir import read_metrics

CHANNELS = (1, 2, 4, 8, 16, 32, 64, 128)
PRESETS = ("quick", "default", "best")

# Networks of others, with the mean and standard deviation over n trainings of the accuracy after
# the last epoch, so that no test image chose anything.
PUBLISHED = [
    {  # M3 of https://github.com/ansh941/MnistSimpleCNN, 150 epochs, from the logs it publishes
        "name": "MnistSimpleCNN",
        "parameters": 1_124_180,
        "accuracy": {"mean": 0.99699, "std": 0.00032},
        "n": 30,
    },
    {  # one network of Chris Deotte's https://www.kaggle.com/code/cdeotte/25-million-images-0-99757-mnist
        "name": "25 Million Images",
        "parameters": 327_242,
        "accuracy": {"mean": 0.99641, "std": 0.00047},
        "n": 1_500,
    },
]
Row = dict[str, Any]

# Where the labels are, in points from the marks, and how they are aligned.
PLACE = (-5, -9, "right")
PLACES = {
    "quick": (-6, -3, "right"),
    "best": (-6, -3, "right"),
    "64 channels": (5, 5, "left"),
    "128 channels": (5, 5, "left"),
    "25 Million Images": (0, 9, "center"),
    "MnistSimpleCNN": (0, -16, "center"),
}


def main() -> None:
    """Trains, stores and draws."""
    options = make_parser(__doc__, seeds=5, only_mnist=True).parse_args()
    result = {
        "environment": current_environment(),
        "presets": [read_preset(name) for name in PRESETS],
        "channels": [measure(options, channels) for channels in CHANNELS],
        "published": PUBLISHED,
    }
    store("ladder", provenance() | result, options.output)
    draw(result, options.output)
    for row in result["channels"] + result["presets"]:
        accuracy = format_percent(row["accuracy"])
        print(f"| {row['name']} | {row['parameters']:,} | {row['seconds']:.0f} s | {accuracy} |")


def measure(options: argparse.Namespace, channels: int) -> Row:
    """The default recipe with so many channels."""
    seeds = ("--num-seeds", str(options.seeds))
    workdir = train(options, *seeds, "--channels", str(channels))
    run = load_result(workdir)
    # The median, because an epoch that was interrupted has a shorter row.
    seconds = statistics.median(row["seconds"] for row in read_metrics(workdir)) / options.seeds
    seconds *= run["epochs"]
    return make_row(f"{channels} channel{'s' * (channels > 1)}", options.seeds, seconds, run)


def read_preset(name: str) -> Row:
    """A preset as `experiments.accuracy` has measured it."""
    run = json.loads((RESULTS / f"accuracy_{name}.json").read_text())
    networks = config.PRESETS[name].num_seeds
    seconds = run["seconds_per_epoch_and_seed"] * run["epochs"] * networks
    return make_row(name, run["n"], seconds, run)


def make_row(name: str, n: int, seconds: float, run: dict[str, Any]) -> Row:
    """One point of the plot: the seconds are those of one training."""
    values = {"parameters": run["parameters"], "seconds": seconds, "n": n}
    return {"name": name, **values, "accuracy": run["test_accuracy"]}


def draw(result: dict[str, Any], folder: Path) -> None:
    """Draws the test error against the parameters and against the seconds of training."""
    figure = Figure(figsize=(10, 5), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, name in ((left, "parameters"), (right, "seconds")):
        axes.set(xscale="log", yscale="log")
        for rows, color, style in (
            (result["channels"], "C0", "o-"),
            (result["presets"], "C1", "s"),
            (result["published"], "C7", "D"),
        ):
            points = [row for row in rows if name in row]
            errors = [100 - 100 * row["accuracy"]["mean"] for row in points]
            spread = [100 * row["accuracy"]["std"] for row in points]
            sizes = [row[name] for row in points]
            axes.errorbar(sizes, errors, spread, fmt=style, color=color, capsize=2, markersize=5)
            for row, size, error in zip(points, sizes, errors, strict=True):
                n = f" (n = {row['n']:,})" if rows is result["published"] else ""
                *place, side = PLACES.get(row["name"], PLACE)
                text_place = {"xytext": place, "textcoords": "offset points", "ha": side}
                axes.annotate(row["name"] + n, (size, error), fontsize=7, **text_place)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.margins(x=0.2)
    left.set(xlabel="parameters", ylabel="test error after the last epoch (%)")
    right.set(xlabel="seconds of training")
    figure.savefig(folder / "ladder.png")


if __name__ == "__main__":
    main()
