"""What a sweep shows: a table, and a picture with a panel for each field that is varied."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from search import Range, Space

from mnist_flax.config import DATASET_SIZES, Config
from mnist_flax.plots import BLUE, GREY, ORANGE
from mnist_flax.spread import mean_of, percent, seeds_of

RESULT, PICTURE = "sweep.json", "sweep.png"

# So many values have their own ticks.
TICKS = 8

Row = Mapping[str, Any]


def held_out(config: Config) -> int:
    """How many images a run is chosen by."""
    return DATASET_SIZES[config.dataset][0] - config.train_examples


def about(config: Config) -> dict[str, Any]:
    """What holds for all rows."""
    return {
        "dataset": config.dataset,
        "chosen_by": "validation_accuracy",
        "validation_examples": held_out(config),
        "seeds": list(range(config.seed, config.seed + config.num_seeds)),
    }


def rank(row: Row) -> tuple[float, float]:
    """Sorts the best first, and what did not finish last."""
    if row["status"] != "finished":
        return 1.0, 0.0
    return -mean_of(row["validation_accuracy"]), mean_of(row["validation_loss"])


def line(row: Row) -> str:
    """A row in words."""
    return f"{values(row)}: {_outcome(row)}"


def values(row: Row) -> str:
    """What is particular about a row."""
    return " ".join(f"{name}={text(value)}" for name, value in row["values"].items())


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    header = [*rows[0]["values"], "validation accuracy", "validation loss", "seconds", "run"]
    lines = [header, ["---"] * len(header)]
    for row in rows:
        loss, seconds = "", ""
        if row["status"] == "finished":
            loss, seconds = f"{mean_of(row['validation_loss']):.4f}", f"{row['seconds']:.0f}"
        lines.append([*map(text, row["values"].values()), _outcome(row), loss, seconds, row["run"]])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def text(value: Any) -> str:
    """A field's value, for people."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _outcome(row: Row) -> str:
    if row["status"] == "finished":
        return percent(row["validation_accuracy"])
    return row["status"]


def draw(rows: Sequence[Row], space: Space, config: Config, folder: Path) -> None:
    """Each run's validation accuracy against each field; the first row is the best one.

    Wrong answers have a logarithmic scale, or the good runs would lie on each other.
    """
    columns = min(3, len(space))
    lines = -(-len(space) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.6 * lines), dpi=130, layout="constrained")
    panels = figure.subplots(lines, columns, sharey=True, squeeze=False)
    for axes in panels.flat[len(space) :]:
        axes.set_axis_off()
    least = 0.5 / held_out(config)  # none wrong has no logarithm
    top = panels[0, 0]
    top.set(yscale="log", ylabel="validation accuracy (%)")
    top.invert_yaxis()
    for axes, (name, values) in zip(panels.flat, space.items(), strict=False):
        _panel(axes, rows, name, _places(rows, name, values), least)
        _scale(axes, [row["values"][name] for row in rows], values)
    low, high = sorted(top.get_ylim())
    few = high / low < 5
    top.yaxis.set_major_locator(MaxNLocator(6) if few else LogLocator(subs=(1, 2, 5)))
    top.yaxis.set_major_formatter(lambda wrong, _: f"{100 - 100 * wrong:.6g}")
    top.yaxis.set_minor_locator(NullLocator())
    for axes in panels[1:, 0]:
        axes.set_ylabel(top.get_ylabel())
    handles, labels = top.get_legend_handles_labels()
    known = dict(zip(labels, handles, strict=True))
    figure.legend(known.values(), known.keys(), loc="outside upper right", ncols=4, frameon=False)
    figure.savefig(folder / PICTURE)


def _places(rows: Sequence[Row], name: str, values: Sequence[str] | Range) -> list[float]:
    """Where each row lies on a field's axis; words take the places of their list."""
    found = [row["values"][name] for row in rows]
    if isinstance(values, Range) or not isinstance(found[0], str):
        return found
    return [list(values).index(word) for word in found]


def _panel(
    axes: Axes, rows: Sequence[Row], name: str, places: Sequence[float], least: float
) -> None:
    means, lost = [], []
    for row, place in zip(rows, places, strict=True):
        if row["status"] == "finished":
            right = np.array(seeds_of(row["validation_accuracy"]))
            wrong = np.maximum(1 - right, least)
            means.append((place, wrong.mean()))
            if len(wrong) > 1:
                axes.plot([place] * len(wrong), wrong, "_", color=GREY, label="its networks")
        elif row["status"] == "diverged":
            lost.append(place)
    axes.plot(*zip(*means, strict=True), "o", color=BLUE, alpha=0.6, label="a run")
    axes.plot(*means[0], "o", color=ORANGE, markersize=9, label="the best")
    foot = axes.get_xaxis_transform()
    if lost:
        axes.plot(lost, [0.03] * len(lost), "x", color=GREY, transform=foot, label="diverged")
    axes.set_xlabel(name)
    axes.grid(alpha=0.3)


def _scale(axes: Axes, found: Sequence[Any], values: Sequence[str] | Range) -> None:
    """A logarithmic axis where the values are evenly spaced on one; ticks at a few values."""
    if isinstance(values, Range):
        axes.set_xscale("log" if values.log else "linear")
        return
    if isinstance(found[0], str):
        axes.set_xticks(range(len(values)), values)
        axes.margins(x=0.3)
        return
    numbers = np.unique(np.array(found, float))
    if evenly_in_logarithm(numbers):
        axes.set_xscale("log")
    if len(numbers) <= TICKS:
        axes.set_xticks(numbers, map(text, numbers.tolist()))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.margins(x=0.1)


def evenly_in_logarithm(numbers: np.ndarray) -> bool:
    """Whether ascending numbers [n] are nearer to even factors than to even differences."""
    if len(numbers) < 3 or numbers[0] <= 0:
        return False
    factors, differences = np.diff(np.log(numbers)), np.diff(numbers)
    return bool(factors.max() / factors.min() < differences.max() / differences.min())
