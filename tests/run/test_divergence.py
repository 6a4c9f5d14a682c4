"""Diverged trainings: how soon they stop, and what they report."""

import jax
import jax.numpy as jnp
import pytest

from mnist_flax import run
from mnist_flax.core import optimizer, sharding
from mnist_flax.run import experiment
from tests.conftest import SMALL, read_metrics


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
    tmp_path, capsys, monkeypatch
):
    schedule = optimizer.learning_rate_schedule

    def diverging(step, config):
        return jnp.where(step > 30, jnp.nan, schedule(step, config))

    monkeypatch.setattr(optimizer, "learning_rate_schedule", diverging)
    # Another seed than in other tests, so that no program with the unchanged schedule is used.
    assert run.main(["--workdir", str(tmp_path), *SMALL, "--seed", "99"]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "the training loss became nan by step" in message
    assert "the last good checkpoint is 24 in" in message
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"12", "24"}
    assert [line["step"] for line in read_metrics(tmp_path)] == [12, 24]
    assert not (tmp_path / "summary.json").exists()


def test_a_divergence_without_a_checkpoint_suggests_a_lower_learning_rate(tmp_path, capsys):
    assert run.main(["--workdir", str(tmp_path), *SMALL, "--learning-rate", "1e30"]) == 1
    message = capsys.readouterr().err
    assert "there is no checkpoint yet" in message
    assert "try a lower --learning-rate" in message


def test_a_divergence_in_the_last_step_is_detected(tmp_path, capsys, monkeypatch):
    schedule = optimizer.learning_rate_schedule

    def diverging(step, config):
        return jnp.where(step == 47, jnp.nan, schedule(step, config))

    monkeypatch.setattr(optimizer, "learning_rate_schedule", diverging)
    assert run.main(["--workdir", str(tmp_path), *SMALL, "--seed", "98"]) == 1
    message = capsys.readouterr().err
    # The loss of that step is measured before its update, so it is finite.
    assert "the largest number in the state became nan by step 48" in message
    assert "the last good checkpoint is 36 in" in message
    assert not (tmp_path / "summary.json").exists()


def test_an_infinite_gradient_is_detected(tmp_path, capsys, monkeypatch):
    accumulate_gradients = sharding.accumulate_gradients

    def diverging(*arguments):
        loss, gradients = accumulate_gradients(*arguments)
        return loss, gradients | {"Dense_0": jax.tree.map(lambda x: x / 0, gradients["Dense_0"])}

    monkeypatch.setattr(sharding, "accumulate_gradients", diverging)
    assert run.main(["--workdir", str(tmp_path), *SMALL, "--seed", "97"]) == 1
    message = capsys.readouterr().err
    assert "became nan by step" in message
    assert int(message.split("by step ")[1].split(",")[0]) <= 12
    assert "there is no checkpoint yet" in message


def test_a_network_that_only_guesses_causes_a_warning(tmp_path, capsys, monkeypatch):
    arguments = [*SMALL, "--epochs", "1", "--no-report"]
    assert run.main(["--workdir", str(tmp_path / "a"), *arguments]) == 0
    assert "WARNING" not in capsys.readouterr().out
    monkeypatch.setattr(experiment, "CHANCE_LOSS", 0.0)
    assert run.main(["--workdir", str(tmp_path / "b"), *arguments]) == 0
    assert (
        "WARNING: this is no better than guessing; try a lower --learning-rate"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--learning-rate", "1e3"], "training loss"),
        (["--learning-rate", "10"], "training loss"),
        (["--optimizer", "muon", "--learning-rate", "1e3"], "training loss"),
        (["--schedule", "constant", "--learning-rate", "1e3"], "training loss"),
        (["--learning-rate", "1e3", "--num-seeds", "2"], "training loss of seed 0"),
    ],
)
def test_a_far_too_high_learning_rate_is_detected(tmp_path, capsys, flags, name):
    assert run.main(["--workdir", str(tmp_path), *SMALL, "--no-report", *flags]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert f"the {name} became" in message
    assert not (tmp_path / "summary.json").exists()
