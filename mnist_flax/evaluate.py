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
from mnist_flax.config import DATASET_SIZES, UserError
from mnist_flax.spread import mean_of, percent

PROG = "python -m mnist_flax.evaluate"


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

    def action() -> int:
        options = command.parse(Options, PROG, sys.argv[1:] if argv is None else argv)
        result = evaluate_run(options)
        print(json.dumps(result, indent=2) if options.json else describe(result))
        return 0

    return command.run_command(action)


def evaluate_run(options: Options) -> dict[str, Any]:
    """Everything that the command tells, as numbers.

    Raises:
      UserError: something that the user can mend.
    """
    if options.workdir is None:
        raise UserError("--workdir is missing: the folder of a trained run")
    from mnist_flax.data import load_dataset
    from mnist_flax.metrics import assess
    from mnist_flax.trained import load_trained

    folder = options.workdir.expanduser()
    trained = load_trained(folder, options.checkpoint)
    own = trained.config.dataset
    name = own if options.dataset == "as trained" else options.dataset
    fraction = trained.config.validation_fraction
    if options.split == "validation" and not fraction:
        raise UserError(f"{folder} was trained without --validation-fraction: nothing is held out")
    say = lambda line: print(line, file=sys.stderr)  # noqa: E731
    dataset = load_dataset(name, options.data_dir, options.manual_dir, fraction, say)
    images, labels = getattr(dataset, options.split)

    def logits(images: Any) -> Any:
        found = trained.logits(images)
        if options.seed_index is None:
            return found
        if not 0 <= options.seed_index < len(found):
            raise UserError(
                f"--seed-index must be from 0 to {len(found) - 1}, but is {options.seed_index}"
            )
        return found[options.seed_index : options.seed_index + 1]

    held_out = None
    if fraction and name == own and options.split != "validation":
        held_out = (logits(dataset.validation[0]), dataset.validation[1])
    return {
        "workdir": str(folder),
        "step": trained.step,
        "seeds": trained.seeds,
        "dataset": name,
        "split": options.split,
        **assess(logits(images), labels, held_out),
    }
