"""Converts an image of a digit to MNIST's format, in the way in which MNIST was made.

A digit of MNIST fits a box of 20x20 pixels, in shades of gray, white on black, and its center of
mass is the center of the 28x28 image (http://yann.lecun.com/exdb/mnist). The background is
subtracted first, so that neither its shade nor the color of the ink matters.
"""

import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps
from scipy import ndimage
from skimage import filters, morphology

from mnist_flax.core.config import UserError

MAX_PIXELS = 60_000_000
# The common formats that Pillow decodes by itself; for EPS it would start another program.
FORMATS = (
    "PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "ICO", "TGA", "AVIF", "JPEG2000"
)  # fmt: skip
# Time and memory per pixel in these formats, relative to the others.
DECODING_COST = {"JPEG2000": 12, "AVIF": 4}

SIDE, BOX = 28, 20
# The longest side, in pixels, of the image in which the ink is segmented, and of the smaller one
# from which the background is estimated.
INK_SIDE, BACKGROUND_SIDE = 400, 32
# Ink must differ from the background by this share of white, and by this many standard
# deviations of the background.
MIN_CONTRAST, MIN_SIGNAL_TO_NOISE = 0.06, 5.0
# The least width of a stroke in pixels of the 20x20 box; thinner ones would fade.
MIN_STROKE = 2.2
# A piece belongs to the digit if it is no farther from it than this share of its longest side.
REACH = 0.25
# A digit is at least this share of the image's longest side long; and unless it is narrow, at most
# this share of its box is ink. Dots and blots are not (see `experiments/handwriting.py`).
MIN_LENGTH, MAX_FILL = 0.05, 0.7


