"""Does the network classify handwriting that is not from MNIST?

python -m experiments.handwriting --workdir runs/exp1

Draws digits as people do: strokes of varied shape, thickness and color, anywhere on paper or
board, tilted by up to 15 degrees, with grain, shadow, blur and JPEG artifacts. No image of MNIST
is used for the drawings.
"""

import dataclasses
import io
from collections.abc import Sequence
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
# in a box of 1 x 1.5.
STROKES: dict[int, list[list[list[tuple[float, float]]]]] = {
    0: [[[(0.5, 0), (0.1, 0.35), (0.05, 0.9), (0.4, 1.5), (0.85, 1.1), (0.9, 0.45), (0.5, 0)]],
        [[(0.6, 0.05), (0.2, 0.2), (0.0, 0.8), (0.3, 1.45), (0.8, 1.3), (1.0, 0.7), (0.55, 0)]]],
    1: [[[(0.5, 0), (0.5, 0.75), (0.5, 1.5)]],
        [[(0.2, 0.35), (0.4, 0.2), (0.55, 0)], [(0.55, 0), (0.55, 0.7), (0.55, 1.5)]]],
    2: [[[(0.1, 0.35), (0.35, 0.02), (0.8, 0.1), (0.85, 0.5), (0.45, 1.0), (0.05, 1.48)],
         [(0.05, 1.48), (0.5, 1.47), (0.95, 1.46)]],
        [[(0.1, 0.3), (0.5, 0), (0.9, 0.3), (0.6, 0.9), (0.15, 1.4), (0.25, 1.2), (0.55, 1.4),
          (1.0, 1.4)]]],
    3: [[[(0.1, 0.15), (0.5, 0), (0.85, 0.3), (0.6, 0.65), (0.4, 0.7)],
         [(0.4, 0.7), (0.8, 0.8), (0.9, 1.15), (0.55, 1.5), (0.05, 1.35)]],
        [[(0.1, 0.05), (0.5, 0.03), (0.9, 0.03)], [(0.9, 0.03), (0.65, 0.35), (0.45, 0.6)],
         [(0.45, 0.6), (0.85, 0.75), (0.9, 1.2), (0.5, 1.5), (0.05, 1.3)]]],
    4: [[[(0.35, 0), (0.2, 0.45), (0.05, 0.9)], [(0.05, 0.9), (0.5, 0.9), (0.95, 0.88)],
         [(0.7, 0.3), (0.68, 0.9), (0.66, 1.5)]],
        [[(0.65, 0), (0.35, 0.45), (0.0, 0.95)], [(0.0, 0.95), (0.5, 0.97), (1.0, 0.95)],
         [(0.66, 0), (0.66, 0.75), (0.66, 1.5)]]],
    5: [[[(0.85, 0.02), (0.5, 0.02), (0.2, 0.04)], [(0.2, 0.04), (0.17, 0.35), (0.13, 0.62)],
         [(0.13, 0.62), (0.5, 0.5), (0.88, 0.85), (0.7, 1.35), (0.35, 1.5), (0.05, 1.35)]],
        [[(0.2, 0), (0.15, 0.3), (0.12, 0.6)],
         [(0.12, 0.6), (0.6, 0.55), (0.9, 1.0), (0.55, 1.48), (0.05, 1.4)],
         [(0.22, 0.02), (0.55, 0.04), (0.95, 0.0)]]],
    6: [[[(0.75, 0), (0.35, 0.35), (0.08, 0.95), (0.3, 1.48), (0.8, 1.35), (0.85, 0.95),
          (0.5, 0.75), (0.12, 1.0)]],
        [[(0.6, 0), (0.25, 0.5), (0.1, 1.1), (0.45, 1.5), (0.85, 1.2), (0.6, 0.85), (0.2, 1.05)]]],
    7: [[[(0.05, 0.05), (0.5, 0.04), (0.92, 0.03)], [(0.92, 0.03), (0.65, 0.7), (0.4, 1.5)]],
        [[(0.05, 0.1), (0.5, 0.06), (0.95, 0.05)], [(0.95, 0.05), (0.65, 0.7), (0.45, 1.5)],
         [(0.35, 0.78), (0.6, 0.76), (0.9, 0.75)]]],
    8: [[[(0.8, 0.2), (0.45, 0), (0.15, 0.3), (0.5, 0.7), (0.88, 1.1), (0.5, 1.5), (0.1, 1.15),
          (0.5, 0.7), (0.85, 0.35), (0.75, 0.12)]],
        [[(0.5, 0), (0.17, 0.35), (0.5, 0.68), (0.83, 0.35), (0.5, 0)],
         [(0.5, 0.68), (0.07, 1.1), (0.5, 1.5), (0.93, 1.1), (0.5, 0.68)]]],
    9: [[[(0.85, 0.35), (0.5, 0), (0.12, 0.35), (0.4, 0.75), (0.85, 0.35)],
         [(0.85, 0.35), (0.82, 0.9), (0.75, 1.5)]],
        [[(0.85, 0.3), (0.45, 0.02), (0.1, 0.4), (0.45, 0.72), (0.86, 0.3)],
         [(0.86, 0.3), (0.85, 1.0), (0.55, 1.48), (0.15, 1.35)]]],
}  # fmt: skip


