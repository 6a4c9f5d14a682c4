"""Windows and their random moves."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from mnist_flax.augment import _bends, augment, bilinear, window
from mnist_flax.config import Config


@pytest.fixture
def images():
    return jnp.asarray(np.random.default_rng(0).integers(1, 256, (40, 28, 28, 1), np.uint8))


def test_window_is_the_centre(images):
    np.testing.assert_array_equal(window(images, Config(input_size=22)), images[:, 3:25, 3:25])
    np.testing.assert_array_equal(window(images, Config(input_size=28)), images)


@pytest.mark.parametrize("size", [22, 28])
def test_no_strength_is_the_window(key, images, size):
    config = Config(input_size=size, shift=0)
    np.testing.assert_array_equal(augment(key, images, config), window(images, config))


@pytest.mark.parametrize(("size", "shift"), [(22, 1), (22, 3), (22, 5), (28, 2)])
def test_every_shift_occurs_and_shows_the_image_moved(key, images, size, shift):
    config = Config(input_size=size, shift=shift)
    moved = np.asarray(augment(key, jnp.repeat(images[:1], 2000, axis=0), config))
    assert moved.shape == (2000, size, size, 1)
    assert moved.dtype == np.uint8
    wide = np.pad(np.asarray(images[0]), ((6, 6), (6, 6), (0, 0)))
    start = 6 + (28 - size) // 2
    expected = {
        wide[start + dy :, start + dx :][:size, :size].tobytes()
        for dy in range(-shift, shift + 1)
        for dx in range(-shift, shift + 1)
    }
    assert {image.tobytes() for image in moved} == expected


def test_same_key_same_moves(key, images):
    config = Config()
    first = augment(key, images, config)
    np.testing.assert_array_equal(first, augment(key, images, config))
    assert (first != augment(jax.random.fold_in(key, 1), images, config)).any()


WARPS = {"rotation": 30.0, "zoom": 0.3, "shear": 0.4, "elastic": 1.0}
ALL = dataclasses.replace(Config(shift=2), **WARPS)


@pytest.mark.parametrize("size", [22, 28])
def test_warps_keep_shape_and_range_and_are_deterministic(key, images, size):
    config = dataclasses.replace(ALL, input_size=size)
    warped = augment(key, images, config)
    assert warped.shape == (40, size, size, 1)
    assert warped.dtype == np.uint8
    np.testing.assert_array_equal(warped, augment(key, images, config))
    assert (warped != augment(jax.random.fold_in(key, 1), images, config)).any()
    bright = augment(key, jnp.full_like(images, 255), dataclasses.replace(config, shift=0))
    assert (np.asarray(bright)[:, size // 2, size // 2] == 255).all()


@pytest.mark.parametrize("name", WARPS)
def test_a_vanishing_warp_is_the_window(key, images, name):
    config = dataclasses.replace(Config(shift=0), **{name: 1e-9})
    np.testing.assert_array_equal(augment(key, images, config), window(images, config))


@pytest.mark.parametrize("size", [22, 28])
def test_a_warp_of_nothing_but_shifts_moves_whole_pixels(key, images, size):
    config = Config(input_size=size, shift=2, rotation=1e-9)
    moved = np.asarray(augment(key, images, config))
    wide = np.pad(np.asarray(images), ((0, 0), (6, 6), (6, 6), (0, 0)))
    start = 6 + (28 - size) // 2
    for image, found in zip(wide, moved, strict=True):
        assert any(
            (image[start + dy :, start + dx :][:size, :size] == found).all()
            for dy in range(-2, 3)
            for dx in range(-2, 3)
        )


@pytest.mark.parametrize(
    ("changes", "limit"),
    [({"rotation": 30.0}, 30.0), ({"shear": 0.4}, math.degrees(0.4))],
)
def test_an_upright_stroke_leans_as_far_as_allowed_and_both_ways(key, changes, limit):
    stroke = np.zeros((500, 28, 28, 1), np.uint8)
    stroke[:, 6:22, 13:15] = 255
    config = dataclasses.replace(Config(shift=0), **changes)
    moved = np.asarray(augment(key, jnp.asarray(stroke), config), float)[..., 0]
    rows = np.arange(22)[:, None] - 10.5
    columns = np.arange(22) - 10.5
    total = moved.sum(axis=(1, 2))
    slope = (moved * rows * columns).sum(axis=(1, 2)) / (moved * rows**2).sum(axis=(1, 2))
    degrees = np.degrees(np.arctan(slope))
    assert limit * 0.85 < degrees.max() < limit * 1.1
    assert -limit * 1.1 < degrees.min() < -limit * 0.85
    assert total.min() > 0.9 * 16 * 2 * 255


def test_zoom_changes_height_and_width_each_for_itself(key):
    square = np.zeros((500, 28, 28, 1), np.uint8)
    square[:, 9:19, 9:19] = 255
    moved = np.asarray(augment(key, jnp.asarray(square), Config(shift=0, zoom=0.3)), float)
    heights, widths = (moved.max(axis=axis).sum(axis=(1, 2)) / 255 for axis in (2, 1))
    for lengths in (heights, widths):
        assert 12 < lengths.max() < 14.1
        assert 7 < lengths.min() < 8.8
    assert abs(np.corrcoef(heights, widths)[0, 1]) < 0.2


@pytest.mark.parametrize("size", [22, 28])
def test_bends_are_smooth_and_as_strong_as_they_say(key, size):
    bends = np.asarray(_bends(key, 4000, size))
    np.testing.assert_allclose(bends.std(axis=1), 1, atol=0.05)
    np.testing.assert_allclose(bends.mean(axis=1), 0, atol=0.08)
    assert np.diff(bends, axis=-1).std() < 0.3
    assert abs(np.corrcoef(bends[0].ravel(), bends[1].ravel())[0, 1]) < 0.02


def test_bilinear_is_scipys(key, images):
    rows, columns = jax.random.uniform(key, (2, 40, 9, 9), jnp.float32, -3, 30)
    found = bilinear(images, rows, columns)
    for image, row, column, ours in zip(images, rows, columns, found, strict=True):
        pixels = np.pad(np.asarray(image[..., 0], float), 4)  # scipy fades only inside its borders
        expected = ndimage.map_coordinates(pixels, [row + 4, column + 4], order=1)
        np.testing.assert_allclose(ours[..., 0].astype(float), expected, atol=0.51)
