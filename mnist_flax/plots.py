"""Pictures for the report, each a PNG made from numbers alone.

Colours are Okabe and Ito's (https://jfly.uni-koeln.de/color), which the colour-blind can tell
apart; error rates are on a logarithmic scale, or the last epochs would lie on the axis.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from mnist_flax.spread import seeds_of

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#666666"
SPLITS = {"train": GREY, "validation": ORANGE, "test": BLUE}
DIGITS = range(10)
GALLERY = 60  # mistakes that are shown


def curves(metrics: Sequence[Mapping[str, Any]]) -> bytes:
    """Loss, error rate and learning rate against the epoch; several seeds as a band."""
    figure = _figure(10, 3.4)
    left, middle, right = figure.subplots(1, 3)
    epochs = [line["epoch"] for line in metrics]
    for split, color in SPLITS.items():
        for axes, name, scale in ((left, f"{split}_loss", 1), (middle, f"{split}_accuracy", 100)):
            if name in metrics[0]:
                values = np.array([seeds_of(line[name]) for line in metrics])
                _band(axes, epochs, scale * (values if scale == 1 else 1 - values), color, split)
    rates = [line["learning_rate"] for line in metrics]
    right.plot(epochs, rates, "o-", color=GREEN, markersize=4)
    for axes, label in ((left, "cross-entropy (nats)"), (middle, "wrong answers (%)")):
        axes.set(xlabel="epoch", ylabel=label, yscale="log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.legend()
    right.set(xlabel="epoch", ylabel="learning rate at its end", ylim=(0, None))
    for axes in (left, middle, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    return _png(figure)


def confusion(matrix: Sequence[Sequence[int]]) -> bytes:
    """Which digit was taken for which. Right answers are shown but not coloured."""
    counts = np.array(matrix)
    wrong = np.where(np.eye(len(counts), dtype=bool), 0, counts)
    figure = _figure(6, 5.4)
    axes = figure.subplots()
    picture = axes.imshow(wrong, cmap="Oranges", vmin=0, vmax=max(1, wrong.max()))
    for (row, column), count in np.ndenumerate(counts):
        if count:
            dark = row != column and count > 0.6 * wrong.max()
            color = GREY if row == column else "white" if dark else "black"
            axes.text(column, row, f"{count:,}", ha="center", va="center", color=color, fontsize=8)
    axes.set(xlabel="answer", ylabel="label", xticks=DIGITS, yticks=DIGITS)
    whole = MaxNLocator(integer=True)
    figure.colorbar(picture, label="images answered wrongly", shrink=0.8, ticks=whole)
    return _png(figure)


def gallery(images: np.ndarray, mistakes: Sequence[Mapping[str, Any]], columns: int = 10) -> bytes:
    """The first `GALLERY` mistakes: uint8 [n, 28, 28, 1], in the order of `mistakes`."""
    shown = images[:GALLERY, ..., 0]
    # Ink is 1 on a background of 0, with room above each for two lines of text.
    cells = np.pad(shown / 255, ((0, 0), (14, 2), (3, 3)))
    height, width = cells.shape[1:]
    tiled = _tiled(cells, columns)
    figure = _figure(10, 10 * tiled.shape[0] / tiled.shape[1])
    axes = figure.subplots()
    axes.set_axis_off()
    axes.imshow(tiled, cmap="gray_r", vmin=0, vmax=1)
    for index, mistake in enumerate(mistakes[: len(shown)]):
        row, column = divmod(index, columns)
        axes.text(
            (column + 0.5) * width, row * height + 13,
            f"{mistake['label']}, not {mistake['answer']}\n{mistake['probability']:.0%} sure",
            ha="center", va="bottom", fontsize=8,
        )  # fmt: skip
    return _png(figure)


def reliability(calibration: Mapping[str, Any]) -> bytes:
    """How often it was right against how sure it was, and how often it was how sure."""
    bins = calibration["bins"]
    places = [(row["low"] + row["high"]) / 2 for row in bins]
    width = bins[0]["high"] - bins[0]["low"]
    figure = _figure(5, 4.6)
    above, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1]})
    above.plot([0, 1], [0, 1], "--", color=GREY, label="as right as sure")
    above.plot(
        [row["confidence"] for row in bins], [row["accuracy"] for row in bins], "o-", color=BLUE,
        label=f"its answers (ECE {calibration['ece']:.4f})",
    )  # fmt: skip
    above.set(ylabel="share answered right", xlim=(0, 1), ylim=(0, 1.02))
    above.legend()
    below.bar(places, [row["examples"] for row in bins], width=0.9 * width, color=BLUE)
    below.set(xlabel="how sure (probability of the answer)", ylabel="images", yscale="log")
    for axes in (above, below):
        axes.grid(alpha=0.3)
    return _png(figure)


def filters(kernel: np.ndarray) -> bytes:
    """The first layer's filters, float32 [3, 3, 1, channels]; blue excites, orange inhibits."""
    each = np.pad(
        kernel[:, :, 0].transpose(2, 0, 1), ((0, 0), (0, 1), (0, 1)), constant_values=np.nan
    )
    tiled = _tiled(each, columns=16)
    figure = _figure(10, 10 * tiled.shape[0] / tiled.shape[1] + 0.2)
    axes = figure.subplots()
    axes.set_axis_off()
    limit = np.abs(kernel).max()
    picture = axes.imshow(tiled, cmap="PuOr", vmin=-limit, vmax=limit)
    figure.colorbar(picture, label="weight", fraction=0.02)
    return _png(figure)


