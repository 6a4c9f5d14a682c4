"""What does each part of the recipe bring?

python experiments/ablation.py

Goes from the reference to `default` one change at a time, then leaves each part of `default`
out, and puts in the one that `best` has besides; then leaves each part of `best` out, in a
shorter run. All rows of a table have the same
seeds, so each difference is paired.
"""

from pathlib import Path
from typing import Any

import numpy as np
import training
from matplotlib.figure import Figure
from provenance import provenance, store

from mnist_flax.spread import percent

# The path's rows add their flags to those of the rows above. `default` is where it ends.
PATH = {
    "reference": ("--preset", "reference"),
    "centred 22x22 window": ("--input-size", "22"),
    "batch 64, rate up to 6e-3, rising and falling": (
        *("--batch-size", "64", "--learning-rate", "6e-3", "--schedule", "triangular"),
    ),
    "shift by a pixel": ("--shift", "1"),
    "weight decay (default)": ("--weight-decay", "0.05"),
}
MUON = ("--optimizer", "muon", "--learning-rate", "1e-2")
AROUND_DEFAULT = {
    "default": (),
    "whole 28x28 image": ("--input-size", "28"),
    "constant rate of 1e-3": ("--schedule", "constant", "--learning-rate", "1e-3"),
    "no shift": ("--shift", "0"),
    "no weight decay": ("--weight-decay", "0"),
    "Muon instead of Adam": MUON,
}
WITHOUT_BEST = {
    "best": (),
    "no rotation": ("--rotation", "0"),
    "no zoom": ("--zoom", "0"),
    "no shear": ("--shear", "0"),
    "no bends": ("--elastic", "0"),
    "Adam instead of Muon": ("--optimizer", "adam", "--learning-rate", "6e-3"),
}


def main() -> None:
    """Trains, compares and stores."""
    parser = training.arguments(__doc__, seeds=10)
    parser.add_argument("--best-seeds", type=int, default=4)
    parser.add_argument("--best-epochs", type=int, default=10)
    options = parser.parse_args()
    trainer = training.Runs(options)
    seeds = ("--num-seeds", str(options.seeds))
    best = ("--preset", "best", "--num-seeds", str(options.best_seeds))
    best = (*best, "--epochs", str(options.best_epochs))
    tables = {
        "path": rows(trainer, cumulative(PATH), seeds, against="previous"),
        "around_default": rows(trainer, AROUND_DEFAULT, seeds, against="first"),
        "best_without": rows(trainer, WITHOUT_BEST, best, against="first"),
    }
    store("ablation", provenance() | tables, options.output)
    draw(tables, options.output)
    for title, table in tables.items():
        print(f"\n{title}\n")
        for row in table:
            print(describe(row))


def cumulative(steps: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Each row's flags with those of all rows above it."""
    flags: tuple[str, ...] = ()
    found = {}
    for name, added in steps.items():
        flags += added
        found[name] = flags
    return found


def rows(
    trainer: training.Runs,
    changes: dict[str, tuple[str, ...]],
    common: tuple[str, ...],
    against: str,
) -> list[dict[str, Any]]:
    """Each row's accuracy, and its difference from the previous or from the first row."""
    workdirs = {name: trainer.train(*common, *flags) for name, flags in changes.items()}
    names = list(workdirs)
    found = []
    for index, name in enumerate(names):
        summary = training.summary(workdirs[name])
        row = {"name": name, "config": summary["config"], "environment": summary["environment"]}
        row |= {"test_accuracy": summary["test_accuracy"], "test_loss": summary["test_loss"]}
        if index:
            other = names[index - 1 if against == "previous" else 0]
            row |= {"against": other}
            row |= {"difference": training.difference(workdirs[other], workdirs[name])}
        found.append(row)
    return found


def describe(row: dict[str, Any]) -> str:
    """A row of the table in `README.md`."""
    difference = row.get("difference")
    change = ""
    if difference:
        low, high = (100 * end for end in difference["interval95_over_seeds"])
        change = f"{100 * difference['difference']:+.2f} [{low:+.2f}, {high:+.2f}]"
    return f"| {row['name']} | {percent(row['test_accuracy'])} | {change} |"


def draw(tables: dict[str, list[dict[str, Any]]], folder: Path) -> None:
    """Each row's mean with its 95 % interval, and its seeds."""
    figure = Figure(figsize=(11, 6.5), dpi=150, layout="constrained")
    titles = (
        "one change after the other",
        "default with a part left out, or changed",
        "best with a part left out, or changed, in a shorter run",
    )
    panels = figure.subplots(3, 1, gridspec_kw={"height_ratios": [len(t) for t in tables.values()]})
    for axes, title, table in zip(panels, titles, tables.values(), strict=True):
        for place, row in enumerate(table):
            accuracy = row["test_accuracy"]
            seeds = 100 * np.array(accuracy["per_seed"])
            low, high = (100 * end for end in accuracy["interval95"])
            axes.plot(seeds, [place] * len(seeds), "o", color="C0", alpha=0.3, markersize=4)
            axes.plot([low, high], [place] * 2, color="C1", linewidth=3)
            axes.plot(seeds.mean(), place, "o", color="C1", markersize=7)
        axes.set(title=title, yticks=range(len(table)), yticklabels=[row["name"] for row in table])
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.3)
    panels[-1].set(xlabel="test accuracy (%): seeds, their mean and its 95 % interval")
    figure.savefig(folder / "ablation.png")


if __name__ == "__main__":
    main()
