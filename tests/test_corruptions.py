"""Corruptions: deterministic, in range, worse with severity, and what they say they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_flax.corruptions import KINDS, SEVERITIES, corrupt, robustness
from mnist_flax.trained import load_trained


@pytest.fixture
def images(digits):
    return jnp.asarray(digits.test[0][:64])


@pytest.mark.parametrize("kind", KINDS)
def test_corruptions_are_pure_and_grow_with_severity(key, images, kind):
    apply = jax.jit(corrupt, static_argnames=("kind", "severity"))
    distances = []
    for severity in SEVERITIES:
        found = apply(key, images, kind, severity)
        assert found.shape == images.shape
        assert found.dtype == jnp.uint8
        np.testing.assert_array_equal(found, apply(key, images, kind, severity))
        distances.append(np.abs(np.asarray(found, float) - np.asarray(images)).mean())
    assert distances[0] > 0
    assert distances == sorted(distances)


def test_inversion_ends_in_black_on_white(key, images):
    np.testing.assert_array_equal(corrupt(key, images, "inversion", 5), 255 - images)


def test_a_shift_moves_the_ink_as_far_as_it_says(key):
    image = np.zeros((200, 28, 28, 1), np.uint8)
    image[:, 13:15, 13:15] = 255
    moved = np.asarray(corrupt(key, jnp.asarray(image), "shift", 4), float)[..., 0]
    place = np.arange(28) - 13.5
    total = moved.sum(axis=(1, 2))
    down = (moved * place[:, None]).sum(axis=(1, 2)) / total
    right = (moved * place).sum(axis=(1, 2)) / total
    np.testing.assert_allclose(np.hypot(down, right), 4, atol=0.05)
    assert np.abs(down.mean()) < 0.6


def test_zoom_halves_or_doubles(key):
    image = np.zeros((40, 28, 28, 1), np.uint8)
    image[:, 9:19, 9:19] = 255
    ink = np.asarray(corrupt(key, jnp.asarray(image), "zoom", 5), float).sum(axis=(1, 2, 3)) / 255
    small = ink < 100
    assert 0 < small.mean() < 1
    np.testing.assert_allclose(ink[small], 25, rtol=0.05)
    np.testing.assert_allclose(ink[~small], 400, rtol=0.05)


def test_occlusion_hides_a_square_of_its_size(key):
    image = jnp.full((100, 28, 28, 1), 255, jnp.uint8)
    hidden = (np.asarray(corrupt(key, image, "occlusion", 5)) == 128).sum(axis=(1, 2, 3))
    assert hidden.max() == 14 * 14


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
