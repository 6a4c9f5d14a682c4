"""Does the reference's recipe give the tutorial's 98.38 % and loss 0.0569?

python experiments/reference.py

Trains 20 seeds of the reference preset, and 20 of what the tutorial's notebook did: each
image column scaled to unit length, and the last 30 % of the training images held out.
"""

import dataclasses
from pathlib import Path

import numpy as np
import training
from matplotlib.figure import Figure
from provenance import provenance, store
from seeds import train_seeds

from mnist_flax.config import PRESETS
from mnist_flax.data import load_dataset
from mnist_flax.spread import spread

TUTORIAL = {"test_accuracy": 0.9838, "test_loss": 0.0569}
LABELS = {"paper": "pixels / 255, 60,000 images", "notebook": "unit columns, 42,000 images"}


def main() -> None:
    """Trains, stores and draws both distributions."""
    options = training.arguments(__doc__, seeds=20).parse_args()
    flags = ("--preset", "reference", "--num-seeds", str(options.seeds))
    summary = training.summary(training.Runs(options).train(*flags))
    scores = {
        "paper": {name: summary[name]["per_seed"] for name in TUTORIAL},
        "notebook": notebook(options.dataset, options.seeds),
    }
    found = {
        variant: {name: against_tutorial(name, values[name]) for name in TUTORIAL}
        for variant, values in scores.items()
    }
    result = {"n": options.seeds, "tutorial": TUTORIAL, **found}
    environment = {"environment": summary["environment"]}
    store("reference", provenance() | environment | result, options.output)
    draw(found, options.output)
    for variant, values in found.items():
        accuracy = values["test_accuracy"]
        print(f"{LABELS[variant]}: {accuracy['mean']:.2%} ± {100 * accuracy['std']:.2f}")


def notebook(name: str, count: int) -> dict[str, list[float]]:
    """The scores of the notebook's variant. Its pixels are rounded to 1/255, as MNIST's are."""
    config = dataclasses.replace(
        PRESETS["reference"], dataset=name, validation_fraction=0.3, num_seeds=count
    )
    dataset = load_dataset(name, validation_fraction=config.validation_fraction)
    splits = {
        split: (unit_columns(images), labels)
        for split in ("train", "validation", "test")
        for images, labels in [getattr(dataset, split)]
    }
    return train_seeds(dataclasses.replace(dataset, **splits), config)


def unit_columns(images: np.ndarray) -> np.ndarray:
    """`keras.utils.normalize(images, axis=1)`, in steps of 1/255: uint8 [N, 28, 28, 1]."""
    values = images.astype(np.float32)
    norm = np.sqrt((values**2).sum(axis=1, keepdims=True))
    return np.round(255 * values / np.where(norm == 0, 1, norm)).astype(np.uint8)


def against_tutorial(name: str, values: list[float]) -> dict:
    """The spread, and where the tutorial's figure falls in it."""
    result = spread(values)
    share = np.mean([value <= TUTORIAL[name] for value in values])
    deviations = (TUTORIAL[name] - result["mean"]) / result["std"]
    return result | {"share_at_or_below_tutorial": share, "tutorial_in_std": deviations}


def draw(found: dict, folder: Path) -> None:
    """One dot for each seed, and the tutorial's figure as a line."""
    figure = Figure(figsize=(9, 3.2), dpi=150, layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, name, unit, scale in zip(
        panels, TUTORIAL, ("test accuracy (%)", "test loss (nats)"), (100, 1), strict=True
    ):
        for row, (variant, values) in enumerate(found.items()):
            dots = scale * np.array(values[name]["per_seed"])
            heights = row + 0.15 * np.linspace(-1, 1, len(dots))
            axes.plot(dots, heights, "o", color=f"C{row}", alpha=0.6, markersize=5)
            axes.plot([dots.mean()] * 2, [row - 0.3, row + 0.3], color=f"C{row}", linewidth=2)
            axes.text(dots.mean(), row + 0.33, LABELS[variant], ha="center", fontsize=8)
        axes.axvline(scale * TUTORIAL[name], color="black", linestyle="--", linewidth=1)
        axes.text(scale * TUTORIAL[name], -0.55, " the tutorial", fontsize=8, va="center")
        axes.set(xlabel=unit, yticks=[], ylim=(-0.7, 1.6))
    figure.savefig(folder / "reference.png")


if __name__ == "__main__":
    main()
