"""What a config may hold, and how it is refused."""

import dataclasses
import json

import pytest

from mnist_flax.config import PRESETS, Config, UserError, differences, from_dict


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "--epochs must be from 1 to 100,000, but is 0"),
        ({"epochs": 2.5}, "--epochs must be int, but is 2.5"),
        ({"epochs": True}, "--epochs must be int, but is True"),
        ({"batch_size": 0}, "--batch-size must be at least 1, but is 0"),
        ({"batch_size": 60_001}, "--batch-size 60001 is larger than the 60,000 training images"),
        (
            {"dataset": "digits", "batch_size": 1_438},
            "--batch-size 1438 is larger than the 1,437 training images",
        ),
        (
            {"validation_fraction": 0.5, "batch_size": 30_001},
            "--batch-size 30001 is larger than the 30,000 training images",
        ),
        ({"learning_rate": 0.0}, "--learning-rate must be above 0 and at most 1e38, but is 0.0"),
        ({"learning_rate": float("nan")}, "--learning-rate must be above 0 and at most 1e38"),
        ({"learning_rate": 10**400}, "--learning-rate must be above 0 and at most 1e38"),
        ({"adam_epsilon": 1e-300}, "--adam-epsilon must be from 1e-37 to 1e38, but is 1e-300"),
        ({"learning_rate": "fast"}, "--learning-rate must be float, but is 'fast'"),
        ({"validation_fraction": 1.0}, "--validation-fraction must be from 0 to below 1"),
        (
            {"validation_fraction": 1e-9},
            "1e-09 holds out less than one image",
        ),
        ({"shift": 7}, "--shift must be from 0 to 6, but is 7"),
        ({"input_size": 24}, "--input-size must be one of 22, 28, but is 24"),
        ({"input_size": 22.0}, "--input-size must be one of 22, 28, but is 22.0"),
        ({"dataset": "cifar10"}, "--dataset must be one of auto, mnist"),
        ({"seed": -1}, "--seed must be from 0 to 4,294,967,295, but is -1"),
        ({"epochs": 100_000, "batch_size": 1}, "more than 2**31 - 1 steps"),
    ],
)
def test_refuses(changes, message):
    with pytest.raises(UserError) as error:
        Config(**changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_survives_json(preset):
    assert from_dict(json.loads(json.dumps(dataclasses.asdict(preset)))) == preset


def test_from_dict_names_what_is_missing_and_what_is_unknown():
    values = dataclasses.asdict(Config())
    del values["seed"]
    with pytest.raises(UserError, match="missing or unknown: colour, seed"):
        from_dict(values | {"colour": 1})
    with pytest.raises(UserError, match="not a config"):
        from_dict([1])


def test_differences_name_the_field_and_both_values():
    assert differences(Config(), Config()) == []
    assert differences(Config(), Config(batch_size=32)) == ["--batch-size was 64, now 32"]


def test_the_last_step_takes_what_is_left():
    config = Config(dataset="digits", batch_size=100, epochs=3, validation_fraction=0.1)
    assert config.train_examples == 1_437 - 143
    assert config.steps_per_epoch == 13
    assert config.total_steps == 39
