"""What a config is called: its preset, the flags that make the difference, a whole command."""

import dataclasses

from mnist_flax.core.config import PRESETS, Config, flag_name


def describe_recipe(config: Config) -> str:
    """The preset that a config is closest to, and the flags that make the difference."""
    name, flags = _closest_preset(config)
    return " ".join([f"preset {name}", *(["with"] if flags else []), *flags])


def training_command(config: Config) -> str:
    """A command that trains with a config, in a folder of the user's choice."""
    name, flags = _closest_preset(config)
    always = [_flag("dataset", config.dataset), _flag("seed", config.seed)]
    if config.num_seeds > 1:
        always.append(_flag("num_seeds", config.num_seeds))
    return " ".join(
        ["python -m mnist_flax.run --workdir WORKDIR --preset", name, *flags, *always]
    )


def _closest_preset(config: Config) -> tuple[str, list[str]]:
    """Its name and the missing flags, without those of the dataset and the seeds."""
    shown_elsewhere = ("dataset", "seed", "num_seeds")
    flags = {
        name: [
            _flag(field, value)
            for field, value in dataclasses.asdict(config).items()
            if field not in shown_elsewhere and value != getattr(preset, field)
        ]
        for name, preset in PRESETS.items()
    }
    closest = min(flags, key=lambda name: len(flags[name]))
    return closest, flags[closest]


def _flag(field: str, value: object) -> str:
    # A flag that is off has no form of its own, but no preset turns one on.
    return flag_name(field) if value is True else f"{flag_name(field)} {value}"
