"""The command `python -m mnist_flax.evaluate`: how good a trained run is, and where it fails.

From a checkpoint alone; nothing of training is imported.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from mnist_flax import command, workdir
from mnist_flax.command import OptionalPath, path_from_environment
from mnist_flax.config import UserError
from mnist_flax.spread import mean_of, percent

PROG = command.called("evaluate")


@dataclasses.dataclass(frozen=True)
class Options:
    """Tells how good a trained run is: accuracy, confusions, calibration, robustness."""

    workdir: OptionalPath = None
    """The run's workdir. Required."""

    checkpoint: str = "latest"
    """Which checkpoint: `latest`, `best` (by the validation accuracy) or a step."""

    split: Literal["test", "validation", "train"] = "test"
    """Which images."""

    dataset: Literal["as trained", "mnist", "fashion_mnist", "kmnist", "digits"] = "as trained"
    """Of which data set."""

    seed_index: int | None = None
    """Which of several networks. Default: all, answering together by their mean probability."""

    corruptions: bool = False
    """Also with images that are noisy, blurred, moved, turned, covered, and so on."""

    mnist_c: bool = False
    """Also on MNIST-C's corrupted test images, which TFDS downloads once (247 MB)."""

    json: bool = False
    """Print everything as JSON, with every mistake."""

    no_report: bool = False
    """Do not write the report page anew."""

    data_dir: OptionalPath = None
    """TFDS's data folder. Default: TFDS_DATA_DIR, else TFDS's own."""

    manual_dir: OptionalPath = dataclasses.field(
        default_factory=lambda: path_from_environment("MNIST_FLAX_MANUAL_DIR")
    )
    """Read-only folder with the four original .gz files. Default: MNIST_FLAX_MANUAL_DIR."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""

    def action(argv: Sequence[str]) -> int:
        options = command.parse(Options, PROG, argv)
        evaluation = evaluate_run(options)
        print(json.dumps(evaluation, indent=2) if options.json else describe(evaluation))
        return 0

    return command.run_command(action, argv)


def evaluate_run(options: Options) -> dict[str, Any]:
    """Everything that the command tells, as numbers; writes the report anew.

    Raises:
      UserError: something that the user can mend.
    """
    folder = command.trained_workdir(options.workdir).absolute()
    from mnist_flax.data import load_dataset
    from mnist_flax.metrics import assess, right_share
    from mnist_flax.trained import load_trained

    command.keep_compiled_programs()
    trained = load_trained(folder, options.checkpoint)
    if not options.no_report:
        workdir.refuse_links(folder)
    if options.seed_index is not None:
        trained = trained.only(options.seed_index)
    own, fraction = trained.config.dataset, trained.config.validation_fraction
    name = own if options.dataset == "as trained" else options.dataset
    if options.split == "validation" and not fraction:
        raise UserError(f"{folder} was trained without --validation-fraction: nothing is held out")
    dataset = load_dataset(name, options.data_dir, options.manual_dir, fraction, command.say)
    images, labels = getattr(dataset, options.split)
    if not len(images):
        raise UserError(f"--validation-fraction {fraction} holds out no image of {name}")
    held_out = None
    if fraction and name == own and options.split != "validation":
        held_out = (trained.logits(dataset.validation[0]), dataset.validation[1])
    evaluation = {
        "step": trained.step,
        "epochs": trained.epochs,
        "seeds": trained.seeds,
        "dataset": name,
        "split": options.split,
        **assess(trained.logits(images), labels, held_out),
    }
    if options.corruptions:
        from mnist_flax.corruptions import robustness

        evaluation["robustness"] = robustness(trained, images, labels)
    if options.mnist_c:
        from mnist_flax.mnist_c import load_mnist_c

        corrupted = load_mnist_c(options.data_dir, options.manual_dir, command.say)
        evaluation["mnist_c"] = {
            kind: right_share(trained.logits(images), labels)
            for kind, (images, labels) in corrupted.items()
        }
    if not options.no_report:
        _write_report(folder, trained, images, labels, evaluation)
    return evaluation


def _write_report(
    folder: Path, trained: Any, images: Any, labels: Any, evaluation: dict[str, Any]
) -> None:
    from mnist_flax import report

    metrics = workdir.read_metrics(folder / workdir.METRICS)
    summary = workdir.read_summary(folder / workdir.SUMMARY) or {}
    config = workdir.read_json(folder / workdir.CONFIG)
    pictures = report.draw(trained, images, labels, metrics, evaluation)
    try:
        report.write_report(folder / workdir.REPORT, config, metrics, summary, evaluation, pictures)
    except OSError as error:
        raise UserError(
            f"cannot write to {folder / workdir.REPORT}: {error.strerror or error}; --no-report "
            "evaluates without writing"
        ) from error


def describe(evaluation: dict[str, Any]) -> str:
    """The evaluation for people, on one screen."""
    from mnist_flax.report import in_short

    lines = [
        f"{evaluation['dataset']} {evaluation['split']}, step {evaluation['step']:,}: accuracy "
        f"{percent(evaluation['accuracy'])}, loss {mean_of(evaluation['loss']):.4f}",
        *in_short(evaluation),
        "",
        "digit  images  recall  precision      F1",
    ]
    lines += [
        f"{row['class']:>5}  {row['examples']:>6,}  {row['recall']:>6.2%}  "
        f"{row['precision']:>9.2%}  {row['f1']:>6.2%}"
        for row in evaluation["per_class"]
    ]
    found = evaluation["calibration"]
    lines += ["", f"expected calibration error {100 * found['ece']:.2f} points"]
    if found["temperature"] is not None:
        lines[-1] += (
            f"; {100 * found['ece_at_temperature']:.2f} at temperature {found['temperature']:.3f}"
        )
    if "robustness" in evaluation:
        lines += ["", "severity       " + "".join(f"{s:>8}" for s in range(6))]
        lines += [
            f"{kind:<15}" + "".join(f"{accuracy:>8.2%}" for accuracy in accuracies)
            for kind, accuracies in evaluation["robustness"].items()
        ]
    if "mnist_c" in evaluation:
        lines += ["", "MNIST-C"]
        lines += [f"{kind:<15}{right:>8.2%}" for kind, right in evaluation["mnist_c"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
