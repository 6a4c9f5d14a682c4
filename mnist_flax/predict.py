"""The command `python -m mnist_flax.predict`: reads digits from pictures."""

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from mnist_flax import command, workdir
from mnist_flax.command import OptionalPath, keep_compiled_programs, printable
from mnist_flax.config import UserError

if TYPE_CHECKING:
    from mnist_flax.trained import Trained

PROG = command.called("predict")

# Less sure than this, an answer is not to be relied on.
UNSURE = 0.8


@dataclasses.dataclass(frozen=True)
class Options:
    """Reads the digit in each picture: a photo, a scan, a drawing, or an image of MNIST."""

    images: tyro.conf.Positional[tuple[str, ...]] = ()
    """Pictures, folders of them, or patterns such as `'scans/*.png'`."""

    workdir: OptionalPath = None
    """The run's workdir. Required."""

    checkpoint: str = "latest"
    """Which checkpoint: `latest`, `best` (by the validation accuracy) or a step."""

    seed_index: int | None = None
    """Which of several networks. Default: all, answering together by their mean probability."""

    top_k: int = 3
    """How many digits to tell for each picture, the most probable first."""

    json: bool = False
    """Print a JSON object for each picture."""

    save_preprocessed: OptionalPath = None
    """A folder for what the network was given: a PNG of 28x28 for each picture."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code, which is 2 if any picture could not be read."""

    def action(argv: Sequence[str]) -> int:
        options = command.parse(Options, PROG, argv)
        _check(options)
        trained = _load(options)
        failed = 0
        for path in find_pictures(options.images):
            try:
                answer = predict_picture(trained, path, options.top_k, options.save_preprocessed)
            except UserError as error:
                print(f"error: {printable(str(error))}", file=sys.stderr)
                failed += 1
            else:
                told = json.dumps(answer) if options.json else printable(describe(answer))
                print(told, flush=True)
        return 2 if failed else 0

    return command.run_command(action, argv)


def predict_picture(
    trained: "Trained", path: Path, top_k: int = 3, save_to: Path | None = None
) -> dict[str, Any]:
    """What the networks read in a picture.

    Args:
      trained: the networks.
      path: of a file with a picture.
      top_k: how many digits to tell.
      save_to: a folder for what the networks were given; or None.

    Returns:
      `file`, `digit`, `probability`, `unsure`, and `top`: pairs of digit and probability.

    Raises:
      UserError: there is no picture in the file, or no digit in the picture.
    """
    from mnist_flax.preprocess import read_image, to_mnist

    picture = read_image(path)
    try:
        image = to_mnist(picture)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if save_to is not None:
        _save(image, save_to, path)
    chance = trained.probabilities(image[None])[0]
    order = chance.argsort()[::-1]
    return {
        "file": str(path),
        "digit": int(order[0]),
        "probability": float(chance[order[0]]),
        "unsure": bool(chance[order[0]] < UNSURE),
        "top": [[int(digit), float(chance[digit])] for digit in order[:top_k]],
    }


def find_pictures(names: Sequence[str]) -> Iterator[Path]:
    """The files that names of files, folders and patterns mean; a name of nothing as it is."""
    for name in names:
        path, found = Path(name), []
        # What cannot be looked for is told when it is read.
        with contextlib.suppress(OSError, RuntimeError, ValueError):
            path = path.expanduser()
            if path.is_dir():
                found = [x for x in path.iterdir() if x.is_file() and not x.name.startswith(".")]
            elif not path.exists():
                found = list(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
        yield from sorted(found) or [path]


def describe(answer: dict[str, Any]) -> str:
    """An answer for people, in one line."""
    others = ", ".join(f"{digit} {chance:.1%}" for digit, chance in answer["top"][1:])
    return (
        f"{answer['file']}: {answer['digit']}  {answer['probability']:.1%}"
        f"{'  unsure' if answer['unsure'] else ''}{f'  ({others})' if others else ''}"
    )


def _check(options: Options) -> None:
    command.trained_workdir(options.workdir)
    if not options.images:
        raise UserError("no pictures: name some, or a folder of them")
    if not 1 <= options.top_k <= 10:
        raise UserError(f"--top-k must be from 1 to 10, but is {options.top_k}")


def _load(options: Options) -> "Trained":
    from mnist_flax import load

    keep_compiled_programs()
    return load(command.trained_workdir(options.workdir), options.checkpoint, options.seed_index)


def _save(image: Any, folder: Path, path: Path) -> None:
    from PIL import Image

    try:
        # With its folders, for those of two may have the same names.
        here, there = Path.cwd(), Path(os.path.normpath(path.absolute()))
        name = there.relative_to(here if there.is_relative_to(here) else there.anchor)
        target = folder / f"{name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        with workdir.replacing(target) as file:
            Image.fromarray(image[..., 0]).save(file, "PNG")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main())
