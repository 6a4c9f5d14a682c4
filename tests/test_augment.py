"""Windows and their random moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_flax.augment import augment, window
from mnist_flax.config import Config


@pytest.fixture
def images():
    return jnp.asarray(np.random.default_rng(0).integers(1, 256, (40, 28, 28, 1), np.uint8))


def test_window_is_the_centre(images):
    np.testing.assert_array_equal(window(images, Config(input_size=22)), images[:, 3:25, 3:25])
    np.testing.assert_array_equal(window(images, Config(input_size=28)), images)


@pytest.mark.parametrize("size", [22, 28])
def test_no_shift_is_the_window(key, images, size):
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
