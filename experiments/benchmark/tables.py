"""The results of the benchmark as tables and a figure."""

from pathlib import Path
from typing import Any

import jinja2
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

TEMPLATE = Path(__file__).with_name("tables.md.jinja")
TARGETS = (0.9838, 0.99)
EPOCH = 60_000

LABELS = {
    "ours": "mnist_flax, reference recipe",
    "ours_default": "mnist_flax, default preset",
    "ours_quick": "mnist_flax, quick preset",
    "ours_quick_again": "mnist_flax, quick preset, compiled by an earlier run",
    "keras_tensorflow": "Keras on TensorFlow",
    "torch": "PyTorch",
    "torch_channels_last": "PyTorch, channels last",
    "torch_compiled": "PyTorch, `torch.compile`",
    "keras_jax": "Keras on JAX",
    "flax_plain": "Flax, plain",
    "ours_bfloat16": "mnist_flax, reference recipe, bfloat16",
    "torch_bfloat16": "PyTorch, channels last, bfloat16",
    "torch_compiled_bfloat16": "PyTorch, `torch.compile`, channels last, bfloat16",
    "keras_tensorflow_bfloat16": "Keras on TensorFlow, bfloat16",
}
# The others are green.
COLORS = dict(zip(LABELS, ["#56B4E9", "#0072B2", "#CC79A7", "#D55E00", "#E69F00"], strict=False))


def markdown(result: dict[str, Any]) -> str:
    """The results as tables."""
    template = jinja2.Template(TEMPLATE.read_text(), keep_trailing_newline=True)
    targets = [f"{target:.2%}" for target in TARGETS]
    return template.render(result, labels=LABELS, targets=targets)


def draw(result: dict[str, Any], path: Path) -> None:
    """Draws the seconds per epoch, and the accuracy against seconds."""
    figure = Figure(figsize=(13, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = sorted(result["speed"]["peers"].items(), key=lambda item: -item[1]["epoch_seconds"])
    names = [LABELS[name].replace("`", "") for name, _ in rows]
    seconds = [row["epoch_seconds"] for _, row in rows]
    errors = [
        [row["epoch_seconds"] - EPOCH / row["fastest"] for _, row in rows],
        [EPOCH / row["slowest"] - row["epoch_seconds"] for _, row in rows],
    ]
    colors = ["#0072B2" if name.startswith("ours") else "#999999" for name, _ in rows]
    bars = left.barh(names, seconds, xerr=errors, color=colors, error_kw={"elinewidth": 1})
    left.bar_label(bars, [f"{value:.1f} s" for value in seconds], padding=8)
    left.set_xlim(right=1.4 * max(seconds))
    left.set_xlabel("seconds for 60,000 images (median and range)")
    left.set_title("An epoch of 28x28 images (default: 22x22), batch 128")
    if "accuracy" in result:
        _draw_accuracy(right, result["accuracy"])
    figure.savefig(path, dpi=110)


def _draw_accuracy(axes: Axes, part: dict[str, Any]) -> None:
    for name, row in part.items():
        color, label = COLORS.get(name, "#009E73"), LABELS[name].replace("`", "")
        for curve in row["curves"]:
            seconds = [point["seconds"] for point in curve]
            accuracy = [100 * point["test_accuracy"] for point in curve]
            axes.plot(seconds, accuracy, "o-", color=color, markersize=4, label=label)
            label = None  # one entry in the legend
    axes.axhline(100 * TARGETS[0], color="#666666", linestyle="--", linewidth=1)
    axes.annotate(
        "98.38 %", (1, 100 * TARGETS[0]), (4, 0), va="center", fontsize="small",
        xycoords=("axes fraction", "data"), textcoords="offset points",
    )  # fmt: skip
    axes.set(xscale="log", xlabel="seconds from the start of the process")
    axes.set(ylabel="test accuracy, %", title="Time to accuracy, one line per seed")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend(loc="lower right", fontsize="small")
