"""The command `python -m mnist_flax.predict`: classifies the digits in image files."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import tyro

from mnist_flax.core.config import UserError
from mnist_flax.engine import cli, files
from mnist_flax.engine.cli import escape_unprintable
from mnist_flax.engine.options import RunOptions, parse_options
from mnist_flax.engine.workdir import CONFIG

if TYPE_CHECKING:
    import numpy as np

    from mnist_flax.engine.trained_model import TrainedModel

# The probability below which a prediction should not be relied on: of drawings, one digit in fifty
# that is read right is below, and most that are read wrong (`experiments/handwriting.py`).
LOW_CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(RunOptions):
    """Classifies the digit in each image: a photo, a scan, a drawing.

    Example: mnist-flax predict photo.jpg 'scans/*.png'
    """

    images: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="IMAGE...")] = ()
    """Image files, folders of them, or patterns such as `'scans/*.png'`."""
    top_k: int = 3
    """How many digits to list for each image, the most probable first."""
    json: bool = False
    """Print a JSON object for each image."""
    save_preprocessed: Path | None = None
    """A folder for the network's inputs: a PNG of 28x28 pixels for each image."""


class Prediction(TypedDict):
    """The digit in an image file, as `--json` prints it."""

    file: str
    digit: int
    probability: float
    low_confidence: bool
    """Whether the probability is below `LOW_CONFIDENCE`."""
    top: list[tuple[int, float]]
    """The most probable digits with their probabilities."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code, which is 2 if an image could not be read."""
    return cli.run_command(_predict_files, argv)


def _predict_files(argv: Sequence[str]) -> int:
    options = parse_options(Options, cli.program_name("predict"), argv)
    if not options.images:
        raise UserError("no images: name files, or a folder of them")
    if not 1 <= options.top_k <= 10:
        raise UserError(f"--top-k must be from 1 to 10, but is {options.top_k}")
    paths = list(find_images(options.images))
    from mnist_flax.engine.trained_model import load_selected

    cli.initialize_jax()
    trained = load_selected(options)
    if not trained.reads_digits:
        raise UserError(
            f"predict converts pictures of digits, but {options.workdir} was trained on "
            f"{trained.config.dataset}; in Python, `load(workdir).predict` takes 28x28 images"
        )
    exit_code = 0
    for path in paths:
        try:
            prediction = predict_file(trained, path, options.top_k, options.save_preprocessed)
        except UserError as error:
            cli.print_status(f"error: {escape_unprintable(str(error))}")
            exit_code = error.exit_code
        else:
            line = json.dumps(prediction) if options.json else format_prediction(prediction)
            print(line, flush=True)
    return exit_code


def predict_file(
    trained: "TrainedModel", path: Path, top_k: int = 3, save_to: Path | None = None
) -> Prediction:
    """Classifies the digit in an image file; saves the network's input in the folder `save_to`.

    Raises a UserError if the file holds no image, or no digit, or `save_to` is not writable.
    """
    from mnist_flax.predict.preprocess import read_image, to_mnist

    image = read_image(path)
    try:
        digit_image = to_mnist(image)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if save_to is not None:
        _save_preprocessed(digit_image, save_to, path)
    probabilities = trained.probabilities(digit_image[None])[0]
    ranking = [(int(k), float(probabilities[k])) for k in probabilities.argsort()[::-1]]
    digit, probability = ranking[0]
    return {
        "file": str(path),
        "digit": digit,
        "probability": probability,
        "low_confidence": probability < LOW_CONFIDENCE,
        "top": ranking[:top_k],
    }


def find_images(names: Sequence[str]) -> Iterator[Path]:
    """The files that names, folders and patterns stand for; a name without a match is kept.

    Raises a UserError for the workdir of a run, and for an empty name.
    """
    if "" in names:  # which would be the current folder
        raise UserError("the name of an image is empty")
    for name in names:
        path, matches = Path(name), []
        with contextlib.suppress(OSError, RuntimeError, ValueError):
            path = path.expanduser()
            if (path / CONFIG).is_file():
                raise UserError(
                    f"{name} is a run, not an image (perhaps you meant --workdir {name}?)"
                )
            if path.is_dir():
                matches = list(path.iterdir())
            elif not path.exists():
                matches = list(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
            matches = [x for x in matches if x.is_file() and not x.name.startswith(".")]
        yield from sorted(matches) or [path]


def format_prediction(prediction: Prediction) -> str:
    """A prediction as one line of text."""
    file, digit = escape_unprintable(prediction["file"]), prediction["digit"]
    warning = "  low confidence" if prediction["low_confidence"] else ""
    others = ", ".join(f"{digit} {probability:.1%}" for digit, probability in prediction["top"][1:])
    return f"{file}: {digit}  {prediction['probability']:.1%}{warning}{others and f'  ({others})'}"


def _save_preprocessed(image: "np.ndarray", folder: Path, source: Path) -> None:
    """Saves a PNG at the path of its source inside `folder`, as names alone may be equal."""
    from PIL import Image

    try:
        cwd, absolute = Path.cwd(), Path(os.path.normpath(source.absolute()))
        relative = absolute.relative_to(cwd if absolute.is_relative_to(cwd) else absolute.anchor)
        target = folder / f"{relative}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        with files.atomic_path(target) as temporary:
            Image.fromarray(image[..., 0]).save(temporary, "PNG")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from error
