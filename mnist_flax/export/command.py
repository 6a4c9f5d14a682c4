"""The command `python -m mnist_flax.export`: a trained run as a file for other programs."""

import dataclasses
import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args

from mnist_flax.core.config import UserError
from mnist_flax.engine import cli, files
from mnist_flax.engine.cli import import_extra
from mnist_flax.engine.options import DataOptions, RunOptions, parse_options, require_option

if TYPE_CHECKING:
    import numpy as np

    from mnist_flax.data.dataset import Dataset
    from mnist_flax.engine.trained_model import TrainedModel
    from mnist_flax.export.formats import Format

FormatName = Literal["stablehlo", "onnx", "safetensors", "html"]
PACKAGES = {"onnx": ("onnx", "onnxruntime")}  # what a format needs of the extra `export`
INTERFACE = (
    "From images, uint8 [N, 28, 28, 1], as in the dataset that it was trained on (digits are white "
    "on black, 20 pixels high or wide, and centered), to probabilities, float32 [N, 10]"
)
PAGE = (
    "A web page that needs no other file and no network: draw a digit with mouse, pen or finger, "
    "and see the probabilities of the digits 0 to 9"
)
PURPOSE = "Classifying single images that look like the training data; teaching."
LIMITS = [
    "It predicts one of ten classes for every input: also for noise, letters and blank images.",
    "Noise, blur, rotation and low contrast reduce the accuracy (see `evaluate --corruptions`).",
    "Photos and drawings of digits must first be converted to MNIST's format, as `predict` does.",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(DataOptions, RunOptions):
    """Writes a trained network as a file for other programs.

    Example: mnist-flax export --output model.onnx
    """

    output: Path | None = None
    """The file to write. Required. The model card is written beside it."""
    format: FormatName | None = None
    """`stablehlo` for JAX and XLA, `onnx` for ONNX Runtime and others; both include the scaling
    of the images. `safetensors` holds the parameters alone. `html` is a web page to draw digits
    on, with the network inside. Default: the one that the suffix of the file names, else
    `stablehlo`."""


class Verification(TypedDict):
    """How far a file agrees with the checkpoint."""

    examples: int
    """How many test images it was run on, the first ones."""
    largest_difference: float


class Card(TypedDict):
    """The model card beside a file, as in `FILE.card.json`."""

    file: str
    format: str
    interface: str
    trained_on: str
    seeds: list[int]
    step: int
    parameters: int
    purpose: str
    limits: list[str]
    mnist_flax: str
    config: dict[str, Any]
    accuracy: float
    """Of the checkpoint, on all test images."""
    dataset: str
    """The one with the test images."""
    examples: int
    verified: Verification | None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return cli.run_command(_export, argv)


def _export(argv: Sequence[str]) -> int:
    options = parse_options(Options, cli.program_name("export"), argv)
    output = require_option(options.output, "--output is missing: the file to write").absolute()
    suffix = output.suffix[1:]
    format_name = options.format or (suffix if suffix in get_args(FormatName) else "stablehlo")
    for name in PACKAGES.get(format_name, ()):
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
        if not trained.reads_digits:
            raise
        cli.print_status(f"{error}; verifying on scikit-learn's digits instead")
        dataset = load_dataset("digits")
    kind = FORMATS[format_name]
    if kind.first_only and len(trained.seeds) > 1:
        trained = trained.select_seed(0)
        cli.print_status(f"the file holds the first network alone (seed {trained.seeds[0]})")
    content = kind.convert(trained)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        # The model comes last, so that there is none without its cards.
        with (
            files.atomic_path(output) as model_file,
            files.atomic_path(Path(f"{output}.card.md")) as markdown_file,
            files.atomic_path(Path(f"{output}.card.json")) as json_file,
        ):
            model_file.write_bytes(content)
            card = _make_card(output.name, format_name, trained, dataset, model_file)
            json_file.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
            markdown_file.write_text(_format_card(card), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {error.filename or output}: {error.strerror}") from error
    if card["verified"] is None:
        cli.print_status("the page was not verified: this machine has neither Node nor Chromium")
    print(f"{cli.escape_unprintable(str(options.output))}: {_format_result(card)}")
    return 0


def _make_card(
    name: str, kind: str, trained: "TrainedModel", dataset: "Dataset", path: Path
) -> "Card":
    """The content of `FILE.card.json`. Verifies the file; errors as in `_verify`."""
    from mnist_flax.export.formats import FORMATS, LAYOUT

    images, labels = dataset.test
    config = dataclasses.replace(trained.config, precision="float32")  # as in all formats
    probabilities = dataclasses.replace(trained, config=config).probabilities(images)
    return {
        "file": cli.escape_unprintable(name),
        "format": kind,
        "interface": {"safetensors": LAYOUT, "html": PAGE}.get(kind, INTERFACE),
        "trained_on": trained.config.dataset,
        "seeds": trained.seeds,
        "step": trained.step,
        "parameters": trained.num_parameters,
        "purpose": PURPOSE,
        "limits": LIMITS[:-1] if kind == "html" else LIMITS,
        "mnist_flax": metadata.version("mnist-flax"),
        "config": dataclasses.asdict(trained.config),
        "accuracy": float((probabilities.argmax(axis=-1) == labels).mean()),
        "dataset": dataset.name,
        "examples": len(labels),
        "verified": _verify(FORMATS[kind], path, images, probabilities),
    }


def _verify(
    kind: "Format", path: Path, images: "np.ndarray", expected: "np.ndarray"
) -> "Verification | None":
    """Runs the file on images; None if this machine has nothing that runs it.

    Raises a RuntimeError if a prediction differs from the checkpoint's, or a probability differs
    by more than the format's tolerance.
    """
    predict = kind.load(path)
    if predict is None:
        return None
    images, expected = images[: kind.max_images], expected[: kind.max_images]
    probabilities = predict(images)
    difference = float(abs(probabilities - expected).max())
    is_same = (probabilities.argmax(axis=-1) == expected.argmax(axis=-1)).all()
    if not (difference <= kind.tolerance and is_same):
        raise RuntimeError(f"probabilities differ from the checkpoint's by up to {difference:.1e}")
    return {"examples": len(images), "largest_difference": difference}


def _format_result(card: "Card") -> str:
    """The accuracy and the result of the verification, in one line."""
    text = "accuracy {accuracy:.2%} on {examples:,} {dataset} test images".format(**card)
    verified = card["verified"]
    if verified is None:
        return text
    text += f", probabilities within {verified['largest_difference']:.1e} of the checkpoint's"
    is_all = verified["examples"] == card["examples"]
    return text if is_all else f"{text} on {verified['examples']:,} of them"


def _format_card(card: "Card") -> str:
    """The card as Markdown."""
    import jinja2

    template = Path(__file__).with_name("model_card.md.jinja").read_text(encoding="utf-8")
    return jinja2.Template(
        template, undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    ).render(card)
