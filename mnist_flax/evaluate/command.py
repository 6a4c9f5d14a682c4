"""The command `python -m mnist_flax.evaluate`: how good a trained run is, and where it fails.

It needs only a checkpoint, and imports no training code.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mnist_flax.core.config import Config, UserError
from mnist_flax.engine import cli, workdir
from mnist_flax.engine.options import DataOptions, RunOptions, parse_options
from mnist_flax.engine.seed_stats import format_percent, mean_of

if TYPE_CHECKING:
    from mnist_flax.data import Arrays
    from mnist_flax.data.dataset import Dataset
    from mnist_flax.engine.trained_model import TrainedModel
    from mnist_flax.evaluate.metrics import Evaluation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(DataOptions, RunOptions):
    """Evaluates a trained network: accuracy, confusions, robustness.

    Example: mnist-flax evaluate --workdir runs/exp1 --corruptions
    """

    split: Literal["test", "validation", "train"] = "test"
    """Which images."""
    dataset: Literal["as trained", "mnist", "fashion_mnist", "kmnist", "digits"] = "as trained"
    """Which dataset."""
    corruptions: bool = False
    """Also evaluate on noisy, blurred, shifted, rotated, occluded, ... images."""
    mnist_c: bool = False
    """Also evaluate on MNIST-C's corrupted test images, a download of 247 MB once."""
    json: bool = False
    """Print everything as JSON, with every misclassified image."""
    no_report: bool = False
    """Do not write the report again."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""

    def action(argv: Sequence[str]) -> int:
        options = parse_options(Options, cli.program_name("evaluate"), argv)
        evaluation = evaluate_run(options)
        print(json.dumps(evaluation, indent=2) if options.json else describe(evaluation))
        return 0

    return cli.run_command(action, argv)


def evaluate_run(options: Options) -> "Evaluation":
    """Evaluates trained networks and, unless `no_report`, writes the report of their run.

    Raises a UserError if there is no such run, checkpoint or split, or a folder cannot be used.
    """
    from mnist_flax.engine.trained_model import load_selected
    from mnist_flax.evaluate.metrics import evaluate_logits

    folder = None if options.no_report or not options.workdir else options.workdir.absolute()
    cli.initialize_jax()
    trained = load_selected(options)
    if folder:
        workdir.refuse_links(folder)
    dataset = _load_dataset(options, trained.config)
    # Before all other work, because it may be missing.
    mnist_c = _evaluate_mnist_c(options, trained) if options.mnist_c else None
    images, labels = getattr(dataset, options.split)
    held_out = _predict_held_out(options, trained, dataset)
    evaluation = evaluate_logits(
        trained, dataset.name, options.split, trained.logits(images), labels, held_out
    )
    if options.corruptions:
        from mnist_flax.evaluate.corruptions import robustness

        evaluation["robustness"] = robustness(trained, images, labels)
    if mnist_c:
        evaluation["mnist_c"] = mnist_c
    if folder:
        _write_report(folder, trained, (images, labels), evaluation)
    return evaluation


def _load_dataset(options: Options, config: Config) -> "Dataset":
    """The dataset to evaluate on, whose split is not empty."""
    from mnist_flax.data.dataset import load_dataset

    fraction = config.validation_fraction
    if options.split == "validation" and not fraction:
        raise UserError(
            f"{options.workdir or 'the pretrained network'} was trained without "
            "--validation-fraction: no images are held out"
        )
    name = config.dataset if options.dataset == "as trained" else options.dataset
    dataset = load_dataset(name, options.data_dir, options.manual_dir, fraction, cli.print_status)
    if not len(getattr(dataset, options.split)[0]):
        raise UserError(f"--validation-fraction {fraction} holds out no image of {name}")
    return dataset


def _predict_held_out(
    options: Options, trained: "TrainedModel", dataset: "Dataset"
) -> "Arrays | None":
    """Logits and labels of the images held out in training, unless those are evaluated."""
    images, labels = dataset.validation
    if not len(images) or options.split == "validation" or dataset.name != trained.config.dataset:
        return None
    return trained.logits(images), labels


def _evaluate_mnist_c(options: Options, trained: "TrainedModel") -> dict[str, float]:
    from mnist_flax.data.mnist_c import load_mnist_c
    from mnist_flax.evaluate.metrics import ensemble_accuracy

    corrupted = load_mnist_c(options.data_dir, options.manual_dir, cli.print_status)
    return {
        kind: ensemble_accuracy(trained.logits(images), labels)
        for kind, (images, labels) in corrupted.items()
    }


def _write_report(
    folder: Path, trained: "TrainedModel", split: "Arrays", evaluation: "Evaluation"
) -> None:
    from mnist_flax.evaluate import report

    made = report.make_report(folder, trained, *split, evaluation)
    target = folder / workdir.REPORT
    try:
        report.write_report(target, made)
    except OSError as error:
        raise UserError(
            f"cannot write to {target}: {error.strerror or error}; --no-report evaluates without "
            "writing"
        ) from error


def describe(evaluation: "Evaluation") -> str:
    """The evaluation as text that fits one screen."""
    from mnist_flax.evaluate.report import summary_lines

    networks = len(evaluation["seeds"])
    lines = [
        f"{evaluation['dataset']} {evaluation['split']}, step {evaluation['step']:,}: accuracy "
        f"{format_percent(evaluation['accuracy'])}, loss {mean_of(evaluation['loss']):.4f}"
        + f" (means of {networks} networks)"
        * (networks > 1),
        *summary_lines(evaluation),
        "",
        "class  images  recall  precision      F1",
    ]
    lines += [
        f"{row['class']:>5}  {row['examples']:>6,}  {row['recall']:>6.2%}  "
        f"{row['precision']:>9.2%}  {row['f1']:>6.2%}"
        for row in evaluation["per_class"]
    ]
    calibration = evaluation["calibration"]
    lines += ["", f"expected calibration error {100 * calibration['ece']:.2f} points"]
    if "ece_at_temperature" in calibration:
        ece, temperature = calibration["ece_at_temperature"], calibration["temperature"]
        lines[-1] += f"; {100 * ece:.2f} at temperature {temperature:.3f}"
    if "robustness" in evaluation:
        lines += ["", "severity       " + "".join(f"{severity:>8}" for severity in range(6))]
        lines += [
            f"{kind:<15}" + "".join(f"{accuracy:>8.2%}" for accuracy in accuracies)
            for kind, accuracies in evaluation["robustness"].items()
        ]
    if "mnist_c" in evaluation:
        lines += ["", "MNIST-C"]
        lines += [f"{kind:<15}{accuracy:>8.2%}" for kind, accuracy in evaluation["mnist_c"].items()]
    return "\n".join(lines)
