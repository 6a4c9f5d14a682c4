"""Pictures of digits: every format, every kind of bad file, and MNIST's own format."""

import os
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from mnist_flax import preprocess
from mnist_flax.config import UserError
from mnist_flax.preprocess import read_image, to_mnist


def seven(size=(200, 160), paper: Any = 255, ink: Any = 0, mode="L", width=16, place=(0, 0)):
    """A seven, drawn in two strokes, an eighth of the way off the middle."""
    image = Image.new(mode, size, paper)
    points = [(50, 40), (120, 40), (80, 130)]
    moved = [(x + place[0], y + place[1]) for x, y in points]
    ImageDraw.Draw(image).line(moved, fill=ink, width=width, joint="curve")
    return image


PLAIN = to_mnist(seven())


def alike(found, other=PLAIN):
    return np.corrcoef(found.ravel(), other.ravel())[0, 1]


def test_it_has_mnists_box_and_centre():
    assert PLAIN.shape == (28, 28, 1)
    assert PLAIN.dtype == np.uint8
    assert PLAIN.max() == 255
    assert preprocess._is_mnist(PLAIN[..., 0])
    rows, columns = (np.flatnonzero(PLAIN[..., 0].any(axis=axis)) for axis in (1, 0))
    assert np.ptp(rows) + 1 == 20
    assert np.ptp(columns) + 1 < 20
    centre = np.array(ndimage.center_of_mass(PLAIN[..., 0]))
    assert np.abs(centre - 14).max() <= 0.5


def test_mnists_own_images_stay_as_they_are(mnist_like):
    for image in mnist_like:
        picture = Image.fromarray(image[..., 0])
        inverted = Image.fromarray(255 - image[..., 0])
        for given in (picture, inverted, picture.convert("RGB"), picture.convert("P")):
            np.testing.assert_array_equal(to_mnist(given), image)


@pytest.fixture
def mnist_like():
    """Some with MNIST's box and centre, drawn by preprocessing itself."""
    places = [(0, 0), (30, 5), (-20, 10)]
    return [
        to_mnist(seven(width=width, place=place))
        for width, place in zip((6, 14, 24), places, strict=True)
    ]


@pytest.mark.parametrize(
    "picture",
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
def test_every_mode_colour_size_and_place_gives_the_same(picture):
    assert alike(to_mnist(picture)) > 0.9


def test_shade_grain_and_specks_do_not_matter():
    rng = np.random.default_rng(0)
    clean = np.asarray(seven(size=(300, 240)), float) / 255
    shade = np.linspace(1, 0.45, 300)[None]
    dirty = (0.2 + 0.8 * clean) * shade + rng.normal(0, 0.02, clean.shape)
    for row, column in rng.integers(5, 235, (12, 2)):
        dirty[row : row + 2, column : column + 2] -= 0.3
    picture = Image.fromarray((dirty.clip(0, 1) * 255).astype(np.uint8))
    assert alike(to_mnist(picture)) > 0.95


def test_thin_strokes_stay_visible():
    thin = to_mnist(seven(width=1))
    assert alike(thin) > 0.8
    assert thin.astype(float).sum() > 0.5 * PLAIN.astype(float).sum()


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_blank_page_has_no_digit(value):
    with pytest.raises(UserError, match="blank"):
        to_mnist(Image.new("L", (300, 200), value))


def test_a_blank_page_with_grain_and_shade_has_no_digit():
    rng = np.random.default_rng(0)
    page = np.linspace(0.9, 0.5, 300)[None] + rng.normal(0, 0.03, (200, 300))
    with pytest.raises(UserError, match="no digit"):
        to_mnist(Image.fromarray((page.clip(0, 1) * 255).astype(np.uint8)))


@pytest.mark.parametrize(
    "suffix", ["png", "jpg", "webp", "gif", "bmp", "tiff", "ppm", "ico", "tga"]
)
def test_every_format_is_read(tmp_path, suffix):
    path = tmp_path / f"seven.{suffix}"
    seven().save(path)
    assert alike(to_mnist(read_image(path))) > 0.95


def test_a_turned_photo_is_turned_back(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: to be turned by 90 degrees clockwise
    seven().rotate(90, expand=True).save(tmp_path / "photo.jpg", exif=exif)
    assert alike(to_mnist(read_image(tmp_path / "photo.jpg"))) > 0.97


def test_the_first_of_many_frames_is_read(tmp_path):
    frames = [seven(), seven(paper=0, ink=0)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert alike(to_mnist(read_image(tmp_path / "moving.gif"))) > 0.97


def test_bad_files_are_named(tmp_path, monkeypatch):
    seven().save(tmp_path / "good.png")
    content = (tmp_path / "good.png").read_bytes()
    bad = {
        "empty.png": b"",
        "text.png": b"no picture at all",
        "truncated.png": content[: len(content) // 2],
        "script.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    }
    for name, damaged in bad.items():
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(
            UserError, match=rf"{name} is damaged, or not a picture in a format .*: PNG, JPEG"
        ):
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
def test_every_mnist_image_is_known(manual_dir):
    from mnist_flax.tfds_source import FILES, read_idx

    for split in FILES.values():
        images = read_idx(manual_dir / split[0])
        assert all(preprocess._is_mnist(image) for image in images)
