"""Which test images does every network get wrong, and are their labels right?

python -m experiments.disputed_labels

Networks of three presets classify all test images: `--seeds` of each, or by default 10 to 20. Five
people each judged the labels of 105 suspicious images (Northcutt, Athalye and Mueller, "Pervasive
Label Errors in Test Sets", https://arxiv.org/abs/2103.14749, with data in
https://github.com/cleanlab/label-errors). The result also has the accuracy without the images whose
label most of them rejected.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.common.provenance import make_parser, provenance, store
from experiments.common.runs import train_seeds
from mnist_flax.data.dataset import load_dataset
from mnist_flax.engine.environment import current_environment
from mnist_flax.engine.seed_stats import format_percent, seed_statistics
from mnist_flax.engine.trained_model import load_trained

SEEDS = {"quick": 20, "default": 20, "best": 10}

# Of the 105 test images, those whose label at most two of the five people chose: how many chose
# the label, how many another digit, and that digit. The others saw neither.
REJECTED = {
    947: (0, 5, 9),
    1621: (2, 3, 6),
    1901: (2, 3, 4),
    2130: (2, 2, 9),
    2462: (0, 4, 0),
    2597: (0, 4, 3),
    2654: (0, 2, 1),
    3520: (2, 0, 4),
    3558: (1, 4, 0),
    5937: (1, 3, 3),
    6651: (0, 5, 6),
    6783: (2, 3, 6),
    8527: (2, 2, 9),
    9679: (2, 0, 3),
    9729: (2, 3, 6),
}
SHOWN = 10


def main() -> None:
    """Trains, classifies, stores and draws."""
    options = make_parser(__doc__, seeds=0, only_mnist=True).parse_args()
    images, labels = load_dataset(options.dataset).test
    predicted = {preset: classify(options, preset, images) for preset in SEEDS}
    result = count_errors(predicted, labels)
    store(
        "disputed_labels",
        provenance() | {"environment": current_environment()} | result,
        options.output,
    )
    draw(images, labels, predicted, result["most_disputed"], options.output)
    for preset, row in result["presets"].items():
        kept = format_percent(row["accuracy_without_rejected"])
        print(f"| {preset} | {format_percent(row['accuracy'])} | {kept} |")
    print(f"{len(result['wrong_by_all'])} images are wrong by every network")


def classify(options: argparse.Namespace, preset: str, images: np.ndarray) -> np.ndarray:
    """The digit that each network of a preset sees in each image, [seeds, N]."""
    seeds = options.seeds or SEEDS[preset]
    workdirs = train_seeds(options, range(seeds), "--preset", preset)
    return np.concatenate([load_trained(folder).logits(images).argmax(-1) for folder in workdirs])


def count_errors(predicted: dict[str, np.ndarray], labels: np.ndarray) -> dict[str, Any]:
    """The accuracies with and without the rejected labels, and the images behind the errors."""
    rejected = np.isin(np.arange(len(labels)), list(REJECTED))
    presets = {}
    for preset, digits in predicted.items():
        correct = digits == labels
        presets[preset] = {
            "n": len(digits),
            "accuracy": seed_statistics(correct.mean(axis=1)),
            "accuracy_without_rejected": seed_statistics(correct[:, ~rejected].mean(axis=1)),
            "wrong_by_all": np.flatnonzero(~correct.any(axis=0)).tolist(),
        }
    # The mean over presets, as some have more seeds.
    wrong = np.mean([(digits != labels).mean(axis=0) for digits in predicted.values()], axis=0)
    everywhere = np.flatnonzero(wrong == 1)
    return {
        "presets": presets,
        "rejected": sorted(REJECTED),
        "wrong_by_all": everywhere.tolist(),
        "rejected_and_wrong_by_all": [int(i) for i in everywhere if i in REJECTED],
        "most_disputed": np.argsort(-wrong, kind="stable")[:SHOWN].tolist(),
    }


def draw(
    images: np.ndarray,
    labels: np.ndarray,
    predicted: dict[str, np.ndarray],
    shown: list[int],
    folder: Path,
) -> None:
    """Draws images with their label, what the networks see in them, and what people did."""
    figure = Figure(figsize=(11, 6.6), dpi=120, layout="constrained")
    for axes, index in zip(figure.subplots(2, len(shown) // 2).flat, shown, strict=True):
        axes.imshow(images[index, ..., 0], cmap="gray_r")
        axes.set_axis_off()
        lines = [f"image {index}, label {labels[index]}"]
        lines += [f"{preset}: {answers(digits[:, index])}" for preset, digits in predicted.items()]
        if index in REJECTED:
            own, other, digit = REJECTED[index]
            votes = {labels[index]: own, digit: other, "neither": 5 - own - other}
            people = ", ".join(f"{count} x {name}" for name, count in votes.items() if count)
            lines.append(f"people: {people}")
        axes.set_title("\n".join(lines), fontsize=8, loc="left")
    figure.savefig(folder / "disputed_labels.png")


def answers(digits: np.ndarray) -> str:
    """The digits that the networks see, the most frequent first: `9 (90 %), 4 (10 %)`."""
    values, counts = np.unique(digits, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return ", ".join(f"{values[i]} ({counts[i] / len(digits):.0%})" for i in order[:2])


if __name__ == "__main__":
    main()
