"""Small pictures for the pages and for TensorBoard, by numpy and Pillow."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mnist_flax.evaluate.metrics import Misclassified

# matplotlib's viridis, at equal distances.
VIRIDIS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
POSITIVE, NEGATIVE = (217, 95, 2), (117, 112, 205)
WHITE, GRAY, BLACK = (255, 255, 255), (110, 110, 110), (0, 0, 0)

MAX_FILTERS = 256  # that are shown


def to_data_url(pixels: np.ndarray) -> str:
    """A PNG inside its address: uint8 [height, width] with 1, 2 (alpha), 3 or 4 channels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def ink(image: np.ndarray) -> np.ndarray:
    """Black ink on nothing, so that a page can have any background: [h, w] to uint8 [h, w, 2]."""
    alpha = np.asarray(image).round().astype(np.uint8)
    return np.stack([np.zeros_like(alpha), alpha], axis=-1)


def heat(values: np.ndarray, highest: float) -> np.ndarray:
    """From dark blue to yellow, and nothing where the value is 0: [h, w] to uint8 [h, w, 4]."""
    positions = np.clip(values / max(highest, 1e-30), 0, 1) * (len(VIRIDIS) - 1)
    channels = [np.interp(positions, range(len(VIRIDIS)), x) for x in zip(*VIRIDIS, strict=True)]
    alpha = np.where(values == 0, 0, 255)
    return np.stack([*channels, alpha], axis=-1).round().astype(np.uint8)


def signed(values: np.ndarray) -> np.ndarray:
    """Orange where positive, violet where negative, and stronger if larger: uint8 [..., 4].

    The square root keeps small values visible.
    """
    colors = np.where(values[..., None] > 0, POSITIVE, NEGATIVE)
    alpha = 255 * np.sqrt(np.abs(values) / max(np.abs(values).max(), 1e-30))
    return np.concatenate([colors, alpha[..., None]], axis=-1).round().astype(np.uint8)


def tile(images: np.ndarray, columns: int, gap: int = 1) -> np.ndarray:
    """One image of many [N, height, width, channels], row by row, with zeros between them."""
    padded = np.pad(images, ((0, -len(images) % columns), (0, gap), (0, gap), (0, 0)))
    count, height, width, channels = padded.shape
    grid = padded.reshape(count // columns, columns, height, width, channels).swapaxes(1, 2)
    return grid.reshape(-1, columns * width, channels)[: -gap or None, : -gap or None]


def filters(kernel: np.ndarray) -> np.ndarray:
    """The filters of the first layer, float32 [3, 3, 1, channels], as uint8 [h, w, 4]."""
    images = signed(kernel[:, :, 0].transpose(2, 0, 1))[:MAX_FILTERS]
    return tile(images, columns=16)


def filters_on_white(kernel: np.ndarray) -> np.ndarray:
    """The same, larger: RGB."""
    return _enlarge(_on_white(filters(kernel)), 12)


def saliency(maps: np.ndarray, mean_images: np.ndarray) -> np.ndarray:
    """The mean image of each class above its saliency map, float [10, 28, 28] both: RGB."""
    highest = float(np.quantile(maps, 0.999))
    above = np.stack([_on_white(ink(image)) for image in mean_images])
    below = np.stack([_on_white(heat(values, highest)) for values in maps])
    return _enlarge(tile(np.concatenate([above, below]), columns=len(maps)), 4)


def confusion(matrix: Sequence[Sequence[int]]) -> np.ndarray:
    """The confusion matrix, with the wrong predictions in orange: RGB."""
    counts, cell = np.array(matrix), 48
    worst = max(1, int((counts - np.diag(counts.diagonal())).max()))
    size = (len(counts) + 1) * cell
    image = Image.new("RGB", (size, size), WHITE)
    draw = ImageDraw.Draw(image)
    for digit in range(len(counts)):
        middle = (digit + 1.5) * cell
        draw.text((middle, cell / 2), f"{digit}", GRAY, _font(16), anchor="mm")
        draw.text((cell / 2, middle), f"{digit}", GRAY, _font(16), anchor="mm")
    draw.text((cell / 2, cell / 2), "true\n\\ pred.", GRAY, _font(11), anchor="mm")
    for (row, column), count in np.ndenumerate(counts):
        if not count:
            continue
        x, y = (column + 1) * cell, (row + 1) * cell
        if row != column:
            share = 0.2 + 0.6 * count / worst
            color = tuple(round(255 + share * (channel - 255)) for channel in POSITIVE)
            draw.rectangle((x, y, x + cell - 2, y + cell - 2), color)
        text_color = GRAY if row == column else BLACK
        draw.text((x + cell / 2, y + cell / 2), f"{count:,}", text_color, _font(13), anchor="mm")
    return np.asarray(image)


def misclassified_grid(images: np.ndarray, rows: Sequence[Misclassified]) -> np.ndarray:
    """Misclassified images, uint8 [N, 28, 28, 1], with label, prediction, confidence: RGB."""
    columns, width, height = 10, 96, 124
    shape = (columns * width, -(-len(rows) // columns) * height)
    canvas = Image.new("RGB", shape, WHITE)
    draw = ImageDraw.Draw(canvas)
    for index, (image, row) in enumerate(zip(images, rows, strict=True)):
        x, y = index % columns * width, index // columns * height
        digit = Image.fromarray(255 - image[..., 0]).resize((84, 84), Image.Resampling.NEAREST)
        canvas.paste(digit, (x + 6, y + 34))
        text = f"{row['label']} as {row['prediction']}\n{row['confidence']:.2%}"
        draw.text((x + width / 2, y + 18), text, BLACK, _font(12), anchor="mm", align="center")
    return np.asarray(canvas)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _on_white(pixels: np.ndarray) -> np.ndarray:
    """An image with an alpha channel, LA or RGBA, as RGB on white."""
    alpha = pixels[..., -1:] / 255
    blended = pixels[..., :-1] * alpha + 255 * (1 - alpha)
    return np.broadcast_to(blended, (*pixels.shape[:-1], 3)).round().astype(np.uint8)


def _enlarge(pixels: np.ndarray, factor: int) -> np.ndarray:
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)
