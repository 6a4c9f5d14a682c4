"""The learning curves of a run, and of several runs in one chart."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from mnist_flax.engine.seed_stats import mean_of, per_seed
from mnist_flax.engine.workdir import MetricsRow
from mnist_flax.evaluate.charts import Line, line_chart
from mnist_flax.evaluate.svg import Format, linear_ticks, log_ticks

SPLITS = {"train": "training", "validation": "validation", "test": "test"}
MAX_ROWS = 200  # that are shown
COLORS = 8  # of runs, in the style sheet


def thin(metrics: Sequence[MetricsRow], at_most: int = MAX_ROWS) -> list[MetricsRow]:
    """At most so many rows, evenly spaced, and always the last one."""
    stride = -(-len(metrics) // at_most) or 1
    return [row for index, row in enumerate(metrics) if (len(metrics) - 1 - index) % stride == 0]


def draw_curves(metrics: Sequence[MetricsRow]) -> dict[str, Markup]:
    """Loss, error rate and learning rate by epoch; of several seeds the mean and the range."""
    rows = thin(metrics)
    if not rows:
        return {}
    splits = [split for split in SPLITS if f"{split}_loss" in rows[0]]
    losses = [_line(rows, f"{x}_loss", SPLITS[x], x) for x in splits]
    errors = [_line(rows, f"{x}_accuracy", SPLITS[x], x) for x in splits if x != "train"]
    rates = [row["learning_rate"] for row in rows]
    epochs = [row["epoch"] for row in rows]
    rate = Line("learning rate", "rate", epochs, rates)
    return {
        "loss": _log_chart("Loss", losses, _plain, "{:.4f}".format),
        "error": _log_chart("Error rate", errors, _plain_percent, "{:.2%}".format),
        "rate": line_chart(
            f"Learning rate by epoch: {rates[0]:.3g} at first, {rates[-1]:.3g} at last.",
            [rate],
            linear_ticks(min(0.0, *rates), max(rates)),
            _plain,
            "{:.3g}".format,
        ),
    }


def run_styles(names: Iterable[str]) -> dict[str, str]:
    """The class in the style sheet for each of several runs."""
    return {name: f"run{index % COLORS}" for index, name in enumerate(names)}


def overlay_curves(runs: Mapping[str, Sequence[MetricsRow]]) -> dict[str, Markup]:
    """Loss and error rate on the test images by epoch, a line for each run with a name."""
    shown = {name: thin(metrics) for name, metrics in runs.items() if metrics}
    if not shown:
        return {}
    styles = run_styles(runs)
    losses = [_line(rows, "test_loss", name, styles[name]) for name, rows in shown.items()]
    errors = [_line(rows, "test_accuracy", name, styles[name]) for name, rows in shown.items()]
    return {
        "loss": _log_chart("Loss", losses, _plain, "{:.4f}".format),
        "error": _log_chart("Error rate", errors, _plain_percent, "{:.2%}".format),
    }


def _line(rows: Sequence[MetricsRow], field: str, name: str, style: str) -> Line:
    """The means over the seeds and their range; an error rate for an accuracy."""
    values: list[Any] = [dict(row)[field] for row in rows]
    if field.endswith("_accuracy"):
        means = [1 - mean_of(value) for value in values]
        seeds = [[1 - accuracy for accuracy in per_seed(value)] for value in values]
    else:
        means, seeds = [mean_of(value) for value in values], [per_seed(x) for x in values]
    ranges = [(min(value), max(value)) for value in seeds] if len(seeds[0]) > 1 else None
    return Line(name, style, [row["epoch"] for row in rows], means, ranges)


def _log_chart(what: str, lines: Sequence[Line], tick_text: Format, value_text: Format) -> Markup:
    ends = [end for line in lines for pair in line.band or [] for end in pair]
    ticks = log_ticks([*ends, *(value for line in lines for value in line.y)])
    results = ", ".join(f"{line.name} {value_text(line.y[-1])}" for line in lines)
    label = f"{what} by epoch, on a logarithmic scale. At last: {results}."
    return line_chart(label, lines, ticks, tick_text, value_text, log=True)


def _plain(value: float) -> str:
    return f"{value:.4g}"


def _plain_percent(share: float) -> str:
    return f"{100 * share:.4g}%"
