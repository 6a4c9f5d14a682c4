"""Does the network classify handwriting that is not from MNIST?

python -m experiments.handwriting --workdir runs/exp1

Draws digits as people do: strokes of varied shape, thickness and color, anywhere on paper or
board, tilted by up to 15 degrees, with grain, shadow, blur and JPEG artifacts. No image of MNIST
is used for the drawings.
"""

import dataclasses
import io
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFilter
from scipy.interpolate import CubicSpline

from experiments.common.provenance import make_parser, provenance, store
from mnist_flax.engine.trained_model import load_trained
from mnist_flax.engine.workdir import read_summary
from mnist_flax.predict.preprocess import to_mnist

# The ways of writing each digit, as strokes, each a curve through points: x to the right, y down,
# in a box of 100 x 150.
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
"""


def draw(digit: int, rng: np.random.Generator) -> Image.Image:
    """A simulated photo of a handwritten digit."""
    width, height = (int(length) for length in rng.integers(160, 900, 2))
    size = rng.uniform(0.3, 0.8) * min(width, height / 1.5)
    pen = size * rng.uniform(0.05, 0.2)
    mask = _draw_strokes(digit, (width, height), size, pen, rng)
    light, dark = rng.uniform(0.75, 1, 3), rng.uniform(0, 0.35, 3)
    if rng.random() < 0.3:
        dark[rng.integers(3)] = rng.uniform(0.4, 0.8)  # a colored pen
    # On paper or, in one of three images, on a board.
    paper, ink = (dark, light) if rng.random() < 1 / 3 else (light, dark)
    pixels = _light_paper(paper, (height, width), rng)
    opacity = np.asarray(mask, np.float32)[..., np.newaxis] / 255 * rng.uniform(0.85, 1)
    pixels = pixels * (1 - opacity) + ink * opacity
    pixels = pixels + rng.normal(0, rng.uniform(0, 0.03), pixels.shape)
    image = Image.fromarray((pixels.clip(0, 1) * 255).astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, min(1.5, pen / 6))))
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=int(rng.integers(25, 95)))
    return Image.open(encoded)


def _draw_strokes(
    digit: int, canvas: tuple[int, int], size: float, pen: float, rng: np.random.Generator
) -> Image.Image:
    """The strokes, white on black, with the irregularities of a hand."""
    variants = [line[2:] for line in STROKES.splitlines() if line.startswith(str(digit))]
    strokes = variants[rng.integers(len(variants))].split(";")
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
    for stroke in strokes:
        points = np.array([point.split(",") for point in stroke.split()], float) / 100
        points += rng.normal(0, 0.025, points.shape)
        curve = CubicSpline(np.arange(len(points)), points)(np.linspace(0, len(points) - 1, 300))
        curve = (curve - (0.5, 0.75)) @ transform.T + offset
        pressure = 1 + 0.15 * np.sin(np.linspace(0, rng.uniform(1, 6), 300) + rng.uniform(0, 6))
        for (x, y), radius in zip(curve, pen / 2 * pressure, strict=True):
            pencil.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return image


def _light_paper(paper: np.ndarray, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
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


def main() -> None:
    """Draws, classifies, stores, and plots what was misclassified."""
    parser = make_parser(__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="of a trained run")
    parser.add_argument("--per-digit", type=int, default=50, help="drawings of each digit")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    trained = load_trained(options.workdir)
    summary = read_summary(options.workdir)
    rng = np.random.default_rng(options.seed)
    labels = np.repeat(np.arange(10), options.per_digit)
    drawings = [draw(int(label), rng) for label in labels]
    images = np.stack([to_mnist(drawing) for drawing in drawings])
    predictions = trained.predict(images)
    is_correct = predictions == labels
    result = {
        "config": dataclasses.asdict(trained.config),
        "environment": summary["environment"] if summary else None,
        "n": len(labels),
        "seed": options.seed,
        "accuracy": float(is_correct.mean()),
        "accuracy_by_digit": [float(is_correct[labels == digit].mean()) for digit in range(10)],
    }
    path = store("handwriting", provenance() | result, options.output)
    first_two = [i for digit in range(10) for i in np.flatnonzero(labels == digit)[:2]]
    shown = [*first_two, *np.flatnonzero(~is_correct)[:12]]
    rows = -(-len(shown) // 10)
    figure = Figure(figsize=(12, 2.7 * rows), dpi=110, layout="constrained")
    panels = figure.subplots(2 * rows, 10, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    # Each drawing, and below it the input of the network.
    for index, i in enumerate(shown):
        row, column = divmod(index, 10)
        upper, lower = panels[2 * row : 2 * row + 2, column]
        upper.imshow(drawings[i])
        color = "black" if is_correct[i] else "#D55E00"
        upper.set_title(f"{labels[i]}: predicted {predictions[i]}", color=color, fontsize=9)
        lower.imshow(images[i, ..., 0], cmap="gray", vmin=0, vmax=255)
    figure.savefig(options.output / "handwriting.png")
    print(f"accuracy {is_correct.mean():.2%} on {len(labels)} drawings; see {path}")


if __name__ == "__main__":
    main()
