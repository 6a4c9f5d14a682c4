"""Corruptions are deterministic, grow with severity, and do what their names say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_flax.engine.trained_model import load_trained
from mnist_flax.evaluate.corruptions import KINDS, SEVERITIES, apply_corruption, robustness


@pytest.fixture
def images(digits):
    return jnp.asarray(digits.test[0][:64])


@pytest.mark.parametrize("kind", KINDS)
def test_corruptions_are_pure_and_grow_with_severity(key, images, kind):
    apply = jax.jit(apply_corruption, static_argnames=("kind", "severity"))
    distances = []
    for severity in SEVERITIES:
        corrupted = apply(key, images, kind, severity)
        assert corrupted.shape == images.shape
        assert corrupted.dtype == jnp.uint8
        np.testing.assert_array_equal(corrupted, apply(key, images, kind, severity))
        distances.append(np.abs(np.asarray(corrupted, float) - np.asarray(images)).mean())
    assert distances[0] > 0
    assert distances == sorted(distances)


def test_inversion_at_full_severity_is_black_on_white(key, images):
    np.testing.assert_array_equal(apply_corruption(key, images, "inversion", 5), 255 - images)


def test_shift_moves_the_ink_by_its_distance_in_any_direction(key):
    image = np.zeros((200, 28, 28, 1), np.uint8)
    image[:, 13:15, 13:15] = 255
    shifted = np.asarray(apply_corruption(key, jnp.asarray(image), "shift", 4), float)[..., 0]
    position = np.arange(28) - 13.5
    total = shifted.sum(axis=(1, 2))
    down = (shifted * position[:, None]).sum(axis=(1, 2)) / total
    right = (shifted * position).sum(axis=(1, 2)) / total
    np.testing.assert_allclose(np.hypot(down, right), 4, atol=0.05)
    assert np.abs(down.mean()) < 0.6


def test_zoom_halves_or_doubles(key):
    image = np.zeros((40, 28, 28, 1), np.uint8)
    image[:, 9:19, 9:19] = 255
    zoomed = np.asarray(apply_corruption(key, jnp.asarray(image), "zoom", 5), float)
    ink = zoomed.sum(axis=(1, 2, 3)) / 255
    small = ink < 100
    assert 0 < small.mean() < 1
    np.testing.assert_allclose(ink[small], 25, rtol=0.05)
    np.testing.assert_allclose(ink[~small], 400, rtol=0.05)


def test_occlusion_covers_a_square_of_its_size(key):
    image = jnp.full((100, 28, 28, 1), 255, jnp.uint8)
    covered = (np.asarray(apply_corruption(key, image, "occlusion", 5)) == 128).sum(axis=(1, 2, 3))
    assert covered.max() == 14 * 14


@pytest.mark.nightly
def test_robustness_starts_at_the_clean_accuracy(small_run, digits):
    images, labels = (array[:100] for array in digits.test)
    trained = load_trained(small_run)
    table = robustness(trained, images, labels)
    clean = (trained.logits(images)[0].argmax(axis=-1) == labels).mean()
    assert set(table) == set(KINDS)
    for accuracies in table.values():
        assert len(accuracies) == 6
        assert accuracies[0] == clean
    assert table == robustness(trained, images, labels)
