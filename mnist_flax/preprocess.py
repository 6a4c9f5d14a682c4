"""A picture of a digit, brought to MNIST's own format the way that MNIST was made.

MNIST's digits fill a box of 20x20 pixels, grey from the scaling down, white on black, their
centre of mass in the middle of 28x28 (http://yann.lecun.com/exdb/mnist). Here the paper is
subtracted first, so that neither its shade nor the colour of the ink matters.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from scipy import ndimage
from skimage import filters, measure, morphology

from mnist_flax.config import UserError

MAX_PIXELS = 60_000_000
# What people have, and Pillow reads by itself; for EPS it would start another program.
FORMATS = (
    *("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "ICO", "TGA", "AVIF"),
    "JPEG2000",
)
# How many times longer than the others they take for a pixel, and how much more memory.
SLOWER = {"JPEG2000": 12, "AVIF": 4}

SIDE, BOX = 28, 20
# The longest side in pixels at which the ink and at which the paper is looked at.
INK_SIDE, PAPER_SIDE = 400, 32
# Less contrast than this share of white, or than so many times the paper's own unevenness,
# is no ink.
LEAST_CONTRAST, LEAST_CLARITY = 0.06, 5.0
# Thinner strokes than these many of MNIST's pixels, which would fade, are drawn this thick.
STROKE = 2.2


def read_image(path: Path) -> Image.Image:
    """The picture in a file, upright, its first frame.

    Raises:
      UserError: there is no such file, or no picture in it, or a far too large one.
    """
    try:
        if path.exists() and not path.is_file():  # reading a pipe may take for ever
            found = "a folder in which no picture was found" if path.is_dir() else "not a file"
            raise UserError(f"{path} is {found}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                limit = MAX_PIXELS // SLOWER.get(image.format or "", 1)
                if image.width * image.height > limit:
                    raise UserError(
                        f"{path} has {image.width:,} x {image.height:,} pixels, more than {limit:,}"
                    )
                return ImageOps.exif_transpose(image)
    except UserError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UserError(f"{path} has more than {MAX_PIXELS:,} pixels") from error
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except Exception as error:  # a damaged file may raise anything, in any decoder
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"{path} cannot be read: {error.strerror}") from error
        raise UserError(
            f"{path} is damaged, or not a picture in a format that can be read: "
            f"{', '.join(FORMATS)}"
        ) from error


def to_mnist(image: Image.Image) -> np.ndarray:
    """The digit in a picture as MNIST has it: uint8 [28, 28, 1], white on black.

    An image of MNIST itself, also a black on white one, is only taken as it is.

    Raises:
      UserError: nothing in it stands out from the paper.
    """
    pixels = _pixels(image)
    if pixels.shape[:2] == (SIDE, SIDE):
        grey = np.asarray(image.convert("L")) if image.mode != "L" else np.asarray(image)
        for candidate in (grey, 255 - grey):
            if _is_mnist(candidate):
                return candidate[..., np.newaxis]
    ink, mask = _ink(_shrunk(pixels, INK_SIDE))
    return _centred(_boxed(_thickened(ink, mask)))[..., np.newaxis]


def _pixels(image: Image.Image) -> np.ndarray:
    """Float32 [height, width, 3] from 0 to 1, reduced; what is transparent is paper."""
    if image.mode.startswith(("I", "F")):
        plain = image if image.mode in {"I", "F"} else image.convert("I")
        values = np.asarray(_reduced(plain), np.float32)
        values = np.where(np.isfinite(values), values, 0)
        values = values / max(np.abs(values).max(), np.float32(1e-6))  # or sums may overflow
        low, high = values.min(), values.max()
        values = (values - low) / max(high - low, np.float32(1e-6))
        return np.repeat(values[..., np.newaxis], 3, axis=-1)
    if not image.has_transparency_data:
        return np.asarray(_reduced(image.convert("RGB")), np.float32) / 255
    layers = np.asarray(_reduced(image.convert("RGBA")), np.float32) / 255
    color, alpha = layers[..., :3], layers[..., 3:]
    on_white = color * alpha + (1 - alpha)
    return on_white if np.ptp(on_white) > LEAST_CONTRAST else color * alpha


def _reduced(image: Image.Image) -> Image.Image:
    """At a small part of its size, but larger than `INK_SIDE`, before it takes much memory."""
    return image.reduce(max(1, max(image.size) // (2 * INK_SIDE)))


def _is_mnist(grey: np.ndarray) -> bool:
    """Whether it has the box and the centre that all of MNIST's 70,000 images have."""
    if grey.max() < 254:
        return False
    rows, columns = (np.flatnonzero(grey.any(axis=axis)) for axis in (1, 0))
    longest = max(np.ptp(rows), np.ptp(columns)) + 1
    centre: Any = ndimage.center_of_mass(grey)
    return longest in (BOX - 1, BOX) and all(13.4 <= place <= 14.6 for place in centre)


