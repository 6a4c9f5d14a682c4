"""Trained networks from a workdir: their predictions, and what is refused."""

import dataclasses
import hashlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mnist_flax
from mnist_flax import run
from mnist_flax.core.config import PRESETS, Config, UserError
from mnist_flax.core.inference import loss_and_accuracy, probabilities
from mnist_flax.data.dataset import load_dataset
from mnist_flax.engine.checkpoint import tree_sha256
from mnist_flax.engine.options import RunOptions
from mnist_flax.engine.trained_model import (
    PRETRAINED,
    TrainedModel,
    load_selected,
    load_trained,
    read_pretrained_card,
)
from tests.conftest import SMALL, read_summary


def test_predictions_have_the_scores_of_the_run(small_run, digits):
    trained = load_trained(small_run)
    images, labels = digits.test
    logits = trained.logits(images)
    assert logits.shape == (1, 360, 10)
    assert logits.dtype == np.float32
    summary = read_summary(small_run)
    assert loss_and_accuracy(logits, labels)["accuracy"].tolist() == [summary["test_accuracy"]]
    assert trained.step == summary["steps"]
    assert loss_and_accuracy(logits, labels)["loss"].tolist() == [summary["test_loss"]]


def test_a_few_images_get_the_same_logits_as_among_many(small_run, digits):
    trained = load_trained(small_run)
    images = digits.test[0][:250]
    logits = trained.logits(images)
    np.testing.assert_allclose(trained.logits(images[:3]), logits[:, :3], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(trained.logits(images), logits)


def test_each_seed_can_be_selected():
    config = Config(dataset="digits", seed=5, num_seeds=3)
    trained = TrainedModel(config, 7, {"Dense_0": {"bias": jnp.arange(6.0).reshape((3, 2))}})
    for index, expected in enumerate(([0, 1], [2, 3], [4, 5])):
        selected = trained.select_seed(index)
        assert (selected.seeds, selected.step) == ([5 + index], 7)
        assert selected.params["Dense_0"]["bias"].tolist() == expected
    assert trained.first_params()["Dense_0"]["bias"].tolist() == [0, 1]
    for index in (-1, 3):
        with pytest.raises(UserError, match=f"from 0 to 2, but is {index}"):
            trained.select_seed(index)


@pytest.mark.nightly
def test_each_seed_has_its_logits_and_probabilities_are_averaged(tmp_path, digits):
    assert run.main(["--workdir", str(tmp_path), *SMALL, "--no-report", "--num-seeds", "2"]) == 0
    trained = load_trained(tmp_path)
    logits = trained.logits(digits.test[0])
    summary = read_summary(tmp_path)
    for name, values in loss_and_accuracy(logits, digits.test[1]).items():
        assert values.tolist() == summary[f"test_{name}"]["per_seed"]
    mean = trained.probabilities(digits.test[0])
    np.testing.assert_array_equal(mean, probabilities(logits))
    np.testing.assert_allclose(mean.sum(axis=1), 1, rtol=1e-5)
    softmax = jax.nn.softmax(jnp.asarray(logits), axis=-1)
    np.testing.assert_allclose(mean, (softmax[0] + softmax[1]) / 2, rtol=1e-5, atol=1e-7)


def test_the_path_may_begin_with_the_home_folder(small_run, monkeypatch):
    monkeypatch.setenv("HOME", str(small_run.parent))
    assert mnist_flax.load(f"~/{small_run.name}").step == read_summary(small_run)["steps"]


def test_without_validation_there_is_no_best_checkpoint(small_run):
    with pytest.raises(UserError, match=r"no checkpoint in .* has a validation accuracy; train"):
        load_trained(small_run, "best")


def test_a_folder_without_a_trained_run_is_refused(small_run, tmp_path):
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
    with pytest.raises(UserError, match="is damaged, or of another network"):
        load_trained(tmp_path)
    for path in (tmp_path / "checkpoints").rglob("manifest.ocdbt"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"is damaged: state/manifest\.ocdbt is not as it was"):
        load_trained(tmp_path)


def test_the_pretrained_network_is_that_of_its_card():
    card = read_pretrained_card()
    content = (PRETRAINED / "mnist.safetensors").read_bytes()
    assert hashlib.sha256(content).hexdigest() == card["safetensors_sha256"]
    assert len(content) == card["safetensors_bytes"] < 400_000
    trained = mnist_flax.load()
    assert tree_sha256(trained.params) == card["params_sha256"]
    assert trained.num_parameters == card["parameters"] == 81_066
    assert trained.config == dataclasses.replace(PRESETS["best"], dataset="mnist")
    assert (trained.seeds, trained.step) == ([0], card["steps"])
    low, high = card["test_accuracy_ci95"]
    assert low < card["test_accuracy"] < high
    text = (PRETRAINED / "README.md").read_text(encoding="utf-8")
    for value in (f"{card['test_accuracy']:.2%}", card["safetensors_sha256"], card["commit"][:12]):
        assert value in text


@pytest.mark.mnist
@pytest.mark.slow
def test_the_pretrained_network_has_the_accuracy_of_its_card(manual_dir, tmp_path):
    images, labels = load_dataset("mnist", tmp_path, manual_dir).test
    correct = int((mnist_flax.load().predict(images) == labels).sum())
    # Another processor may round another way: one image of 10,000.
    assert abs(correct - round(10_000 * read_pretrained_card()["test_accuracy"])) <= 1


def test_a_checkpoint_or_seed_of_the_pretrained_network_is_refused():
    message = "--checkpoint and --seed-index need --workdir"
    with pytest.raises(UserError, match=message):
        mnist_flax.load(checkpoint="best")
    with pytest.raises(UserError, match=message):
        mnist_flax.load(seed_index=0)


def test_commands_say_that_they_use_the_pretrained_network(capsys):
    accuracy = f"{read_pretrained_card()['test_accuracy']:.2%}"
    assert load_selected(RunOptions()).num_parameters == 81_066
    assert capsys.readouterr().err == (
        f"using the pretrained network ({accuracy} of MNIST's test images); "
        "use --workdir for a run of your own\n"
    )
