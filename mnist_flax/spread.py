"""A figure of one seed or of many: a plain number, or its mean and how far the seeds differ."""

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

Figure = float | Mapping[str, Any]


def spread(values: Iterable[float], each: str = "per_seed") -> dict[str, Any]:
    """`mean`, `std` (n - 1), the mean's 95 % interval (Student's t), and each value.

    A single value says nothing about the spread: `std` and `interval95` are then None.
    """
    numbers = [float(value) for value in values]
    mean, std, interval = statistics.fmean(numbers), None, None
    if len(numbers) > 1:
        from scipy.special import stdtrit  # here, because it takes half a second

        std = statistics.stdev(numbers)
        half = float(stdtrit(len(numbers) - 1, 0.975)) * std / len(numbers) ** 0.5
        interval = [mean - half, mean + half]
    return {"mean": mean, "std": std, "interval95": interval, each: numbers}


def figure(values: Iterable[float]) -> Figure:
    """The number itself where there is one, else its spread."""
    numbers = [float(value) for value in values]
    return numbers[0] if len(numbers) == 1 else spread(numbers)


def mean_of(figure: Figure) -> float:
    """The number itself, or the mean over the seeds."""
    return figure["mean"] if isinstance(figure, Mapping) else figure


def seeds_of(figure: Figure) -> list[float]:
    """The value of each seed."""
    return figure["per_seed"] if isinstance(figure, Mapping) else [figure]


def percent(figure: Figure) -> str:
    """For people: `99.31%`, or mean and standard deviation as `99.31% ± 0.02`."""
    text = f"{mean_of(figure):.2%}"
    return f"{text} ± {100 * figure['std']:.2f}" if isinstance(figure, Mapping) else text