def read_image(path: Path) -> Image.Image:
    """The image in a file, upright; of an animation, the first frame.

    Raises a UserError if there is no such file, or it holds no image, or one with too many pixels.
    """
    try:
        if path.exists() and not path.is_file():  # reading a pipe could block forever
            problem = "a folder without images" if path.is_dir() else "not a file"
            raise UserError(f"{path} is {problem}")
        with path.open("rb") as file:
            return decode_image(file, str(path))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def decode_image(file: BinaryIO, name: str) -> Image.Image:
    """The image in the content of a file; it and errors as in `read_image`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as image:
                limit = MAX_PIXELS // DECODING_COST.get(image.format or "", 1)
                if image.width * image.height > limit:
                    raise UserError(
                        f"{name} has {image.width:,} x {image.height:,} pixels, more than {limit:,}"
                    )
                return ImageOps.exif_transpose(image)
    except UserError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UserError(f"{name} has more than {MAX_PIXELS:,} pixels") from error
    except Exception as error:  # a decoder may raise anything for a damaged file
        if isinstance(error, OSError) and error.strerror:
            raise
        raise UserError(
            f"{name} is damaged, or not in a supported image format: {', '.join(FORMATS)}"
        ) from error


def to_mnist(image: Image.Image) -> np.ndarray:
    """The digit in an image, in MNIST's format: uint8 [28, 28, 1], white on black.

    An image that is in this format already, or its negative, keeps its pixels. Raises a UserError
    if nothing stands out from the background.
    """
    pixels = _to_rgb(image)
    if pixels.shape[:2] == (SIDE, SIDE):
        gray = np.asarray(image.convert("L"))
        if image.mode.startswith(("I", "F")):  # which `convert` would not scale
            gray = np.round(255 * pixels[..., 0]).astype(np.uint8)
        for candidate in (gray, 255 - gray):
            if _is_mnist(candidate):
                return candidate[..., np.newaxis]
    ink, mask = _segment_ink(_shrink(pixels, INK_SIDE))
    return _center_by_mass(_crop_to_box(_thicken_strokes(ink, mask)))[..., np.newaxis]


def _to_rgb(image: Image.Image) -> np.ndarray:
    """Float32 [height, width, 3] from 0 to 1, reduced; transparent pixels are background."""
    if image.mode.startswith(("I", "F")):
        scalar = image if image.mode in {"I", "F"} else image.convert("I")
        values = np.nan_to_num(np.asarray(_reduce(scalar), np.float32), posinf=0, neginf=0)
        values = values / max(np.abs(values).max(), np.float32(1e-6))  # or sums may overflow
        low, high = values.min(), values.max()
        values = (values - low) / max(high - low, np.float32(1e-6))
        return np.repeat(values[..., np.newaxis], 3, axis=-1)
    if not image.has_transparency_data:
        return np.asarray(_reduce(image.convert("RGB")), np.float32) / 255
    layers = np.asarray(_reduce(image.convert("RGBA")), np.float32) / 255
    color, alpha = layers[..., :3], layers[..., 3:]
    on_white = color * alpha + (1 - alpha)
    return on_white if np.ptp(on_white) > MIN_CONTRAST else color * alpha


def _reduce(image: Image.Image) -> Image.Image:
    """A large image at a fraction of its size, above `INK_SIDE`, to save memory."""
    return image.reduce(max(1, max(image.size) // (2 * INK_SIDE)))


def _is_mnist(gray: np.ndarray) -> bool:
    """Whether an image has the box and the center of mass that all 70,000 of MNIST have."""
    if gray.max() < 254:
        return False
    longest = max(np.ptp(rows_or_columns) for rows_or_columns in gray.nonzero()) + 1
    center = np.array(ndimage.center_of_mass(gray))
    return longest in (BOX - 1, BOX) and bool((np.abs(center - SIDE / 2) <= 0.6).all())


def _shrink(pixels: np.ndarray, longest: int) -> np.ndarray:
    """Scales down an image whose longest side exceeds `longest`."""
    height, width = pixels.shape[:2]
    factor = longest / max(height, width)
    if factor >= 1:
        return pixels
    return _resize(pixels, max(1, round(height * factor)), max(1, round(width * factor)))


def _resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resamples [height, width, ...] to another height and width: float32."""
    channels = np.moveaxis(np.atleast_3d(pixels).astype(np.float32), -1, 0)
    images = (Image.fromarray(channel) for channel in channels)
    resized = [np.asarray(x.resize((width, height), Image.Resampling.HAMMING)) for x in images]
    return np.stack(resized, axis=-1).reshape((height, width, *pixels.shape[2:]))