def _shrunk(pixels: np.ndarray, longest: int) -> np.ndarray:
    """Scaled down, if need be, to a longest side."""
    height, width = pixels.shape[:2]
    factor = longest / max(height, width)
    if factor >= 1:
        return pixels
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return _resized(pixels, size)


def _resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Each channel of [height, width, ...] brought to a size of width and height."""
    channels = np.atleast_3d(pixels).astype(np.float32)
    scaled = [
        np.asarray(Image.fromarray(channels[..., index]).resize(size, Image.Resampling.HAMMING))
        for index in range(channels.shape[-1])
    ]
    return np.stack(scaled, axis=-1).reshape((size[1], size[0], *pixels.shape[2:]))


def _ink(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How much ink each pixel has, from 0 to 1, and which pixels belong to the digit."""
    height, width = pixels.shape[:2]
    small = _shrunk(pixels, PAPER_SIDE)
    window = max(small.shape[:2]) // 2 + 1
    paper = ndimage.median_filter(small, size=(window, window, 1), mode="nearest")
    paper = _resized(ndimage.gaussian_filter(paper, (1, 1, 0)), (width, height))
    apart = np.sqrt(((pixels - paper) ** 2).mean(axis=-1))
    apart = ndimage.gaussian_filter(apart, max(height, width) / 400)
    if np.ptp(apart) < LEAST_CONTRAST:
        raise UserError("no digit in it: it is blank")
    mask = apart > filters.threshold_otsu(apart)
    level, rest = np.median(apart[mask]), apart[~mask]
    if level - rest.mean() < max(LEAST_CONTRAST, LEAST_CLARITY * rest.std()):
        raise UserError("no digit in it: nothing stands out from the paper")
    mask = _digit(mask)
    level = np.median(apart[mask])
    near = ndimage.binary_dilation(mask, iterations=2)
    soft = ((apart - rest.mean()) / (level - rest.mean())).clip(0, 1)
    return np.where(near, soft, 0), mask


def _digit(mask: np.ndarray) -> np.ndarray:
    """The largest patch of ink and what lies close to it, without specks and far things."""
    labels: np.ndarray = measure.label(mask, connectivity=2)  # pyright: ignore
    patches = measure.regionprops(labels)
    inside = [patch for patch in patches if not _touches_border(patch, mask.shape)]
    largest = max(inside or patches, key=lambda patch: patch.area)
    if inside and largest.area < 0.05 * max(patch.area for patch in patches):
        largest = max(patches, key=lambda patch: patch.area)
    top, left, bottom, right = largest.bbox
    reach = 0.25 * max(bottom - top, right - left)
    kept = [
        patch.label
        for patch in patches
        if patch.area >= 0.03 * largest.area
        and patch.bbox[0] < bottom + reach
        and patch.bbox[2] > top - reach
        and patch.bbox[1] < right + reach
        and patch.bbox[3] > left - reach
        and (patch is largest or patch in inside)
    ]
    return np.isin(labels, kept)


def _touches_border(patch: Any, shape: tuple[int, ...]) -> bool:
    top, left, bottom, right = patch.bbox
    return top == 0 or left == 0 or bottom == shape[0] or right == shape[1]


def _thickened(ink: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Thin strokes as thick as MNIST's thin ones, so that scaling down leaves them visible."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    longest = max(np.ptp(rows), np.ptp(columns)) + 1
    inside = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]  # pyright: ignore
    width = 2 * inside[morphology.skeletonize(mask)].mean()
    missing = (STROKE * longest / BOX - width) / 2
    if missing <= 0:
        return ink
    margin = int(missing) + 2
    ink, mask = np.pad(ink, margin), np.pad(mask, margin)
    outside = ndimage.distance_transform_edt(~mask)
    return np.maximum(ink, (missing + 0.5 - outside).clip(0, 1))  # pyright: ignore


def _boxed(ink: np.ndarray) -> np.ndarray:
    """Cropped, and scaled so that its longest side is 20 pixels: uint8."""
    rows, columns = (np.flatnonzero((ink > 0.3).any(axis=axis)) for axis in (1, 0))
    cropped = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    factor = BOX / max(cropped.shape)
    height, width = (max(1, round(length * factor)) for length in cropped.shape)
    scaled = _resized(cropped, (width, height)).clip(0, 1)
    return np.round(scaled / scaled.max() * 255).astype(np.uint8)


def _centred(digit: np.ndarray) -> np.ndarray:
    """In the middle of 28x28, by its centre of mass."""
    centre: Any = ndimage.center_of_mass(digit)
    corner = [
        int(np.clip(round(SIDE / 2 - place), 0, SIDE - length))
        for place, length in zip(centre, digit.shape, strict=True)
    ]
    canvas = np.zeros((SIDE, SIDE), np.uint8)
    canvas[corner[0] : corner[0] + digit.shape[0], corner[1] : corner[1] + digit.shape[1]] = digit
    return canvas
