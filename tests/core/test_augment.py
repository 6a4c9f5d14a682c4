"""Center crops and random augmentation."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from mnist_flax.core.augment import _elastic_displacements, augment, bilinear, center_crop
from mnist_flax.core.config import Config


@pytest.fixture
def images():
    return jnp.asarray(np.random.default_rng(0).integers(1, 256, (40, 28, 28, 1), np.uint8))


def test_center_crop_is_the_center_of_the_image(images):
    np.testing.assert_array_equal(center_crop(images, Config(input_size=22)), images[:, 3:25, 3:25])
    np.testing.assert_array_equal(center_crop(images, Config(input_size=28)), images)
    bordered = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    np.testing.assert_array_equal(center_crop(images, Config(input_size=30)), bordered)


@pytest.mark.parametrize("size", [22, 28, 30])
def test_without_augmentation_the_result_is_the_center_crop(key, images, size):
    config = Config(input_size=size, shift_pixels=0)
    np.testing.assert_array_equal(augment(key, images, config), center_crop(images, config))


@pytest.mark.parametrize(("size", "shift"), [(22, 1), (22, 3), (22, 5), (28, 2), (30, 2)])
def test_exactly_the_allowed_shifts_occur(key, images, size, shift):
    config = Config(input_size=size, shift_pixels=shift)
    augmented = np.asarray(augment(key, jnp.repeat(images[:1], 2000, axis=0), config))
    assert augmented.shape == (2000, size, size, 1)
    assert augmented.dtype == np.uint8
    padded = np.pad(np.asarray(images[0]), ((6, 6), (6, 6), (0, 0)))
    start = 6 + (28 - size) // 2
    expected = {
        padded[start + dy :, start + dx :][:size, :size].tobytes()
        for dy in range(-shift, shift + 1)
        for dx in range(-shift, shift + 1)
    }
    assert {image.tobytes() for image in augmented} == expected


def test_the_same_key_gives_the_same_shifts(key, images):
    config = Config()
    augmented = augment(key, images, config)
    np.testing.assert_array_equal(augmented, augment(key, images, config))
    assert (augmented != augment(jax.random.fold_in(key, 1), images, config)).any()


WARPS = {"rotation_degrees": 30.0, "zoom": 0.3, "shear": 0.4, "elastic_pixels": 1.0}
ALL = dataclasses.replace(Config(shift_pixels=2), **WARPS)


@pytest.mark.parametrize("size", [22, 28, 30])
def test_warps_keep_shape_and_range_and_are_deterministic(key, images, size):
    config = dataclasses.replace(ALL, input_size=size)
    warped = augment(key, images, config)
    assert warped.shape == (40, size, size, 1)
    assert warped.dtype == np.uint8
    np.testing.assert_array_equal(warped, augment(key, images, config))
    assert (warped != augment(jax.random.fold_in(key, 1), images, config)).any()
    white = augment(key, jnp.full_like(images, 255), dataclasses.replace(config, shift_pixels=0))
    assert (np.asarray(white)[:, size // 2, size // 2] == 255).all()


@pytest.mark.parametrize("name", WARPS)
def test_a_negligible_warp_gives_the_center_crop(key, images, name):
    config = dataclasses.replace(Config(shift_pixels=0), **{name: 1e-9})
    np.testing.assert_array_equal(augment(key, images, config), center_crop(images, config))


@pytest.mark.parametrize("size", [22, 28, 30])
def test_a_negligible_warp_with_shifts_moves_whole_pixels(key, images, size):
    config = Config(input_size=size, shift_pixels=2, rotation_degrees=1e-9)
    augmented = np.asarray(augment(key, images, config))
    padded = np.pad(np.asarray(images), ((0, 0), (6, 6), (6, 6), (0, 0)))
    start = 6 + (28 - size) // 2
    for image, shifted in zip(padded, augmented, strict=True):
        assert any(
            (image[start + dy :, start + dx :][:size, :size] == shifted).all()
            for dy in range(-2, 3)
            for dx in range(-2, 3)
        )


@pytest.mark.parametrize(
    ("changes", "limit"),
    [({"rotation_degrees": 30.0}, 30.0), ({"shear": 0.4}, math.degrees(0.4))],
)
def test_a_vertical_stroke_leans_up_to_the_limit_in_both_directions(key, changes, limit):
    stroke = np.zeros((500, 28, 28, 1), np.uint8)
    stroke[:, 6:22, 13:15] = 255
    config = dataclasses.replace(Config(shift_pixels=0), **changes)
    augmented = np.asarray(augment(key, jnp.asarray(stroke), config), float)[..., 0]
    rows = np.arange(22)[:, None] - 10.5
    columns = np.arange(22) - 10.5
    total = augmented.sum(axis=(1, 2))
    moment = (augmented * rows * columns).sum(axis=(1, 2))
    degrees = np.degrees(np.arctan(moment / (augmented * rows**2).sum(axis=(1, 2))))
    assert limit * 0.85 < degrees.max() < limit * 1.1
    assert -limit * 1.1 < degrees.min() < -limit * 0.85
    assert total.min() > 0.9 * 16 * 2 * 255
    assert total.max() < 1.1 * 16 * 2 * 255


def test_zoom_changes_height_and_width_independently(key):
    square = np.zeros((500, 28, 28, 1), np.uint8)
    square[:, 9:19, 9:19] = 255
    zoomed = np.asarray(augment(key, jnp.asarray(square), Config(shift_pixels=0, zoom=0.3)), float)
    heights, widths = (zoomed.max(axis=axis).sum(axis=(1, 2)) / 255 for axis in (2, 1))
    for lengths in (heights, widths):
        assert 12 < lengths.max() < 14.1
        assert 7 < lengths.min() < 8.8
    assert abs(np.corrcoef(heights, widths)[0, 1]) < 0.2


@pytest.mark.parametrize("size", [22, 28, 30])
def test_elastic_displacements_are_smooth_and_have_unit_deviation(key, size):
    displacements = np.asarray(_elastic_displacements(key, 4000, size))
    np.testing.assert_allclose(displacements.std(axis=1), 1, atol=0.05)
    np.testing.assert_allclose(displacements.mean(axis=1), 0, atol=0.08)
    assert np.diff(displacements, axis=-1).std() < 0.3
    assert abs(np.corrcoef(displacements[0].ravel(), displacements[1].ravel())[0, 1]) < 0.02


def test_bilinear_agrees_with_scipy(key, images):
    rows, columns = jax.random.uniform(key, (2, 40, 9, 9), jnp.float32, -3, 30)
    sampled = bilinear(images, rows, columns)
    for image, row, column, ours in zip(images, rows, columns, sampled, strict=True):
        # scipy fades to black inside the border instead of outside of it.
        pixels = np.pad(np.asarray(image[..., 0], float), 4)
        expected = ndimage.map_coordinates(pixels, [row + 4, column + 4], order=1)
        np.testing.assert_allclose(ours[..., 0].astype(float), expected, atol=0.51)
