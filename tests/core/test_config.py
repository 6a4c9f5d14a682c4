"""Valid and invalid configs."""

import dataclasses
import math
from typing import Any

import pytest

from mnist_flax.core.config import Config, UserError, flag_name

NUMBERS = [field for field in dataclasses.fields(Config) if field.type in (int, float)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "--epochs must be from 1 to 100,000, but is 0"),
        ({"epochs": 2.5}, "--epochs must be int, but is 2.5"),
        ({"epochs": True}, "--epochs must be int, but is True"),
        ({"deterministic": 1}, "--deterministic must be bool, but is 1"),
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
        ({"shift_pixels": 7}, "--shift-pixels must be from 0 to 6, but is 7"),
        ({"input_size": 24}, "--input-size must be one of 22, 28, 30, but is 24"),
        ({"input_size": 22.0}, "--input-size must be one of 22, 28, 30, but is 22.0"),
        ({"dataset": "cifar10"}, "--dataset must be one of auto, mnist"),
        ({"seed": -1}, "--seed must be from 0 to 4,294,967,295, but is -1"),
        ({"seed": 2**32 - 1, "num_seeds": 2}, "--seed plus --num-seeds is more than 2**32"),
        ({"epochs": 100_000, "batch_size": 1}, "more than 2**31 - 1 steps"),
    ],
)
def test_an_invalid_value_is_refused_in_one_line(changes, message):
    with pytest.raises(UserError) as error:
        Config(**changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("field", NUMBERS, ids=lambda field: field.name)
def test_a_number_just_outside_its_limits_is_refused(field):
    low, high, text = field.metadata["limits"]
    assert low <= field.default <= high
    if field.type is int:
        outside = [low - 1, high + 1]
    else:
        outside = [math.nextafter(low, -math.inf), math.nextafter(high, math.inf)]
    for value in filter(math.isfinite, outside):
        values: dict[str, Any] = {field.name: value}
        with pytest.raises(UserError, match=f"{flag_name(field.name)} must be {text}, but is"):
            Config(**values)


def test_the_last_step_of_an_epoch_may_have_a_smaller_batch():
    config = Config(dataset="digits", batch_size=100, epochs=3, validation_fraction=0.1)
    assert config.train_examples == 1_437 - 143
    assert config.steps_per_epoch == 13
    assert config.total_steps == 39


def test_the_last_epoch_is_always_evaluated_and_checkpointed():
    config = Config(epochs=7, eval_every_epochs=3, checkpoint_every_epochs=5)
    epochs = range(1, 8)
    assert [epoch for epoch in epochs if config.is_evaluated(epoch)] == [3, 6, 7]
    assert [epoch for epoch in epochs if config.is_checkpointed(epoch)] == [5, 7]