def draw(digit: int, rng: np.random.Generator) -> Image.Image:
    """A simulated photo of a handwritten digit."""
    width, height = (int(length) for length in rng.integers(160, 900, 2))
    size = rng.uniform(0.3, 0.8) * min(width, height / 1.5)
    pen = size * rng.uniform(0.05, 0.2)
    mask = _draw_strokes(digit, (width, height), size, pen, rng)
    paper, ink = _random_colors(rng)
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
    variants = STROKES[digit]
    strokes = variants[rng.integers(len(variants))]
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
        points = np.array(stroke) + rng.normal(0, 0.025, (len(stroke), 2))
        curve = CubicSpline(np.arange(len(points)), points)(np.linspace(0, len(points) - 1, 300))
        curve = (curve - (0.5, 0.75)) @ transform.T + offset
        pressure = 1 + 0.15 * np.sin(np.linspace(0, rng.uniform(1, 6), 300) + rng.uniform(0, 6))
        for (x, y), radius in zip(curve, pen / 2 * pressure, strict=True):
            pencil.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return image


def _random_colors(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The colors of paper and ink: dark on light or, in one of three images, light on dark."""
    light, dark = rng.uniform(0.75, 1, 3), rng.uniform(0, 0.35, 3)
    if rng.random() < 0.3:
        dark[rng.integers(3)] = rng.uniform(0.4, 0.8)  # a colored pen
    return (dark, light) if rng.random() < 1 / 3 else (light, dark)


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
    titles = [f"{labels[i]}: predicted {predictions[i]}" for i in shown]
    colors = ["black" if is_correct[i] else "#D55E00" for i in shown]
    figure = _plot([drawings[i] for i in shown], images[shown], titles, colors)
    figure.savefig(options.output / "handwriting.png")
    print(f"accuracy {is_correct.mean():.2%} on {len(labels)} drawings; see {path}")


def _plot(
    drawings: Sequence[Image.Image],
    images: np.ndarray,
    titles: Sequence[str],
    colors: Sequence[str],
) -> Figure:
    """Each drawing, and below it the input of the network."""
    columns = 10
    rows = -(-len(drawings) // columns)
    figure = Figure(figsize=(12, 2.7 * rows), dpi=110, layout="constrained")
    panels = figure.subplots(2 * rows, columns, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for index, drawing in enumerate(drawings):
        row, column = divmod(index, columns)
        upper, lower = panels[2 * row : 2 * row + 2, column]
        upper.imshow(drawing)
        upper.set_title(titles[index], color=colors[index], fontsize=9)
        lower.imshow(images[index, ..., 0], cmap="gray", vmin=0, vmax=255)
    return figure


if __name__ == "__main__":
    main()
