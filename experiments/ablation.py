"""How much does each part of the recipe contribute?

python -m experiments.ablation

Changes `reference` into `default` one step at a time, then removes or changes each part of
`default` alone, then of `best` in a shorter run. The rows of a table share their seeds, so every
difference is paired. `--tables around_default` measures one table and keeps the stored others.
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.common.provenance import at_least_2, make_parser, provenance, store
from experiments.common.runs import compare, load_result, train
from mnist_flax.engine.seed_stats import format_percent
from mnist_flax.evaluate.comparison import format_interval

# The last step leads to `default`.
STEPS = {
    "reference": "--preset reference",
    "centered 22x22 crop": "--input-size 22",
    "batch 64, triangular rate up to 6e-3": (
        "--batch-size 64 --learning-rate 6e-3 --schedule triangular"
    ),
    "shift by a pixel": "--shift-pixels 1",
    "weight decay (default)": "--weight-decay 0.05",
}
# The flags of each step with those of all steps before it.
PATH = dict(zip(STEPS, itertools.accumulate(STEPS.values(), "{} {}".format), strict=True))
AROUND_DEFAULT = {
    "default": "",
    "whole 28x28 image": "--input-size 28",
    "constant rate of 1e-3": "--schedule constant --learning-rate 1e-3",
    "no shift": "--shift-pixels 0",
    "no weight decay": "--weight-decay 0",
    "Muon instead of Adam": "--optimizer muon --learning-rate 1e-2",
    "bfloat16": "--precision bfloat16",
}
WITHOUT_BEST = {
    "best": "",
    "centered 22x22 crop": "--input-size 22",
    "no rotation, zoom or shear": "--rotation-degrees 0 --zoom 0 --shear 0",
    "no elastic distortion": "--elastic-pixels 0",
    "no averaging": "--ema-fraction 0",
    "Adam instead of Muon": "--optimizer adam --learning-rate 6e-3",
}
TITLES = {
    "path": "one change after the other",
    "around_default": "default with one part removed or changed",
    "best_without": "best with one part removed or changed, in a shorter run",
}
Row = dict[str, Any]


def main() -> None:
    """Trains, compares, stores and draws."""
    parser = make_parser(__doc__, seeds=10)
    parser.add_argument("--best-seeds", type=at_least_2, default=8)
    parser.add_argument("--best-epochs", type=int, default=10)
    parser.add_argument("--tables", nargs="+", choices=TITLES, default=list(TITLES))
    options = parser.parse_args()
    seeds = f"--num-seeds {options.seeds}"
    best = f"--preset best --num-seeds {options.best_seeds} --epochs {options.best_epochs}"
    measure_table = {
        "path": lambda: measure(options, PATH, seeds, against="previous"),
        "around_default": lambda: measure(options, AROUND_DEFAULT, seeds, against="first"),
        "best_without": lambda: measure(options, WITHOUT_BEST, best, against="first"),
    }
    path = options.output / "ablation.json"
    tables = json.loads(path.read_text()) if path.exists() else {}
    for name in options.tables:
        tables[name] = provenance() | {"rows": measure_table[name]()}
        store("ablation", tables, options.output)
    draw(tables, options.output)
    for name in options.tables:
        print(f"\n{TITLES[name]}\n")
        for row in tables[name]["rows"]:
            change = ""
            if "difference" in row:
                interval = format_interval(row["difference"]["interval95_over_seeds"])
                change = f"{100 * row['difference']['difference']:+.2f} ({interval})"
            print(f"| {row['name']} | {format_percent(row['test_accuracy'])} | {change} |")


def measure(
    options: argparse.Namespace, changes: dict[str, str], common: str, against: str
) -> list[Row]:
    """The accuracy of each row, and its difference from the `previous` or the `first` row."""
    workdirs, rows = [], []
    for index, (name, flags) in enumerate(changes.items()):
        workdirs.append(train(options, *common.split(), *flags.split()))
        result = load_result(workdirs[index])
        keys = ("config", "environment", "test_accuracy", "test_loss")
        rows.append({"name": name} | {key: result[key] for key in keys})
        if index:
            other = index - 1 if against == "previous" else 0
            difference = compare(workdirs[other], workdirs[index])
            rows[index] |= {"against": rows[other]["name"], "difference": difference}
    return rows


def draw(tables: dict[str, dict[str, Any]], folder: Path) -> None:
    """Draws the seeds of each row, their mean and its 95 % interval."""
    figure = Figure(figsize=(11, 6.5), dpi=150, layout="constrained")
    heights = [len(table["rows"]) for table in tables.values()]
    layout = {"height_ratios": heights}
    panels = figure.subplots(len(tables), 1, squeeze=False, gridspec_kw=layout)[:, 0]
    for axes, (name, table) in zip(panels, tables.items(), strict=True):
        rows = table["rows"]
        for y, row in enumerate(rows):
            seeds = 100 * np.array(row["test_accuracy"]["per_seed"])
            low, high = (100 * end for end in row["test_accuracy"]["interval95"])
            axes.plot(seeds, [y] * len(seeds), "o", color="C0", alpha=0.3, markersize=4)
            axes.plot([low, high], [y] * 2, color="C1", linewidth=3)
            axes.plot(seeds.mean(), y, "o", color="C1", markersize=7)
        labels = [row["name"] for row in rows]
        axes.set(title=TITLES[name], yticks=range(len(rows)), yticklabels=labels)
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.3)
    panels[-1].set(xlabel="test accuracy (%): seeds, their mean and its 95 % interval")
    figure.savefig(folder / "ablation.png")


if __name__ == "__main__":
    main()
