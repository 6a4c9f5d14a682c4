"""Does the network classify handwriting that is not from MNIST, and how sure is it of what is none?

python -m experiments.handwriting --workdir runs/exp1

Draws digits as people do: strokes of varied shape, thickness and color, anywhere on paper or
board, tilted by up to 15 degrees, with grain, shadow, blur and JPEG artifacts; then digits whose
strokes have gaps, as of a pen that skips; and what is no digit: letters, scribbles, dots, two
digits, blank paper. No image of MNIST is used for the drawings.
"""

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFilter
from scipy.interpolate import CubicSpline

from experiments.common.provenance import make_parser, provenance, store
from mnist_flax.core.config import IMAGE_SHAPE, UserError
from mnist_flax.engine.trained_model import TrainedModel, load_trained
from mnist_flax.engine.workdir import read_summary
from mnist_flax.predict.preprocess import to_mnist

# The ways of writing each digit, and letters that resemble none, as strokes, each a curve through
# points: x to the right, y down, in a box of 100 x 150.
STROKES = """\
0: 50,0 10,35 5,90 40,150 85,110 90,45 50,0
0: 60,5 20,20 0,80 30,145 80,130 100,70 55,0
1: 50,0 50,75 50,150
1: 20,35 40,20 55,0; 55,0 55,70 55,150
2: 10,35 35,2 80,10 85,50 45,100 5,148; 5,148 50,147 95,146
2: 10,30 50,0 90,30 60,90 15,140 25,120 55,140 100,140
3: 10,15 50,0 85,30 60,65 40,70; 40,70 80,80 90,115 55,150 5,135
3: 10,5 50,3 90,3; 90,3 65,35 45,60; 45,60 85,75 90,120 50,150 5,130
4: 35,0 20,45 5,90; 5,90 50,90 95,88; 70,30 68,90 66,150
4: 65,0 35,45 0,95; 0,95 50,97 100,95; 66,0 66,75 66,150
5: 85,2 50,2 20,4; 20,4 17,35 13,62; 13,62 50,50 88,85 70,135 35,150 5,135
5: 20,0 15,30 12,60; 12,60 60,55 90,100 55,148 5,140; 22,2 55,4 95,0
6: 75,0 35,35 8,95 30,148 80,135 85,95 50,75 12,100
6: 60,0 25,50 10,110 45,150 85,120 60,85 20,105
7: 5,5 50,4 92,3; 92,3 65,70 40,150
7: 5,10 50,6 95,5; 95,5 65,70 45,150; 35,78 60,76 90,75
8: 80,20 45,0 15,30 50,70 88,110 50,150 10,115 50,70 85,35 75,12
8: 50,0 17,35 50,68 83,35 50,0; 50,68 7,110 50,150 93,110 50,68
9: 85,35 50,0 12,35 40,75 85,35; 85,35 82,90 75,150
9: 85,30 45,2 10,40 45,72 86,30; 86,30 85,100 55,148 15,135
A: 5,150 28,75 50,0; 50,0 72,75 95,150; 22,95 50,95 78,95
E: 90,0 50,1 10,2; 10,2 10,75 10,148; 10,75 45,74 80,73; 10,148 50,149 90,148
H: 10,0 10,75 10,150; 90,0 90,75 90,150; 10,75 50,75 90,75
K: 15,0 15,75 15,150; 88,0 55,40 18,78; 18,78 55,112 90,150
M: 5,150 8,75 12,0; 12,0 30,45 50,90; 50,90 70,45 88,0; 88,0 92,75 95,150
N: 10,150 10,75 10,0; 10,0 50,75 90,150; 90,150 90,75 90,0
R: 12,150 12,75 12,0; 12,0 70,5 85,35 60,70 14,75; 50,75 70,112 90,150
W: 2,0 15,75 28,150; 28,150 40,90 50,40; 50,40 60,90 72,150; 72,150 85,75 98,0
X: 10,0 50,75 90,150; 90,0 50,75 10,150
"""
LETTERS = "AEHKMNRWX"
NO_DIGITS = ("letter", "scribble", "two digits", "dot", "blank")
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


def draw(character: str | int, rng: np.random.Generator, gaps: int = 0) -> Image.Image:
    """A simulated photo of a handwritten digit or letter, whose strokes have some gaps."""
    variants = [line[2:] for line in STROKES.splitlines() if line.startswith(f"{character}:")]
    return draw_strokes([variants[rng.integers(len(variants))]], rng, gaps)


