"""The command `python -m mnist_flax.export`: a trained run as a file for other programs.

Each file is run right after it was written, and must answer as the checkpoint does.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mnist_flax import __version__, command, workdir
from mnist_flax.command import (
    OptionalPath,
    keep_compiled_programs,
    path_from_environment,
    printable,
)
from mnist_flax.config import UserError

PROG = command.called("export")

# How far a probability may be from the checkpoint's.
TOLERANCE = 1e-5

INTERFACE = (
    "From images, uint8 [N, 28, 28, 1], a white digit on black, 20 pixels high or wide and "
    "centred, to probabilities, float32 [N, 10], of the digits 0 to 9"
)
PURPOSE = "Reading single handwritten digits 0 to 9 that look like the training data; teaching."
LIMITS = (
    "It answers with a digit whatever it is shown: letters, several digits and blank images too.",
    "Noise, blur, strong rotation and low contrast make it worse; `mnist_flax.evaluate "
    "--corruptions` says by how much.",
    "Photos and drawings have to be brought to the format of the training data first, as "
    "`mnist_flax.predict` does.",
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Writes a trained run as a file for other programs, checks it, and adds a model card."""

    workdir: OptionalPath = None
    """The run's workdir. Required."""

    output: OptionalPath = None
    """The file to write. Required. The model card goes beside it."""

    format: Literal["stablehlo", "onnx", "safetensors"] = "stablehlo"
    """`stablehlo` for JAX and XLA, `onnx` for ONNX Runtime and the like; both with the scaling of
    the images inside. `safetensors` holds the parameters alone."""

    checkpoint: str = "latest"
    """Which checkpoint: `latest`, `best` (by the validation accuracy) or a step."""

    seed_index: int | None = None
    """Which of several networks. Default: all, answering together by their mean probability."""

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
        card = export_run(options)
        checked = card["checked_on"]
        print(
            f"{printable(str(options.output))}: {card['accuracy']:.2%} of {checked['examples']:,} "
            f"{checked['dataset']} test images right, probabilities within "
            f"{checked['largest_difference']:.1e} of the checkpoint's"
        )
        return 0

    return command.run_command(action, argv)


def export_run(options: Options) -> dict[str, Any]:
    """Writes the file and its card, and returns the card.

    Raises:
      UserError: something that the user can mend.
    """
    folder = command.trained_workdir(options.workdir)
    output = command.required(options.output, "--output is missing: the file to write").absolute()
    from mnist_flax import load
    from mnist_flax.formats import FORMATS

    keep_compiled_programs()
    trained = load(folder, options.checkpoint, options.seed_index)
    name, images, labels = _test_images(trained.config.dataset, options)
    make, read = FORMATS[options.format]
    content, expected = make(trained), trained.probabilities(images)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        # All three or none: the one that is entered last takes its place first.
        with (
            workdir.replacing(Path(f"{output}.card.md")) as text,
            workdir.replacing(Path(f"{output}.card.json")) as data,
            workdir.replacing(output) as unchecked,
        ):
            unchecked.write_bytes(content)
            found = read(unchecked)(images)
            card = _card(trained, output, options.format) | {
                "accuracy": float((found.argmax(axis=-1) == labels).mean()),
                "checked_on": {
                    "dataset": name,
                    "examples": len(labels),
                    "largest_difference": _difference(found, expected),
                },
            }
            data.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
            text.write_text(describe(card), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {error.filename or output}: {error.strerror}") from error
    return card


def _card(trained: Any, output: Path, kind: str) -> dict[str, Any]:
    """What the model card says of the networks."""
    from mnist_flax.formats import LAYOUT

    return {
        "file": printable(output.name),
        "format": kind,
        "interface": LAYOUT if kind == "safetensors" else INTERFACE,
        "trained_on": trained.config.dataset,
        "seeds": trained.seeds,
        "step": trained.step,
        "parameters": _count(trained),
        "purpose": PURPOSE,
        "limits": list(LIMITS),
        "mnist_flax": __version__,
        "config": dataclasses.asdict(trained.config),
    }


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest between two arrays of probabilities."""
    difference = float(np.abs(found - expected).max())
    if difference > TOLERANCE or (found.argmax(axis=-1) != expected.argmax(axis=-1)).any():
        raise RuntimeError(f"the file answers otherwise than the checkpoint, by {difference:.1e}")
    return difference


def describe(card: dict[str, Any]) -> str:
    """The card as Markdown."""
    checked = card["checked_on"]
    config = "\n".join(f"| `{name}` | {json.dumps(v)} |" for name, v in card["config"].items())
    return f"""# {card["file"]}

A convolutional network that reads handwritten digits, trained on {card["trained_on"]} by mnist_flax
{card["mnist_flax"]}. Its seeds: {", ".join(map(str, card["seeds"]))}; parameters of each network:
{card["parameters"]:,}.

- Format: {card["format"]}
- {card["interface"]}
- Right: {card["accuracy"]:.2%} of the {checked["examples"]:,} test images of {checked["dataset"]}
- Checked on these against the checkpoint of step {card["step"]:,}: the same answers, and
  probabilities within {checked["largest_difference"]:.1e}

## Meant for

{card["purpose"]}

## Limits

{chr(10).join(f"- {limit}" for limit in card["limits"])}

## Config

| field | value |
|---|---|
{config}
"""


def _test_images(name: str, options: Options) -> tuple[str, np.ndarray, np.ndarray]:
    """The test split of a data set or, where it cannot be had, of the bundled digits."""
    from mnist_flax.data import load_dataset
    from mnist_flax.download import DataUnavailable

    try:
        dataset = load_dataset(name, options.data_dir, options.manual_dir, log=command.say)
    except DataUnavailable as error:
        command.say(f"{error}; checking on scikit-learn's digits instead")
        dataset = load_dataset("digits")
    return dataset.name, *dataset.test


def _count(trained: Any) -> int:
    import jax

    return sum(leaf.size for leaf in jax.tree.leaves(trained.first_params()))


if __name__ == "__main__":
    sys.exit(main())
