"""The figures of the report, each a PNG drawn from numbers.

The colors are Okabe and Ito's (https://jfly.uni-koeln.de/color), for color-blind readers too.
Error rates have a logarithmic scale, which keeps the last epochs apart.
"""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from skimage.util import montage

from mnist_flax.core.model import NUM_CLASSES
from mnist_flax.engine.seed_stats import per_seed
from mnist_flax.engine.workdir import MetricsRow
from mnist_flax.evaluate.metrics import Calibration, Misclassified

BLUE, ORANGE, GREEN, GRAY = "#0072B2", "#E69F00", "#009E73", "#666666"
SPLITS = {"train": GRAY, "validation": ORANGE, "test": BLUE}
CLASSES = range(NUM_CLASSES)
MAX_MISCLASSIFIED = 60


def curves(metrics: Sequence[MetricsRow]) -> bytes:
    """Loss, error rate and learning rate by epoch; of several seeds the mean and the range."""
    figure = _new_figure(10, 3.4)
    left, middle, right = figure.subplots(1, 3)
    epochs = [row["epoch"] for row in metrics]
    for split, color in SPLITS.items():
        for axes, name in ((left, f"{split}_loss"), (middle, f"{split}_accuracy")):
            if name in metrics[0]:
                values = np.array([per_seed(row[name]) for row in metrics])
                shown = values if axes is left else 100 * (1 - values)
                axes.plot(epochs, shown.mean(axis=1), "o-", color=color, label=split, markersize=4)
                low, high = shown.min(axis=1), shown.max(axis=1)
                axes.fill_between(epochs, low, high, color=color, alpha=0.2, linewidth=0)
    right.plot(epochs, [row["learning_rate"] for row in metrics], "o-", color=GREEN, markersize=4)
    right.set(xlabel="epoch", ylabel="learning rate (last step)", ylim=(0, None))
    for axes, label in ((left, "cross-entropy (nats)"), (middle, "error rate (%)")):
        axes.set(xlabel="epoch", ylabel=label, yscale="log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.legend()
    for axes in (left, middle, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    return _to_png(figure)


def confusion(matrix: Sequence[Sequence[int]]) -> bytes:
    """The confusion matrix. Correct predictions are shown, but not colored."""
    counts = np.array(matrix)
    errors = np.where(np.eye(len(counts), dtype=bool), 0, counts)
    figure = _new_figure(6, 5.4)
    axes = figure.subplots()
    colored = axes.imshow(errors, cmap="Oranges", vmin=0, vmax=max(1, errors.max()))
    for (row, column), count in np.ndenumerate(counts):
        if count:
            is_dark = row != column and count > 0.6 * errors.max()
            color = GRAY if row == column else "white" if is_dark else "black"
            axes.text(column, row, f"{count:,}", ha="center", va="center", color=color, fontsize=8)
    axes.set(xlabel="prediction", ylabel="label", xticks=CLASSES, yticks=CLASSES)
    integers = MaxNLocator(integer=True)
    figure.colorbar(colored, label="misclassified images", shrink=0.8, ticks=integers)
    return _to_png(figure)


def misclassified_grid(images: np.ndarray, misclassified: Sequence[Misclassified]) -> bytes:
    """The first `MAX_MISCLASSIFIED` images, uint8 [N, 28, 28, 1], in the order of the list."""
    shown = images[:MAX_MISCLASSIFIED, ..., 0]
    # The ink is 1 on a background of 0; above each image is space for two lines of text.
    cells = np.pad(shown / 255, ((0, 0), (14, 2), (3, 3)))
    height, width = cells.shape[1:]
    tiled = _tile(cells, columns=10)
    figure = _new_figure(10, 10 * tiled.shape[0] / tiled.shape[1])
    axes = figure.subplots()
    axes.set_axis_off()
    axes.imshow(tiled, cmap="gray_r", vmin=0, vmax=1)
    for index, image in enumerate(misclassified[: len(shown)]):
        row, column = divmod(index, 10)
        axes.text(
            (column + 0.5) * width, row * height + 13,
            f"{image['label']} as {image['prediction']}\n{image['confidence']:.0%}",
            ha="center", va="bottom", fontsize=8,
        )  # fmt: skip
    return _to_png(figure)


def reliability(calibration: Calibration) -> bytes:
    """The accuracy by confidence, and how many images have that confidence."""
    bins = calibration["bins"]
    centers = [(row["low"] + row["high"]) / 2 for row in bins]
    width = bins[0]["high"] - bins[0]["low"]
    figure = _new_figure(5, 4.6)
    above, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1]})
    above.plot([0, 1], [0, 1], "--", color=GRAY, label="perfect calibration")
    above.plot(
        [row["confidence"] for row in bins], [row["accuracy"] for row in bins], "o-", color=BLUE,
        label=f"this model (ECE {calibration['ece']:.4f})",
    )  # fmt: skip
    above.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    above.legend()
    below.bar(centers, [row["examples"] for row in bins], width=0.9 * width, color=BLUE)
    below.set(xlabel="confidence (probability of the prediction)", ylabel="images", yscale="log")
    for axes in (above, below):
        axes.grid(alpha=0.3)
    return _to_png(figure)