def draw_strokes(characters: Sequence[str], rng: np.random.Generator, gaps: int = 0) -> Image.Image:
    """A simulated photo of characters side by side, each given by its strokes."""
    width, height = (int(length) for length in rng.integers(160, 900, 2))
    size = rng.uniform(0.3, 0.8) * min(width / len(characters), height / 1.5)
    pen = size * rng.uniform(0.05, 0.2)
    cell = (width // len(characters), height)
    masks = [_draw_character(strokes, cell, size, pen, rng, gaps) for strokes in characters]
    mask = np.concatenate(masks, axis=1)
    light, dark = rng.uniform(0.75, 1, 3), rng.uniform(0, 0.35, 3)
    if rng.random() < 0.3:
        dark[rng.integers(3)] = rng.uniform(0.4, 0.8)  # a colored pen
    # On paper or, in one of three images, on a board.
    paper, ink = (dark, light) if rng.random() < 1 / 3 else (light, dark)
    pixels = _light_paper(paper, mask.shape, rng)
    opacity = mask[..., np.newaxis] / np.float32(255) * rng.uniform(0.85, 1)
    pixels = pixels * (1 - opacity) + ink * opacity
    pixels = pixels + rng.normal(0, rng.uniform(0, 0.03), pixels.shape)
    image = Image.fromarray((pixels.clip(0, 1) * 255).astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, min(1.5, pen / 6))))
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=int(rng.integers(25, 95)))
    return Image.open(encoded)


def _draw_character(
    strokes: str,
    canvas: tuple[int, int],
    size: float,
    pen: float,
    rng: np.random.Generator,
    gaps: int,
) -> np.ndarray:
    """The strokes, white on black, with the irregularities of a hand: uint8 [height, width]."""
    curves = strokes.split(";") if strokes else []
    angle = np.radians(rng.uniform(-15, 15))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    slant = np.array([[1, rng.uniform(-0.2, 0.1)], [0, 1]])
    stretch = np.diag([rng.uniform(0.75, 1.1), rng.uniform(0.85, 1.1)])
    transform = size * rotation @ slant @ stretch
    corners = transform @ np.array([[-0.5, 0.5, -0.5, 0.5], [-0.75, -0.75, 0.75, 0.75]])
    room = np.array(canvas) - np.ptp(corners, axis=1) - 2 * pen
    offset = pen - corners.min(axis=1) + rng.uniform(0, 1, 2) * room.clip(0)
    image = Image.new("L", canvas)
    pencil = ImageDraw.Draw(image)
    interrupted = rng.integers(len(curves), size=gaps) if gaps else np.empty(0, int)
    for index, stroke in enumerate(curves):
        points = np.array([point.split(",") for point in stroke.split()], float) / 100
        points += rng.normal(0, 0.025, points.shape)
        curve = CubicSpline(np.arange(len(points)), points)(np.linspace(0, len(points) - 1, 300))
        curve = (curve - (0.5, 0.75)) @ transform.T + offset
        pressure = 1 + 0.15 * np.sin(np.linspace(0, rng.uniform(1, 6), 300) + rng.uniform(0, 6))
        is_drawn = np.ones(len(curve), bool)
        along = np.cumsum(np.linalg.norm(np.diff(curve, axis=0, prepend=curve[:1]), axis=1))
        count = np.count_nonzero(interrupted == index)
        for place in (np.arange(count) + rng.uniform(0.3, 0.7, count)) / max(count, 1):
            # Between the ends of the pen's marks: a few percent of the character's height.
            length = pen + size * rng.uniform(0.05, 0.15)
            is_drawn &= np.abs(along - along[-1] * place) > length / 2
        for (x, y), radius in zip(curve[is_drawn], (pen / 2 * pressure)[is_drawn], strict=True):
            pencil.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return np.asarray(image)


def draw_no_digit(kind: str, rng: np.random.Generator) -> Image.Image:
    """A simulated photo of something that is no digit, of a kind in `NO_DIGITS`."""
    digits = [line[2:] for line in STROKES.splitlines() if line[0].isdecimal()]
    if kind == "letter":
        return draw(LETTERS[rng.integers(len(LETTERS))], rng)
    if kind == "two digits":
        return draw_strokes([digits[i] for i in rng.integers(len(digits), size=2)], rng)
    if kind == "scribble":
        points = rng.uniform((0, 0), (100, 150), (12, 2))
        return draw_strokes([" ".join(f"{x:.0f},{y:.0f}" for x, y in points)], rng)
    if kind == "dot":
        x, y = rng.uniform((0, 0), (100, 150))
        return draw_strokes([f"{x:.0f},{y:.0f} {x:.0f},{y:.0f}"], rng)
    return draw_strokes([""], rng)  # blank


