"""Which configs a search tries: every combination of some values, or random draws."""

import argparse
import dataclasses
import difflib
import itertools
import math
import random
from collections.abc import Mapping, Sequence

from mnist_flax.config import Config, UserError

FIELDS = {field.name: field.type for field in dataclasses.fields(Config)}

# Scores of runs that differ in these are not of the same images.
FIXED = ("dataset", "validation_fraction")


@dataclasses.dataclass(frozen=True)
class Range:
    """Where the numbers for a field are drawn from."""

    low: float
    high: float
    log: bool
    """Whether each factor, rather than each difference, is equally probable."""

    whole: bool
    """Whether they are integers; others are rounded to three digits."""

    def at(self, share: float) -> str:
        """The number that so large a share (from 0 to 1) of all draws lies below."""
        if self.log:
            number = self.low * (self.high / self.low) ** share
        else:
            number = self.low + (self.high - self.low) * share
        rounded = round(number) if self.whole else float(f"{number:.3g}")
        return f"{min(max(rounded, self.low), self.high):.12g}"


Space = Mapping[str, Sequence[str] | Range]


def space(options: argparse.Namespace) -> Space:
    """The fields that a command line has varied, in its order, with their values.

    Raises:
      UserError: something in it is not as `--help` says.
    """
    found: dict[str, Sequence[str] | Range] = {}
    for option, texts in (("--vary", options.vary), ("--sample", options.sample)):
        for text in texts:
            name, _, values = text.partition("=")
            name = name.replace("-", "_")
            if name not in FIELDS:
                near = difflib.get_close_matches(name, FIELDS, n=1)
                hint = f" (perhaps you meant {near[0]}?)" if near else ""
                raise UserError(f"{option} {text}: the config has no field {name!r}{hint}")
            if name in FIXED:
                raise UserError(f"{option} {text}: with another {name}, scores do not compare")
            if name in found:
                raise UserError(f"{option} {text}: {name} is varied already")
            found[name] = _listed(text, values) if option == "--vary" else _range(text, values)
    if not found:
        raise UserError("nothing is varied; say what with --vary or --sample")
    if options.sample and not options.random:
        raise UserError("--sample draws, so say with --random how often")
    return found


def _listed(text: str, values: str) -> list[str]:
    listed = [value.strip() for value in values.split(",")]
    if not all(listed):
        raise UserError(f"--vary {text}: it must be FIELD=VALUE,VALUE,...")
    return listed


def _range(text: str, values: str) -> Range:
    name = text.partition("=")[0].replace("-", "_")
    if FIELDS[name] not in (int, float):
        raise UserError(f"--sample {text}: {name} is not a number; use --vary")
    kind, *ends = values.split(":")
    try:
        low, high = map(float, ends)
    except ValueError:
        low = high = math.nan
    least = {"log": 0.0, "uniform": -math.inf}.get(kind, math.inf)
    if not least < low < high < math.inf:
        raise UserError(
            f"--sample {text}: it must be FIELD=log:LOW:HIGH or FIELD=uniform:LOW:HIGH, "
            "LOW below HIGH, and for log above 0"
        )
    return Range(low, high, kind == "log", FIELDS[name] is int)


def grid(space: Space) -> list[dict[str, str]]:
    """Every combination of the listed values."""
    lists = [values for values in space.values() if not isinstance(values, Range)]
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*lists)]


def draws(space: Space, count: int, seed: int) -> list[dict[str, str]]:
    """So many random ones; where values are listed, each is equally probable.

    A draw depends on the seed, its number and the field's name only: more draws go on with
    the same ones, and another field changes nothing about the others.
    """

    def draw(name: str, number: int) -> str:
        values, share = space[name], random.Random(f"{seed} {number} {name}").random()
        return values.at(share) if isinstance(values, Range) else values[int(share * len(values))]

    return [{name: draw(name, number) for name in space} for number in range(count)]
