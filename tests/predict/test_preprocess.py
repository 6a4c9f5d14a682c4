"""Images of digits: file formats, damaged files, and the conversion to MNIST's format."""

import os
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps
from scipy import ndimage

from mnist_flax.core.config import UserError
from mnist_flax.predict import preprocess
from mnist_flax.predict.preprocess import read_image, to_mnist


def seven(size=(200, 160), paper: Any = 255, ink: Any = 0, mode="L", width=16, place=(0, 0)):
    """A seven in two strokes, off the center."""
    image = Image.new(mode, size, paper)
    points = [(x + place[0], y + place[1]) for x, y in ((50, 40), (120, 40), (80, 130))]
    ImageDraw.Draw(image).line(points, fill=ink, width=width, joint="curve")
    return image


PLAIN = to_mnist(seven())


def similarity(image):
    """The correlation with `PLAIN`."""
    return np.corrcoef(image.ravel(), PLAIN.ravel())[0, 1]


def test_result_has_mnists_box_and_center():
    assert PLAIN.shape == (28, 28, 1)
    assert PLAIN.dtype == np.uint8
    assert PLAIN.max() == 255
    assert preprocess._is_mnist(PLAIN[..., 0])
    rows, columns = (np.flatnonzero(PLAIN[..., 0].any(axis=axis)) for axis in (1, 0))
    assert np.ptp(rows) + 1 == 20
    assert np.ptp(columns) + 1 < 20
    center = np.array(ndimage.center_of_mass(PLAIN[..., 0]))
    assert np.abs(center - 14).max() <= 0.5


@pytest.mark.parametrize(("width", "place"), [(6, (0, 0)), (14, (30, 5)), (24, (-20, 10))])
def test_images_in_mnists_format_keep_their_pixels(width, place):
    pixels = to_mnist(seven(width=width, place=place))
    image, negative = (Image.fromarray(x[..., 0]) for x in (pixels, 255 - pixels))
    sixteen_bits = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    for variant in (image, negative, sixteen_bits, image.convert("RGB"), image.convert("P")):
        np.testing.assert_array_equal(to_mnist(variant), pixels)


@pytest.mark.parametrize(
    "image",
    [
        seven(paper=0, ink=255),
        seven(paper=120, ink=60),
        seven(place=(60, 20)),
        seven(size=(600, 170)),
        seven(mode="RGB", paper=(250, 240, 200), ink=(30, 40, 160)),
        seven(mode="RGB", paper=(200, 60, 60), ink=(60, 150, 60)),
        seven(mode="RGBA", paper=(0, 0, 0, 0), ink=(0, 0, 0, 255)),
        seven(mode="RGBA", paper=(0, 0, 0, 0), ink=(255, 255, 255, 255)),
        seven(mode="RGBA", paper=(255, 255, 255, 0), ink=(255, 255, 255, 255)),
        seven().convert("1"),
        seven().convert("P"),
        seven().convert("LA"),
        seven().convert("CMYK"),
        seven().convert("I"),
        seven().convert("F"),
        Image.fromarray(np.asarray(seven(), np.uint16) * 257),
        seven().resize((2000, 1600), Image.Resampling.BICUBIC),
        seven().convert("LA").resize((2000, 1600), Image.Resampling.BICUBIC),
        Image.fromarray(np.asarray(seven().resize((2000, 1600)), np.uint16) * 257),
        seven().resize((66, 53), Image.Resampling.BICUBIC),
    ],
)  # fmt: skip
def test_mode_color_size_and_place_do_not_matter(image):
    assert similarity(to_mnist(image)) > 0.9


def test_shade_grain_and_specks_do_not_matter():
    rng = np.random.default_rng(0)
    clean = np.asarray(seven(size=(300, 240)), float) / 255
    shade = np.linspace(1, 0.45, 300)[None]
    dirty = (0.2 + 0.8 * clean) * shade + rng.normal(0, 0.02, clean.shape)
    for row, column in rng.integers(5, 235, (12, 2)):
        dirty[row : row + 2, column : column + 2] -= 0.3
    image = Image.fromarray((dirty.clip(0, 1) * 255).astype(np.uint8))
    assert similarity(to_mnist(image)) > 0.95


def test_thin_strokes_stay_visible():
    thin = to_mnist(seven(width=1))
    assert similarity(thin) > 0.8
    assert thin.astype(float).sum() > 0.5 * PLAIN.astype(float).sum()


def test_bold_strokes_that_fill_half_of_the_picture_are_ink():
    ring = Image.new("L", (200, 300), 255)
    ImageDraw.Draw(ring).ellipse((20, 20, 180, 280), fill=0)
    ImageDraw.Draw(ring).ellipse((75, 80, 125, 220), fill=255)
    ink = [to_mnist(ImageOps.expand(ring, border, 255)).sum() for border in (0, 20, 300)]
    assert min(ink) > 0.95 * max(ink)  # and not an outline


def pieces(*boxes):
    """An image of rectangles in ink, each (left, top, right, bottom)."""
    image = Image.new("L", (400, 300), 255)
    for box in boxes:
        ImageDraw.Draw(image).rectangle(box, fill=0)
    return image