def _light_paper(paper: np.ndarray, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Paper under a light that fades to one side, with grain, and in some images with squares."""
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]] / max(shape)
    direction = rng.uniform(0, 2 * np.pi)
    light = 1 - rng.uniform(0, 0.5) * (np.cos(direction) * x + np.sin(direction) * y).clip(0)
    coarse = rng.normal(0, 1, (shape[0] // 4 + 1, shape[1] // 4 + 1)).astype(np.float32)
    grain = Image.fromarray(coarse).resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    light = light * (1 + rng.uniform(0, 0.03) * np.asarray(grain))
    if rng.random() < 0.25:
        step = int(rng.integers(20, 60))
        light[::step] *= 0.93
        light[:, ::step] *= 0.93
    return paper * light[..., np.newaxis]


def classify(
    trained: TrainedModel, drawings: Sequence[Image.Image]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Digits and probabilities, -1 and 0 where no digit is found, and the network's inputs."""
    images = np.zeros((len(drawings), *IMAGE_SHAPE), np.uint8)
    is_found = np.ones(len(drawings), bool)
    for index, drawing in enumerate(drawings):
        try:
            images[index] = to_mnist(drawing)
        except UserError:
            is_found[index] = False
    probabilities = trained.probabilities(images)
    digits = np.where(is_found, probabilities.argmax(axis=-1), -1)
    return digits, np.where(is_found, probabilities.max(axis=-1), 0), images


def measure_confidence(
    digits: tuple[np.ndarray, np.ndarray], others: dict[str, np.ndarray]
) -> list[dict[str, Any]]:
    """For each threshold, the share of each group whose probability is below it.

    `digits` are the probabilities of the correct predictions, and of the others.
    """
    groups = {"correct": digits[0], "misclassified": digits[1], **others}
    groups = {name: values for name, values in groups.items() if len(values)}
    return [
        {"threshold": threshold}
        | {name: float((values < threshold).mean()) for name, values in groups.items()}
        for threshold in THRESHOLDS
    ]


def main() -> None:
    """Draws, classifies, stores, and plots what was misclassified."""
    parser = make_parser(__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="of a trained run")
    parser.add_argument("--per-digit", type=int, default=50, help="drawings of each digit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="handwriting", help="of the files with the results")
    options = parser.parse_args()
    trained = load_trained(options.workdir)
    summary = read_summary(options.workdir)
    labels = np.repeat(np.arange(10), options.per_digit)

    def draw_digits(gaps: int) -> list[Image.Image]:
        rng = np.random.default_rng((options.seed, gaps))
        return [draw(int(label), rng, gaps) for label in labels]

    drawings = draw_digits(0)
    predictions, confidence, images = classify(trained, drawings)
    is_correct = predictions == labels
    result = {
        "config": dataclasses.asdict(trained.config),
        "environment": summary["environment"] if summary else None,
        "n": len(labels),
        "seed": options.seed,
        "accuracy": float(is_correct.mean()),
        "accuracy_by_digit": [float(is_correct[labels == k].mean()) for k in range(10)],
        "accuracy_with_gaps": {},
    }
    for gaps in (1, 2, 3, 4):
        with_gaps = classify(trained, draw_digits(gaps))[0] == labels
        result["accuracy_with_gaps"][gaps] = float(with_gaps.mean())
    others = {}
    for kind in NO_DIGITS:
        rng = np.random.default_rng((options.seed, 10, NO_DIGITS.index(kind)))
        shapes = [draw_no_digit(kind, rng) for _ in range(4 * options.per_digit)]
        others[kind] = classify(trained, shapes)[1]
    result["refused"] = {kind: float((values == 0).mean()) for kind, values in others.items()}
    digits = confidence[is_correct], confidence[~is_correct]
    result["below_threshold"] = measure_confidence(digits, others)
    path = store(options.name, provenance() | result, options.output)
    _plot(drawings, images, labels, predictions).savefig(options.output / f"{options.name}.png")
    print(f"accuracy {is_correct.mean():.2%} on {len(labels)} drawings; see {path}")


def _plot(
    drawings: Sequence[Image.Image],
    images: np.ndarray,
    labels: np.ndarray,
    predictions: np.ndarray,
) -> Figure:
    """Two drawings of each digit and the mistakes; below each, the input of the network."""
    first_two = [i for digit in range(10) for i in np.flatnonzero(labels == digit)[:2]]
    shown = [*first_two, *np.flatnonzero(predictions != labels)[:12]]
    rows = -(-len(shown) // 10)
    figure = Figure(figsize=(12, 2.7 * rows), dpi=110, layout="constrained")
    panels = figure.subplots(2 * rows, 10, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for index, i in enumerate(shown):
        row, column = divmod(index, 10)
        upper, lower = panels[2 * row : 2 * row + 2, column]
        upper.imshow(drawings[i])
        color = "black" if predictions[i] == labels[i] else "#D55E00"
        upper.set_title(f"{labels[i]}: predicted {predictions[i]}", color=color, fontsize=9)
        lower.imshow(images[i, ..., 0], cmap="gray", vmin=0, vmax=255)
    return figure


if __name__ == "__main__":
    main()
