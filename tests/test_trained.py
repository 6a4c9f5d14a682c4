"""Trained networks from a workdir alone: that they are the run's own, and what is refused."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_flax import run
from mnist_flax.config import UserError
from mnist_flax.inference import probabilities, scores
from mnist_flax.trained import load_trained
from tests.conftest import SMALL, read_summary


def test_its_answers_are_those_that_the_run_was_scored_by(small_run, digits):
    trained = load_trained(small_run)
    images, labels = digits.test
    logits = trained.logits(images)
    assert logits.shape == (1, 360, 10)
    assert logits.dtype == np.float32
    summary = read_summary(small_run)
    assert scores(logits, labels)["accuracy"].tolist() == [summary["test_accuracy"]]
    assert trained.step == summary["steps"]
    assert scores(logits, labels)["loss"].tolist() == [summary["test_loss"]]


def test_few_images_get_the_same_answers_as_all(small_run, digits):
    trained = load_trained(small_run)
    images = digits.test[0][:250]
    together = trained.logits(images)
    np.testing.assert_allclose(trained.logits(images[:3]), together[:, :3], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(trained.logits(images), together)


def test_many_seeds_give_their_own_logits_and_a_mean_probability(tmp_path, digits):
    assert run.main(["--workdir", str(tmp_path), *SMALL, "--num-seeds", "2"]) == 0
    trained = load_trained(tmp_path)
    logits = trained.logits(digits.test[0])
    summary = read_summary(tmp_path)
    for name, values in scores(logits, digits.test[1]).items():
        assert values.tolist() == summary[f"test_{name}"]["per_seed"]
    chance = probabilities(logits)
    np.testing.assert_allclose(chance.sum(axis=1), 1, rtol=1e-5)
    each = jax.nn.softmax(jnp.asarray(logits), axis=-1)
    np.testing.assert_allclose(chance, (each[0] + each[1]) / 2, rtol=1e-5, atol=1e-7)


def test_what_is_not_a_trained_run_is_refused(small_run, tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        load_trained(tmp_path)
    config = json.loads((small_run / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="nothing has been trained"):
        load_trained(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="no checkpoint yet"):
        load_trained(tmp_path)
    shutil.copytree(small_run / "checkpoints", tmp_path / "checkpoints", dirs_exist_ok=True)
    assert load_trained(tmp_path).step == read_summary(small_run)["steps"]
    (tmp_path / "config.json").write_text(json.dumps(config | {"channels": 32}))
    with pytest.raises(UserError, match="of another network"):
        load_trained(tmp_path)
    for path in (tmp_path / "checkpoints").rglob("manifest.ocdbt"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"is damaged: state/manifest\.ocdbt is not as it was"):
        load_trained(tmp_path)