def test_strokes_that_do_not_touch_are_kept_and_neighbors_are_not():
    """Also a stroke that is near to another one, but not to the longest."""
    stem, first, second = (100, 50, 115, 150), (130, 50, 160, 65), (180, 50, 210, 65)
    digit = to_mnist(pieces(stem, first, second))
    assert (digit[..., 0] > 0).any(axis=0).sum() >= 18  # columns: all of its width
    alone = to_mnist(pieces(stem, first))
    neighbor, speck = (250, 50, 265, 150), (135, 100, 137, 102)
    np.testing.assert_array_equal(to_mnist(pieces(stem, first, neighbor, speck)), alone)


def test_a_stroke_may_touch_the_border_but_the_edge_of_a_page_is_no_stroke():
    stem, stroke, edge = (100, 50, 115, 150), (130, 50, 200, 60), (185, 80, 200, 180)
    left = (0, 0, 190, 300)  # cuts the stroke and the edge
    alone = to_mnist(pieces(stem).crop(left))
    np.testing.assert_array_equal(to_mnist(pieces(stem, edge).crop(left)), alone)
    digit = to_mnist(pieces(stem, stroke).crop(left))
    assert (digit > 0).any(axis=0).sum() > 2 * (alone > 0).any(axis=0).sum()


@pytest.mark.parametrize(
    ("shape", "message"),
    [((200, 150, 214, 164), "only a speck"), ((200, 150, 240, 190), "only a dot")],
)
def test_a_dot_is_no_digit(shape, message):
    image = Image.new("L", (400, 300), 255)
    ImageDraw.Draw(image).ellipse(shape, fill=0)
    with pytest.raises(UserError, match=message):
        to_mnist(image)


def test_a_thick_zero_and_a_thick_one_are_no_dots():
    image = Image.new("L", (400, 300), 255)
    ImageDraw.Draw(image).ellipse((200, 100, 260, 190), width=20, outline=0)
    assert to_mnist(image).any()
    assert to_mnist(pieces((200, 100, 240, 190))).any()


@pytest.mark.parametrize("value", [0, 128, 255])
def test_blank_page_is_rejected(value):
    with pytest.raises(UserError, match="blank"):
        to_mnist(Image.new("L", (300, 200), value))


@pytest.mark.parametrize(("noise", "message"), [(0.03, "blank"), (0.2, "nothing stands out")])
def test_blank_page_with_grain_and_shade_is_rejected(noise, message):
    rng = np.random.default_rng(0)
    page = np.linspace(0.9, 0.5, 300)[None] + rng.normal(0, noise, (200, 300))
    with pytest.raises(UserError, match=f"no digit found: .*{message}"):
        to_mnist(Image.fromarray((page.clip(0, 1) * 255).astype(np.uint8)))


@pytest.mark.parametrize(
    "suffix",
    ["png", "jpg", "webp", "gif", "bmp", "tiff", "ppm", "ico", "tga", "avif", "jp2", "dib"],
)
def test_common_formats_are_read(tmp_path, suffix):
    path = tmp_path / f"seven.{suffix}"
    seven().save(path)
    assert similarity(to_mnist(read_image(path))) > 0.95


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated by 90 degrees clockwise
    seven().rotate(90, expand=True).save(tmp_path / "photo.jpg", exif=exif)
    assert similarity(to_mnist(read_image(tmp_path / "photo.jpg"))) > 0.97


def test_first_frame_of_an_animation_is_read(tmp_path):
    frames = [seven(), seven(paper=0, ink=0)]
    frames[0].save(tmp_path / "animation.gif", save_all=True, append_images=frames[1:])
    assert similarity(to_mnist(read_image(tmp_path / "animation.gif"))) > 0.97


def test_errors_name_the_file(tmp_path, monkeypatch):
    seven().save(tmp_path / "good.png")
    content = (tmp_path / "good.png").read_bytes()
    damaged = {
        "empty.png": b"",
        "text.png": b"not an image",
        "truncated.png": content[: len(content) // 2],
        "script.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    }
    for name, data in damaged.items():
        (tmp_path / name).write_bytes(data)
        message = f"{name} is damaged, or not in a supported image format: PNG, JPEG"
        with pytest.raises(UserError, match=message):
            read_image(tmp_path / name)
    with pytest.raises(UserError, match=r"missing\.png does not exist"):
        read_image(tmp_path / "missing.png")
    with pytest.raises(UserError, match="is a folder"):
        read_image(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe is not a file"):
        read_image(tmp_path / "pipe")
    with pytest.raises(UserError, match="cannot be read: File name too long"):
        read_image(tmp_path / ("n" * 5_000))
    monkeypatch.setattr(preprocess, "MAX_PIXELS", 1_000)
    with pytest.raises(UserError, match="200 x 160 pixels, more than 1,000"):
        read_image(tmp_path / "good.png")


@pytest.mark.mnist
@pytest.mark.nightly
def test_every_mnist_image_is_recognized(manual_dir):
    from mnist_flax.data.tfds_mnist import FILES, read_idx

    for split in FILES.values():
        images = read_idx(manual_dir / split[0])
        assert all(preprocess._is_mnist(image) for image in images)
