"""The command `python -m mnist_flax.export`: a trained run as a file for other programs."""

import dataclasses
import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mnist_flax.core.config import UserError
from mnist_flax.engine import cli, files
from mnist_flax.engine.cli import import_extra
from mnist_flax.engine.options import DataOptions, RunOptions, parse_options, require_option

if TYPE_CHECKING:
    import numpy as np

    from mnist_flax.data.dataset import Dataset
    from mnist_flax.engine.trained_model import TrainedModel

PACKAGES = {"onnx": ("onnx", "onnxruntime")}  # what a format needs of the extra `export`
INTERFACE = (
    "From images, uint8 [N, 28, 28, 1], a white digit on black, 20 pixels high or wide and "
    "centered, to probabilities, float32 [N, 10], of the digits 0 to 9"
)
PURPOSE = "Classifying single handwritten digits that look like the training data; teaching."
LIMITS = [
    "It predicts a digit for every input: also for letters, several digits and blank images.",
    "Noise, blur, rotation and low contrast reduce the accuracy (see `evaluate --corruptions`).",
    "Photos and drawings must first be converted to MNIST's format, as `predict` does.",
]
CHECKED = (
    "accuracy {accuracy:.2%} on {checked_on[examples]:,} {checked_on[dataset]} test images, "
    "probabilities within {checked_on[largest_difference]:.1e} of the checkpoint's"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(DataOptions, RunOptions):
    """Writes a trained network for other programs, verifies it, adds a model card.

    Example: mnist-flax export --format onnx --output model.onnx
    """

    output: Path | None = None
    """The file to write. Required. The model card is written beside it."""
    format: Literal["stablehlo", "onnx", "safetensors"] = "stablehlo"
    """`stablehlo` for JAX and XLA, `onnx` for ONNX Runtime and others; both include the scaling
    of the images. `safetensors` holds the parameters alone."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return cli.run_command(_export, argv)


def _export(argv: Sequence[str]) -> int:
    options = parse_options(Options, cli.program_name("export"), argv)
    output = require_option(options.output, "--output is missing: the file to write").absolute()
    for name in PACKAGES.get(options.format, ()):
        import_extra(name, "export")
    from mnist_flax.data.dataset import load_dataset
    from mnist_flax.data.download import DataUnavailable
    from mnist_flax.engine.trained_model import load_selected
    from mnist_flax.export.formats import FORMATS

    cli.initialize_jax()
    trained = load_selected(options)
    name, folders = trained.config.dataset, (options.data_dir, options.manual_dir)
    try:
        dataset = load_dataset(name, *folders, log=cli.print_status)
    except DataUnavailable as error:
        cli.print_status(f"{error}; verifying on scikit-learn's digits instead")
        dataset = load_dataset("digits")
    convert, load = FORMATS[options.format]
    content = convert(trained)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        # All three files are replaced, or none.
        with (
            files.atomic_path(Path(f"{output}.card.md")) as markdown_file,
            files.atomic_path(Path(f"{output}.card.json")) as json_file,
            files.atomic_path(output) as model_file,
        ):
            model_file.write_bytes(content)
            probabilities = load(model_file)(dataset.test[0])
            card = _make_card(output.name, options.format, trained, dataset, probabilities)
            json_file.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
            markdown_file.write_text(_format_card(card), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {error.filename or output}: {error.strerror}") from error
    print(f"{cli.escape_unprintable(str(options.output))}: {CHECKED.format(**card)}")
    return 0


def _make_card(
    name: str, kind: str, trained: "TrainedModel", dataset: "Dataset", probabilities: "np.ndarray"
) -> dict[str, object]:
    """The content of `FILE.card.json`.

    Raises a RuntimeError if a prediction of the file differs from the checkpoint's, or a
    probability differs by more than 1e-5.
    """
    from mnist_flax.export.formats import LAYOUT

    images, labels = dataset.test
    expected = trained.probabilities(images)
    predictions = probabilities.argmax(axis=-1)
    difference = float(abs(probabilities - expected).max())
    if not (difference <= 1e-5 and (predictions == expected.argmax(axis=-1)).all()):
        raise RuntimeError(f"probabilities differ from the checkpoint's by up to {difference:.1e}")
    return {
        "file": cli.escape_unprintable(name),
        "format": kind,
        "interface": LAYOUT if kind == "safetensors" else INTERFACE,
        "trained_on": trained.config.dataset,
        "seeds": trained.seeds,
        "step": trained.step,
        "parameters": trained.num_parameters,
        "purpose": PURPOSE,
        "limits": LIMITS,
        "mnist_flax": metadata.version("mnist-flax"),
        "config": dataclasses.asdict(trained.config),
        "accuracy": float((predictions == labels).mean()),
        "checked_on": {
            "dataset": dataset.name,
            "examples": len(labels),
            "largest_difference": difference,
        },
    }


def _format_card(card: dict[str, object]) -> str:
    """The card as Markdown."""
    import jinja2

    template = Path(__file__).with_name("model_card.md.jinja").read_text(encoding="utf-8")
    return jinja2.Template(
        template, undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    ).render(card)
