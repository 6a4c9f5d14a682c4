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


def gallery(
    images: np.ndarray, mistakes: Sequence[Mapping[str, Any]], columns: int = 10, rows: int = 6
) -> bytes:
    """The worst mistakes: uint8 [n, 28, 28, 1], in the order of `mistakes`."""
    shown = min(len(mistakes), columns * rows)
    used = max(1, -(-shown // columns))
    figure = _figure(10, 1.35 * used + 0.1)
    panels = figure.subplots(used, columns, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for axes, image, mistake in zip(panels.flat, images[:shown], mistakes, strict=False):
        axes.imshow(image[..., 0], cmap="gray_r", vmin=0, vmax=255)
        axes.set_title(
            f"{mistake['label']}, not {mistake['answer']}\n{mistake['probability']:.0%} sure",
            fontsize=8,
        )
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
    count = kernel.shape[-1]
    columns = 16
    rows = -(-count // columns)
    figure = _figure(10, 0.62 * rows + 0.4)
    panels = figure.subplots(rows, columns, squeeze=False)
    limit = np.abs(kernel).max()
    for axes in panels.flat:
        axes.set_axis_off()
    pictures = [
        axes.imshow(kernel[:, :, 0, index], cmap="PuOr", vmin=-limit, vmax=limit)
        for index, axes in enumerate(panels.flat[:count])
    ]
    figure.colorbar(pictures[0], ax=panels, label="weight", fraction=0.02)
    return _png(figure)


def saliency(maps: np.ndarray, mean_images: np.ndarray) -> bytes:
    """How much each pixel sways the answer, for each digit: float [10, 28, 28] each."""
    figure = _figure(10, 2.4)
    panels = figure.subplots(2, 10)
    limit = np.quantile(maps, 0.999)
    for digit, (above, below) in enumerate(panels.T):
        above.imshow(mean_images[digit], cmap="gray_r")
        above.set_title(str(digit), fontsize=10)
        below.imshow(np.where(maps[digit] == 0, np.nan, maps[digit]), cmap="viridis", vmax=limit)
    panels[0, 0].set_ylabel("mean image", fontsize=8)
    panels[1, 0].set_ylabel("sway\n(blank: none)", fontsize=8)
    for axes in panels.flat:
        axes.set(xticks=[], yticks=[])
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
