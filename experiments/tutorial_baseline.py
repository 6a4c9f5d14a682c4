"""Does the recipe of the `reference` preset give the tutorial's 98.38 % and loss 0.0569?

python -m experiments.tutorial_baseline

Trains 20 seeds of the preset, and 20 of what the tutorial's notebook did: each image column
scaled to unit length, and the last 30 % of the training images held out.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments.common.provenance import make_parser, provenance, store
from experiments.common.runs import load_result, train
from mnist_flax.core.config import PRESETS
from mnist_flax.data.dataset import load_dataset
from mnist_flax.engine.seed_stats import seed_statistics
from mnist_flax.run.compilation import compile_training

TUTORIAL = {"test_accuracy": 0.9838, "test_loss": 0.0569}
WHITE = {"facecolor": "white", "edgecolor": "none", "pad": 1}
LABELS = {"reference": "the preset reference", "notebook": "the notebook's variant"}


def main() -> None:
    """Trains, stores and draws both distributions."""
    options = make_parser(__doc__, seeds=20).parse_args()
    run = load_result(train(options, "--preset=reference", f"--num-seeds={options.seeds}"))
    scores = {
        "reference": {name: run[name]["per_seed"] for name in TUTORIAL},
        "notebook": train_notebook_variant(options.dataset, options.seeds),
    }
    variants = {
        variant: {name: compare_with_tutorial(name, values[name]) for name in TUTORIAL}
        for variant, values in scores.items()
    }
    result = {"environment": run["environment"], "n": options.seeds, "tutorial": TUTORIAL}
    store("tutorial_baseline", provenance() | result | variants, options.output)
    draw(variants, options.output)
    for variant, values in variants.items():
        accuracy = values["test_accuracy"]
        print(f"{LABELS[variant]}: {accuracy['mean']:.2%} ± {100 * accuracy['std']:.2f}")


def train_notebook_variant(name: str, num_seeds: int) -> dict[str, list[float]]:
    """The scores of the notebook's variant, whose pixels are rounded to 1/255 like MNIST's."""
    config = dataclasses.replace(
        PRESETS["reference"], dataset=name, validation_fraction=0.3, num_seeds=num_seeds
    )
    dataset = load_dataset(name, validation_fraction=config.validation_fraction)
    splits = {
        split: (normalize_columns(images), labels)
        for split in ("train", "validation", "test")
        for images, labels in [getattr(dataset, split)]
    }
    training = compile_training(dataclasses.replace(dataset, **splits), config)
    state = training.create_state()
    for epoch in range(config.epochs):
        order = training.epoch_order(epoch)
        state = jax.block_until_ready(training.train_steps(state, order, config.steps_per_epoch))
        print(f"epoch {epoch + 1} of {config.epochs}", flush=True)
    return {name: values.tolist() for name, values in training.evaluate(state).items()}


def normalize_columns(images: np.ndarray) -> np.ndarray:
    """`keras.utils.normalize(images, axis=1)` in steps of 1/255: uint8 [N, 28, 28, 1]."""
    values = images.astype(np.float32)
    norm = np.sqrt((values**2).sum(axis=1, keepdims=True))
    return np.round(255 * values / np.where(norm == 0, 1, norm)).astype(np.uint8)


def compare_with_tutorial(name: str, values: list[float]) -> dict[str, Any]:
    """The distribution over the seeds, and the position of the tutorial's score in it."""
    result = seed_statistics(values)
    return {
        **result,
        "share_at_or_below_tutorial": np.mean([value <= TUTORIAL[name] for value in values]),
        "tutorial_in_std": (TUTORIAL[name] - result["mean"]) / (result["std"] or np.nan),
    }


def draw(variants: dict[str, dict[str, Any]], folder: Path) -> None:
    """Draws one dot per seed, and the tutorial's score as a line."""
    figure = Figure(figsize=(9, 3.2), dpi=150, layout="constrained")
    labels = (("test accuracy (%)", 100), ("test loss (nats)", 1))
    for axes, name, (label, scale) in zip(figure.subplots(1, 2), TUTORIAL, labels, strict=True):
        axes.axvline(scale * TUTORIAL[name], color="black", linestyle="--", linewidth=1)
        for row, (variant, values) in enumerate(variants.items()):
            dots = scale * np.array(values[name]["per_seed"])
            heights = row + 0.15 * np.linspace(-1, 1, len(dots))
            axes.plot(dots, heights, "o", color=f"C{row}", alpha=0.6, markersize=5)
            axes.plot([dots.mean()] * 2, [row - 0.3, row + 0.3], color=f"C{row}", linewidth=2)
            label_style = {"ha": "center", "fontsize": 8, "bbox": WHITE}
            axes.text(dots.mean(), row + 0.38, LABELS[variant], **label_style)
        axes.text(scale * TUTORIAL[name], -0.55, " the tutorial", fontsize=8, va="center")
        axes.set(xlabel=label, yticks=[], ylim=(-0.7, 1.6))
    figure.savefig(folder / "tutorial_baseline.png")


if __name__ == "__main__":
    main()
