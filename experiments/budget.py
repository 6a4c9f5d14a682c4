"""How much training, and how many images, does an accuracy take?

python experiments/budget.py

The default recipe for 1 to 40 epochs of all images; and with the first 100 to 60,000 images,
each for as many steps as 5 epochs of all of them take.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import training
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from provenance import provenance, store

from mnist_flax.config import DATASET_SIZES, PRESETS
from mnist_flax.spread import percent

EPOCHS = (1, 2, 5, 10, 20, 40)
IMAGES = (100, 300, 1_000, 3_000, 10_000, 30_000, 60_000)


def main() -> None:
    """Trains, stores and draws."""
    options = training.arguments(__doc__, seeds=5).parse_args()
    trainer = training.Runs(options)
    sizes = [size for size in IMAGES if size <= DATASET_SIZES[options.dataset][0]]
    result = {
        "n": options.seeds,
        "epochs": [by_epochs(trainer, epochs, options.seeds) for epochs in EPOCHS],
        "images": [by_images(trainer, images, options.seeds) for images in sizes],
    }
    store("budget", provenance() | result, options.output)
    draw(result, options.output)
    for name in ("epochs", "images"):
        for point in result[name]:
            print(f"| {point[name]:,} {name} | {percent(point['test_accuracy'])} |")


def by_epochs(trainer: training.Runs, epochs: int, seeds: int) -> dict[str, Any]:
    """All images, so many epochs."""
    return point(trainer, epochs, seeds) | {"epochs": epochs}


def by_images(trainer: training.Runs, images: int, seeds: int) -> dict[str, Any]:
    """So many images, as many steps as the default preset takes."""
    total = DATASET_SIZES[trainer.dataset][0]
    default = dataclasses.replace(PRESETS["default"], dataset=trainer.dataset)
    # Held out and left alone; just enough above the share that rounding leaves `images`.
    held_out = (total - images + 0.5) / total
    steps_per_epoch = -(-images // default.batch_size)
    epochs = max(1, round(default.total_steps / steps_per_epoch))
    flags = ("--validation-fraction", str(held_out)) if images < total else ()
    return point(trainer, epochs, seeds, *flags) | {"images": images}


def point(trainer: training.Runs, epochs: int, seeds: int, *flags: str) -> dict[str, Any]:
    """The scores of one run, evaluated at its end only."""
    often = ("--eval-every", str(epochs), "--checkpoint-every", str(epochs))
    count = ("--epochs", str(epochs), "--num-seeds", str(seeds))
    summary = training.summary(trainer.train(*count, *often, *flags))
    return {name: summary[name] for name in ("config", "environment", "test_accuracy", "test_loss")}


def draw(result: dict[str, Any], folder: Path) -> None:
    """Wrong answers against both budgets, all seeds."""
    figure = Figure(figsize=(9, 3.6), dpi=150, layout="constrained")
    labels = {"epochs": "epochs of 60,000 images", "images": "training images"}
    for axes, (name, label) in zip(figure.subplots(1, 2), labels.items(), strict=True):
        points = result[name]
        budget = [point[name] for point in points]
        wrong = 100 * (1 - np.array([point["test_accuracy"]["per_seed"] for point in points]))
        axes.plot(budget, wrong, "o", color="C0", alpha=0.3, markersize=4)
        axes.plot(budget, wrong.mean(axis=1), "-", color="C1")
        for where, value in zip(budget, wrong.mean(axis=1), strict=True):
            axes.annotate(
                f"{value:.2f}", (where, value), xytext=(4, 6), textcoords="offset points",
                fontsize=8,
            )  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel=label, ylabel="wrong answers (%)")
        axes.margins(x=0.12)
        names = [f"{value / 1000:g}k" if value >= 1000 else str(value) for value in budget]
        axes.set_xticks(budget, names)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 4, 6, 8)))
        axes.minorticks_off()
        axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.3)
    figure.savefig(folder / "budget.png")


if __name__ == "__main__":
    main()