def _segment_ink(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The amount of ink in each pixel, from 0 to 1, and the mask of the digit's pixels."""
    height, width = pixels.shape[:2]
    small = _shrink(pixels, BACKGROUND_SIDE)
    # Larger than bold strokes, but smaller than shadows.
    window = 3 * max(small.shape[:2]) // 4 + 1
    background = ndimage.median_filter(small, size=(window, window, 1), mode="nearest")
    background = _resize(ndimage.gaussian_filter(background, (1, 1, 0)), height, width)
    contrast = np.sqrt(((pixels - background) ** 2).mean(axis=-1))
    contrast = ndimage.gaussian_filter(contrast, max(height, width) / 400)
    if np.ptp(contrast) < MIN_CONTRAST:
        raise UserError("no digit found: the image is blank")
    mask = contrast > filters.threshold_otsu(contrast)
    noise = contrast[~mask]
    signal = np.median(contrast[mask]) - noise.mean()
    if signal < max(MIN_CONTRAST, MIN_SIGNAL_TO_NOISE * noise.std()):
        raise UserError("no digit found: nothing stands out from the background")
    mask = _select_digit(mask)
    _refuse_dots(mask)
    signal = np.median(contrast[mask]) - noise.mean()
    ink = ((contrast - noise.mean()) / signal).clip(0, 1)
    return np.where(ndimage.binary_dilation(mask, iterations=2), ink, 0), mask


def _select_digit(mask: np.ndarray) -> np.ndarray:
    """The mask of the largest region and all that are close to it or to each other, without specks.

    Regions that lie along the border, as the edge of a page does, count only where there is hardly
    anything else.
    """
    labels = np.empty(mask.shape, np.int32)
    ndimage.label(mask, structure=np.ones((3, 3)), output=labels)
    boxes = [(y.start, x.start, y.stop, x.stop) for y, x in ndimage.find_objects(labels)]
    top, left, bottom, right = np.array(boxes).T
    areas = np.bincount(labels[mask])[1:]
    borders = (labels[0], labels[-1], labels[:, 0], labels[:, -1])
    at_border = np.max([np.bincount(x, minlength=len(boxes) + 1)[1:] for x in borders], axis=0)
    is_stroke = at_border < 0.25 * np.maximum(bottom - top, right - left)
    stroke_areas = np.where(is_stroke, areas, 0)
    main = (stroke_areas if stroke_areas.max() >= 0.05 * areas.max() else areas).argmax()
    is_piece = stroke_areas >= 0.03 * areas[main]
    is_kept = np.arange(len(areas)) == main
    for _ in areas:  # the box around what is kept grows until nothing more is near
        y0, x0 = top[is_kept].min(), left[is_kept].min()
        y1, x1 = bottom[is_kept].max(), right[is_kept].max()
        reach = REACH * max(y1 - y0, x1 - x0)
        is_near = (top < y1 + reach) & (bottom > y0 - reach)
        is_near &= (left < x1 + reach) & (right > x0 - reach)
        if not (is_near & is_piece & ~is_kept).any():
            break
        is_kept |= is_near & is_piece
    return np.append(False, is_kept)[labels]


def _refuse_dots(mask: np.ndarray) -> None:
    """Raises a UserError if the mask is too small for a digit, or as full as a dot."""
    height, width = (np.ptp(rows_or_columns) + 1 for rows_or_columns in mask.nonzero())
    if max(height, width) < MIN_LENGTH * max(mask.shape):
        raise UserError("no digit found: only a speck stands out from the background")
    is_narrow = min(height, width) < 0.6 * max(height, width)
    if not is_narrow and mask.sum() > MAX_FILL * height * width:
        raise UserError("no digit found: only a dot stands out from the background")


def _thicken_strokes(ink: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Widens strokes to at least `MIN_STROKE`."""
    longest = max(np.ptp(rows_or_columns) for rows_or_columns in mask.nonzero()) + 1
    depth = np.asarray(ndimage.distance_transform_edt(np.pad(mask, 1)))[1:-1, 1:-1]
    width = 2 * depth[morphology.skeletonize(mask)].mean()
    missing = (MIN_STROKE * longest / BOX - width) / 2
    if missing <= 0:
        return ink
    margin = int(missing) + 2
    ink, mask = np.pad(ink, margin), np.pad(mask, margin)
    distance = np.asarray(ndimage.distance_transform_edt(~mask))
    return np.maximum(ink, (missing + 0.5 - distance).clip(0, 1))


def _crop_to_box(ink: np.ndarray) -> np.ndarray:
    """Crops to the ink, and scales the longest side to 20 pixels: uint8."""
    rows, columns = (ink > 0.3).nonzero()
    cropped = ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    factor = BOX / max(cropped.shape)
    height, width = (max(1, round(length * factor)) for length in cropped.shape)
    scaled = _resize(cropped, height, width).clip(0, 1)
    return np.round(scaled / scaled.max() * 255).astype(np.uint8)


def _center_by_mass(digit: np.ndarray) -> np.ndarray:
    """Puts the center of mass in the center of a 28x28 image."""
    center = np.array(ndimage.center_of_mass(digit))
    limits = SIDE - np.array(digit.shape)
    before = np.clip(np.round(SIDE / 2 - center).astype(int), 0, limits)
    return np.pad(digit, np.stack((before, limits - before), axis=1))