def filters(kernel: np.ndarray) -> bytes:
    """The filters of the first layer, float32 [3, 3, 1, channels]."""
    tiled = _tile(kernel[:, :, 0].transpose(2, 0, 1), columns=16, padding=1)
    figure = _new_figure(10, 10 * tiled.shape[0] / tiled.shape[1] + 0.2)
    axes = figure.subplots()
    axes.set_axis_off()
    limit = np.abs(kernel).max()
    colored = axes.imshow(tiled, cmap="PuOr", vmin=-limit, vmax=limit)
    figure.colorbar(colored, label="weight", fraction=0.02)
    return _to_png(figure)


def saliency(maps: np.ndarray, mean_images: np.ndarray) -> bytes:
    """The saliency map and the mean image of each class, float [10, 28, 28] both."""
    figure = _new_figure(10, 2.4)
    above, below = figure.subplots(2, 1)
    above.imshow(_tile(mean_images, NUM_CLASSES), cmap="gray_r")
    nonzero = np.where(maps == 0, np.nan, maps)
    below.imshow(_tile(nonzero, NUM_CLASSES), cmap="viridis", vmax=np.quantile(maps, 0.999))
    size = maps.shape[-1]
    for axes, label in ((above, "mean image"), (below, "saliency\n(blank: 0)")):
        axes.set_ylabel(label, fontsize=8)
        axes.set(xticks=[], yticks=[])
        for boundary in CLASSES[1:]:
            axes.axvline(boundary * size - 0.5, color="black", linewidth=0.8)
    above.set_xticks((np.arange(NUM_CLASSES) + 0.5) * size, [str(label) for label in CLASSES])
    above.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    return _to_png(figure)


def robustness(table: Mapping[str, Sequence[float]]) -> bytes:
    """The accuracy by severity of each corruption; severity 0 is without."""
    rows = -(-len(table) // 4)
    figure = _new_figure(10, 2.6 * rows)
    panels = figure.subplots(rows, 4, sharex=True, sharey=True, squeeze=False)
    for axes in panels.flat[len(table) :]:
        axes.set_axis_off()
    for axes, (name, accuracies) in zip(panels.flat, table.items(), strict=False):
        axes.plot(range(len(accuracies)), 100 * np.array(accuracies), "o-", color=BLUE)
        axes.set(title=name, ylim=(0, 102), xticks=range(len(accuracies)))
        axes.grid(alpha=0.3)
    figure.supxlabel("severity (0: clean)")
    figure.supylabel("accuracy (%)")
    return _to_png(figure)


def _tile(images: np.ndarray, columns: int, padding: int = 0) -> np.ndarray:
    """One image of many [N, height, width], which is drawn faster than many axes; NaN is blank."""
    shape = (-(-len(images) // columns), columns)
    return montage(images, fill=np.nan, grid_shape=shape, padding_width=padding)


def _new_figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=130, layout="constrained")


def _to_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
