"""Trainings that are past hope: how soon they stop, and what they say."""

import jax
import jax.numpy as jnp
import pytest

from mnist_flax import experiment, optimizer, run, train
from tests.conftest import SMALL, read_metrics


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
    tmp_path, capsys, monkeypatch
):
    good = optimizer.learning_rate
    bad = lambda step, config: jnp.where(step > 30, jnp.nan, good(step, config))  # noqa: E731
    monkeypatch.setattr(optimizer, "learning_rate", bad)
    # A seed of its own, so that no program compiled with the good rate is used.
    assert run.main(["--workdir", str(tmp_path), *SMALL, "--seed", "99"]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "the training loss became nan by step" in message
    assert "the last good checkpoint is 24 in" in message
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"12", "24"}
    assert [line["step"] for line in read_metrics(tmp_path)] == [12, 24]
    assert not (tmp_path / "summary.json").exists()


def test_a_divergent_setting_says_what_to_try(tmp_path, capsys):
    assert run.main(["--workdir", str(tmp_path), *SMALL, "--learning-rate", "1e30"]) == 1
    message = capsys.readouterr().err
    assert "there is no checkpoint yet" in message
    assert "try a lower --learning-rate" in message


def test_so_does_the_very_last_step(tmp_path, capsys, monkeypatch):
    good = optimizer.learning_rate
    bad = lambda step, config: jnp.where(step == 47, jnp.nan, good(step, config))  # noqa: E731
    monkeypatch.setattr(optimizer, "learning_rate", bad)
    assert run.main(["--workdir", str(tmp_path), *SMALL, "--seed", "98"]) == 1
    message = capsys.readouterr().err
    # The loss of that step was still good.
    assert "the largest number in the state became nan by step 48" in message
    assert "the last good checkpoint is 36 in" in message
    assert not (tmp_path / "summary.json").exists()


def test_so_does_an_infinite_gradient(tmp_path, capsys, monkeypatch):
    good = train._summed_gradients

    def bad(*arguments):
        loss, gradients = good(*arguments)
        return loss, gradients | {"Dense_0": jax.tree.map(lambda x: x / 0, gradients["Dense_0"])}

    monkeypatch.setattr(train, "_summed_gradients", bad)
    assert run.main(["--workdir", str(tmp_path), *SMALL, "--seed", "97"]) == 1
    message = capsys.readouterr().err
    assert "became nan by step" in message
    assert int(message.split("by step ")[1].split(",")[0]) <= 12
    assert "there is no checkpoint yet" in message


def test_no_better_than_guessing_is_told(tmp_path, capsys, monkeypatch):
    arguments = [*SMALL, "--epochs", "1", "--no-report"]
    assert run.main(["--workdir", str(tmp_path / "a"), *arguments]) == 0
    assert "WARNING" not in capsys.readouterr().out
    monkeypatch.setattr(experiment, "GUESSING", 0.0)
    assert run.main(["--workdir", str(tmp_path / "b"), *arguments]) == 0
    assert "WARNING: this does no better than guessing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (["--learning-rate", "1e3"], "training loss"),
        (["--learning-rate", "10"], "training loss"),
        (["--optimizer", "muon", "--learning-rate", "1e3"], "training loss"),
        (["--schedule", "constant", "--learning-rate", "1e3"], "training loss"),
        (["--learning-rate", "1e3", "--num-seeds", "2"], "training loss of seed 0"),
    ],
)
def test_a_learning_rate_that_is_far_too_high(tmp_path, capsys, flags, what):
    assert run.main(["--workdir", str(tmp_path), *SMALL, "--no-report", *flags]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert f"the {what} became" in message
    assert not (tmp_path / "summary.json").exists()
