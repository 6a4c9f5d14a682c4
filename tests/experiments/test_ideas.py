"""The ideas that were tried: what each of them computes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import ideas
from mnist_flax.core import model
from mnist_flax.core.augment import to_float
from mnist_flax.core.config import Config
from tests.conftest import with_biases

pytestmark = pytest.mark.slow


@pytest.fixture
def params(key):
    return with_biases(model.init(key, Config()))


@pytest.fixture
def images(key):
    return jax.random.randint(key, (64, 22, 22, 1), 0, 256).astype(jnp.uint8)


def test_batch_normalization_is_folded_into_the_parameters(params, images):
    with jax.numpy_rank_promotion("allow"):
        logits, folded = jax.jit(ideas.normalized_logits)(params, to_float(images), jnp.ones(64))
    assert jax.tree.map(jnp.shape, folded) == jax.tree.map(jnp.shape, params)
    expected = jax.jit(model.apply)(params, to_float(images))
    assert jnp.abs(logits - expected).max() > 0.1
    np.testing.assert_allclose(jax.jit(model.apply)(folded, to_float(images)), logits, atol=1e-4)
    with jax.numpy_rank_promotion("allow"):
        few, _ = jax.jit(ideas.normalized_logits)(params, to_float(images[:40]), jnp.ones(40))
        weights = (jnp.arange(64) < 40).astype(jnp.float32)  # the others only fill the batch
        padded, _ = jax.jit(ideas.normalized_logits)(params, to_float(images), weights)
    np.testing.assert_allclose(padded[:40], few, atol=1e-4)


def test_whitened_filters_respond_without_correlation(params, images):
    with jax.numpy_rank_promotion("allow"):
        whitened = jax.jit(ideas.whiten)(params, to_float(images))
    kernel, before = whitened["Conv_0"]["kernel"], params["Conv_0"]["kernel"]
    assert kernel.shape == before.shape
    np.testing.assert_array_equal(kernel[..., 18:], before[..., 18:])
    views = [to_float(images)[:, r : r + 20, c : c + 20, 0] for r in range(3) for c in range(3)]
    responses = jnp.stack(views, axis=-1).reshape((-1, 9)) @ kernel.reshape((9, -1))[:, :9]
    moments = responses.T @ responses
    off_diagonal = moments - jnp.diag(jnp.diag(moments))
    assert jnp.abs(off_diagonal).max() < 1e-3 * moments.max()


def test_a_student_that_equals_its_teacher_has_nothing_to_learn(key, params, images):
    loss = ideas.make_distillation_loss(params)
    labels, weights = jnp.zeros(len(images), jnp.int32), jnp.ones(len(images))
    gradient = jax.jit(jax.grad(loss))
    for leaf in jax.tree.leaves(gradient(params, images, labels, weights)):
        assert jnp.abs(leaf).max() < 1e-3
    other = model.init(jax.random.fold_in(key, 1), Config())
    assert jnp.abs(gradient(other, images, labels, weights)["Dense_2"]["bias"]).max() > 0.1


@pytest.mark.nightly
def test_ideas_are_measured_once_and_stored(tmp_path, monkeypatch, capsys):
    arguments = ["ideas", "--dataset=digits", "--preset=quick", "--epochs=1", "--seeds=2"]
    arguments += ["--runs", str(tmp_path), "--output", str(tmp_path)]
    arguments += ["--only", "whitened first layer", "batch normalization, folded"]
    monkeypatch.setattr("sys.argv", arguments)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        ideas.main()
        first = capsys.readouterr().out
        monkeypatch.setattr(ideas, "train_network", None)
        ideas.main()
    assert capsys.readouterr().out == first
    result = json.loads((tmp_path / "ideas_quick.json").read_text())
    assert result["ideas"]["unchanged"]["accuracy_difference"]["per_seed"] == [0, 0]
    assert len(result["ideas"]["whitened first layer"]["loss"]["per_seed"]) == 2
