"""A value of one seed, or of many with its statistics over the seeds."""

import statistics
from collections.abc import Iterable
from typing import TypedDict


class SeedStatistics(TypedDict):
    """A value of several seeds; a single one has neither `std` nor `interval95`."""

    mean: float
    std: float | None  # of the sample (n - 1)
    interval95: list[float] | None  # confidence interval of the mean, by Student's t
    per_seed: list[float]


# A plain number for one seed, statistics for several: what the JSON files hold.
SeedValue = float | SeedStatistics


def seed_statistics(values: Iterable[float]) -> SeedStatistics:
    """Mean, spread and 95 % interval of one value per seed."""
    numbers = [float(value) for value in values]
    mean, std, interval = statistics.fmean(numbers), None, None
    if len(numbers) > 1:
        from scipy.special import stdtrit  # takes half a second to import

        std = statistics.stdev(numbers)
        half = float(stdtrit(len(numbers) - 1, 0.975)) * std / len(numbers) ** 0.5
        interval = [mean - half, mean + half]
    return {"mean": mean, "std": std, "interval95": interval, "per_seed": numbers}


def aggregate(values: Iterable[float]) -> SeedValue:
    """The number itself for one seed, statistics for several."""
    numbers = [float(value) for value in values]
    return numbers[0] if len(numbers) == 1 else seed_statistics(numbers)


def mean_of(value: SeedValue) -> float:
    """The number itself, or the mean over the seeds."""
    return value["mean"] if isinstance(value, dict) else value


def per_seed(value: SeedValue) -> list[float]:
    """The value of each seed."""
    return value["per_seed"] if isinstance(value, dict) else [value]


def wilson_interval(correct: int, examples: int) -> list[float]:
    """Wilson's 95 % confidence interval of the share of correct ones, over other examples."""
    from scipy import stats  # takes half a second to import

    interval = stats.binomtest(correct, examples).proportion_ci(0.95, method="wilson")
    return [float(interval.low), float(interval.high)]


def format_percent(value: SeedValue) -> str:
    """`99.31%`, or with several seeds mean and standard deviation: `99.31% ± 0.02`."""
    text = f"{mean_of(value):.2%}"
    if isinstance(value, dict) and value["std"] is not None:
        text += f" ± {100 * value['std']:.2f}"
    return text