def saliency(maps: np.ndarray, mean_images: np.ndarray) -> bytes:
    """How much each pixel sways the answer, for each digit: float [10, 28, 28] each."""
    figure = _figure(10, 2.4)
    above, below = figure.subplots(2, 1)
    limit = np.quantile(maps, 0.999)
    above.imshow(_tiled(mean_images, 10), cmap="gray_r")
    below.imshow(_tiled(np.where(maps == 0, np.nan, maps), 10), cmap="viridis", vmax=limit)
    size = maps.shape[-1]
    for axes, label in ((above, "mean image"), (below, "sway\n(blank: none)")):
        axes.set_ylabel(label, fontsize=8)
        axes.set(xticks=[], yticks=[])
        for digit in DIGITS[1:]:
            axes.axvline(digit * size - 0.5, color="black", linewidth=0.8)
    above.set_xticks((np.arange(10) + 0.5) * size, [str(digit) for digit in DIGITS])
    above.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    return _png(figure)


def robustness(table: Mapping[str, Sequence[float]]) -> bytes:
    """Accuracy against the severity of each corruption; severity 0 is the clean images."""
    figure = _figure(10, 2.6 * -(-len(table) // 4))
    panels = figure.subplots(-(-len(table) // 4), 4, sharex=True, sharey=True, squeeze=False)
    for axes in panels.flat[len(table) :]:
        axes.set_axis_off()
    for axes, (name, accuracies) in zip(panels.flat, table.items(), strict=False):
        axes.plot(range(len(accuracies)), 100 * np.array(accuracies), "o-", color=BLUE)
        axes.set(title=name, ylim=(0, 102), xticks=range(len(accuracies)))
        axes.grid(alpha=0.3)
    for axes in panels[-1]:
        axes.set_xlabel("severity (0: clean)")
    for axes in panels[:, 0]:
        axes.set_ylabel("right (%)")
    return _png(figure)


def _tiled(images: np.ndarray, columns: int) -> np.ndarray:
    """Images [n, height, width] side by side in rows, as one; what is left over is blank.

    One picture is drawn many times faster than a hundred axes.
    """
    count, height, width = images.shape
    rows = -(-count // columns)
    blank = np.full((rows * columns - count, height, width), np.nan)
    cells = np.concatenate([images, blank]).reshape((rows, columns, height, width))
    return cells.swapaxes(1, 2).reshape((rows * height, columns * width))


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=130, layout="constrained")


def _band(axes: Axes, epochs: Sequence[int], values: np.ndarray, color: str, label: str) -> None:
    """The mean of values [epochs, seeds], in a band from the lowest to the highest seed."""
    axes.plot(epochs, values.mean(axis=1), "o-", color=color, label=label, markersize=4)
    if values.shape[1] > 1:
        low, high = values.min(axis=1), values.max(axis=1)
        axes.fill_between(epochs, low, high, color=color, alpha=0.2, linewidth=0)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
