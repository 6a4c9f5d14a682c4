"""How do training time and the number of images affect the accuracy?

python -m experiments.learning_curves

The default recipe for 1 to 40 epochs of all images; and with the first 100 to 60,000 images,
each for as many steps as 5 epochs of all of them take.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from experiments.common.provenance import make_parser, provenance, store
from experiments.common.runs import load_result, train
from mnist_flax.core.config import DATASET_SIZES, PRESETS
from mnist_flax.engine.seed_stats import format_percent

EPOCHS = (1, 2, 5, 10, 20, 40)
IMAGES = (100, 300, 1_000, 3_000, 10_000, 30_000, 60_000)
LABELS = {"epochs": "epochs of 60,000 images", "images": "training images"}


def main() -> None:
    """Trains, stores and draws."""
    options = make_parser(__doc__, seeds=5).parse_args()
    sizes = [size for size in IMAGES if size <= DATASET_SIZES[options.dataset][0]]
    result = {
        "n": options.seeds,
        "epochs": [measure(options, epochs) | {"epochs": epochs} for epochs in EPOCHS],
        "images": [measure_images(options, images) for images in sizes],
    }
    store("learning_curves", provenance() | result, options.output)
    draw(result, options.output)
    for name in LABELS:
        for point in result[name]:
            print(f"| {point[name]:,} {name} | {format_percent(point['test_accuracy'])} |")


def measure_images(options: argparse.Namespace, images: int) -> dict[str, Any]:
    """The scores with a number of images, after as many steps as the default preset takes."""
    total = DATASET_SIZES[options.dataset][0]
    default = dataclasses.replace(PRESETS["default"], dataset=options.dataset)
    # The others are held out; half an image more, so that rounding leaves exactly `images`.
    held_out = (total - images + 0.5) / total
    steps_per_epoch = -(-images // default.batch_size)
    epochs = max(1, round(default.total_steps / steps_per_epoch))
    flags = ("--validation-fraction", str(held_out)) if images < total else ()
    return measure(options, epochs, *flags) | {"images": images}


def measure(options: argparse.Namespace, epochs: int, *flags: str) -> dict[str, Any]:
    """The scores of one run, which is evaluated only at its end."""
    count = ("--epochs", str(epochs), "--num-seeds", str(options.seeds))
    at_end = ("--eval-every-epochs", str(epochs), "--checkpoint-every-epochs", str(epochs))
    result = load_result(train(options, *count, *at_end, *flags))
    return {name: result[name] for name in ("config", "environment", "test_accuracy", "test_loss")}


def draw(result: dict[str, Any], folder: Path) -> None:
    """Draws the error of all seeds against the epochs and against the images."""
    figure = Figure(figsize=(9, 3.6), dpi=150, layout="constrained")
    for axes, (name, label) in zip(figure.subplots(1, 2), LABELS.items(), strict=True):
        sizes = [point[name] for point in result[name]]
        accuracy = np.array([point["test_accuracy"]["per_seed"] for point in result[name]])
        errors = 100 * (1 - accuracy)
        axes.plot(sizes, errors, "o", color="C0", alpha=0.3, markersize=4)
        axes.plot(sizes, errors.mean(axis=1), "-", color="C1")
        for size, error in zip(sizes, errors.mean(axis=1), strict=True):
            axes.annotate(
                f"{error:.2f}", (size, error), (4, 6), "data", "offset points", fontsize=8
            )
        axes.set(xscale="log", yscale="log", xlabel=label, ylabel="test error (%)")
        axes.margins(x=0.12)
        axes.set_xticks(sizes, [f"{n / 1000:g}k" if n >= 1000 else str(n) for n in sizes])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 4, 6, 8)))
        axes.minorticks_off()
        axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.3)
    figure.savefig(folder / "learning_curves.png")


if __name__ == "__main__":
    main()
