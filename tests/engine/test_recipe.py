"""What a config is called."""

import dataclasses
import shlex

import pytest

from mnist_flax.core.config import PRESETS, Config
from mnist_flax.engine.recipe import describe_recipe, training_command
from mnist_flax.run import command


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_recognized_by_its_values(name):
    assert describe_recipe(PRESETS[name]) == f"preset {name}"


def test_the_closest_preset_and_the_flags_that_differ_are_named():
    config = dataclasses.replace(PRESETS["best"], epochs=7, validation_fraction=1 / 6, seed=3)
    assert describe_recipe(config) == "preset best with --validation-fraction 0.1667 --epochs 7"


@pytest.mark.parametrize(
    "config",
    [
        Config(dataset="digits", deterministic=True, seed=5, num_seeds=3),
        dataclasses.replace(PRESETS["large"], learning_rate=1 / 3, precision="bfloat16"),
        PRESETS["digits"],
    ],
)
def test_the_command_trains_with_the_config(config):
    words = shlex.split(training_command(config))
    assert words[:3] == ["python", "-m", "mnist_flax.run"]
    assert command.parse(words[3:]).config == config
