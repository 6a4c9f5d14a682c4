"""Answers about many images: every one counted once, and scored as the textbooks do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn import metrics

from mnist_flax import model
from mnist_flax.inference import losses, predict_logits, probabilities, scores


@pytest.mark.parametrize("count", [1, 199, 200, 201, 360])
def test_every_image_is_answered_once_and_in_order(digits, key, config, count):
    images = jnp.asarray(digits.test[0][:count])
    params = model.init(key, 22)
    logits = predict_logits(params, images, config=config)
    assert logits.shape == (count, 10)
    expected = model.apply(params, images[:, 3:25, 3:25].astype(jnp.float32) / 255)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


def test_scores_are_the_textbooks(key):
    logits = np.asarray(3 * jax.random.normal(key, (2, 500, 10)))
    labels = np.random.default_rng(0).integers(0, 10, 500).astype(np.int32)
    found = scores(logits, labels)
    for index in range(2):
        chance = np.asarray(jax.nn.softmax(logits[index].astype(np.float64)))
        expected = metrics.log_loss(labels, chance, labels=np.arange(10))
        assert found["loss"][index] == pytest.approx(expected, rel=1e-5)
        answers = logits[index].argmax(axis=1)
        assert found["accuracy"][index] == metrics.accuracy_score(labels, answers)
    each = optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(logits[0]), labels)
    np.testing.assert_allclose(losses(logits, labels)[0], each, rtol=1e-5, atol=1e-6)
    mean = probabilities(logits)
    np.testing.assert_allclose(mean, jax.nn.softmax(logits).mean(axis=0), rtol=1e-5)


def test_a_loss_stays_finite_however_sure_the_network_was():
    logits = np.array([[[1e4, 0.0, -1e4]]], np.float32)
    assert losses(logits, np.array([2])) == 2e4
    assert losses(logits, np.array([0])) == 0
