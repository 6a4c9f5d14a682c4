"""Predictions for many images, their loss and their accuracy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn import metrics

from mnist_flax.core import model
from mnist_flax.core.config import Config
from mnist_flax.core.inference import (
    cross_entropy,
    loss_and_accuracy,
    predict_logits,
    probabilities,
)


@pytest.mark.parametrize(
    "count", [*(pytest.param(n, marks=pytest.mark.nightly) for n in (1, 199, 200, 360)), 201]
)
def test_every_image_is_predicted_once_and_in_order(digits, key, config, count):
    images = jnp.asarray(digits.test[0][:count])
    params = model.init(key, Config())
    logits = predict_logits(params, images, config=config)
    assert logits.shape == (count, 10)
    expected = model.apply(params, images[:, 3:25, 3:25].astype(jnp.float32) / 255)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


def test_loss_and_accuracy_agree_with_scikit_learn_and_optax(key):
    logits = np.asarray(3 * jax.random.normal(key, (2, 500, 10)))
    labels = np.random.default_rng(0).integers(0, 10, 500).astype(np.int32)
    scores = loss_and_accuracy(logits, labels)
    for index in range(2):
        softmax = np.asarray(jax.nn.softmax(logits[index].astype(np.float64)))
        expected = metrics.log_loss(labels, softmax, labels=np.arange(10))
        assert scores["loss"][index] == pytest.approx(expected, rel=1e-5)
        predictions = logits[index].argmax(axis=1)
        assert scores["accuracy"][index] == metrics.accuracy_score(labels, predictions)
    expected = optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(logits[0]), labels)
    np.testing.assert_allclose(cross_entropy(logits, labels)[0], expected, rtol=1e-5, atol=1e-6)
    mean = probabilities(logits)
    np.testing.assert_allclose(mean, jax.nn.softmax(logits).mean(axis=0), rtol=1e-5)


def test_the_loss_stays_finite_for_any_confidence():
    logits = np.array([[[1e4, 0.0, -1e4]]], np.float32)
    assert cross_entropy(logits, np.array([2])) == 2e4
    assert cross_entropy(logits, np.array([0])) == 0
