"""What a config is called: its preset, the flags that make the difference, a whole command."""

import dataclasses
from typing import Any

from mnist_flax.core.config import PRESETS, Config, flag_name


def describe_recipe(config: Config) -> str:
    """The preset that a config is closest to, and the flags that make the difference."""
    name, differences = _closest_preset(config)
    flags = [_flag(field, value, digits=4) for field, value in differences.items()]
    return " ".join([f"preset {name}", *(["with"] if flags else []), *flags])


def training_command(config: Config) -> str:
    """A command that trains with a config, in a folder of the user's choice."""
    name, differences = _closest_preset(config)
    always = ["dataset", "seed", *(["num_seeds"] if config.num_seeds > 1 else [])]
    values = differences | {field: getattr(config, field) for field in always}
    flags = [_flag(field, value) for field, value in values.items()]
    return " ".join(["python -m mnist_flax.run --workdir WORKDIR --preset", name, *flags])


def _closest_preset(config: Config) -> tuple[str, dict[str, Any]]:
    """Its name, and the fields that differ, without those of the dataset and the seeds."""
    shown_elsewhere = ("dataset", "seed", "num_seeds")
    differences = {
        name: {
            field: value
            for field, value in dataclasses.asdict(config).items()
            if field not in shown_elsewhere and value != getattr(preset, field)
        }
        for name, preset in PRESETS.items()
    }
    closest = min(
        differences,
        # `large` is `best` with more seeds.
        key=lambda name: (len(differences[name]), PRESETS[name].num_seeds != config.num_seeds),
    )
    return closest, differences[closest]


def _flag(field: str, value: object, digits: int | None = None) -> str:
    if value is True:  # such a flag has no value, and no preset sets one that must be unset
        return flag_name(field)
    text = f"{value:.{digits}g}" if digits and isinstance(value, float) else f"{value}"
    return f"{flag_name(field)} {text}"
