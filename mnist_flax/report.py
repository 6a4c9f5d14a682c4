"""What a person looks at: the curves, one page, and TensorBoard's event files.

Made from the metrics and the summary alone; nothing here trains or evaluates.
"""

import base64
import html
import io
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from mnist_flax.spread import mean_of, percent, seeds_of

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif }}
body {{ max-width: 52rem; margin: 2rem auto; padding: 0 1rem }}
img {{ max-width: 100% }}
table {{ border-collapse: collapse; font-size: 90%; display: block; overflow-x: auto }}
td, th {{ padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top }}
td {{ border-top: 1px solid #ddd; white-space: nowrap }}
td.long {{ white-space: normal; overflow-wrap: anywhere }}
</style>
<h1>{title}</h1>
<p>{claim}</p>
<img alt="Loss and error rate per epoch" src="data:image/png;base64,{curves}">
<h2>Epochs</h2>
{epochs}
<h2>Summary</h2>
{summary}
<h2>Config</h2>
{config}
</html>
"""


class TensorBoard:
    """Writes metrics as TensorBoard scalars, one event file per process."""

    def __init__(self, folder: Path, metrics: Sequence[Mapping[str, Any]]):
        """Starts afresh from `metrics`, so that a resumed run shows no point twice."""
        from tensorboardX import SummaryWriter

        shutil.rmtree(folder, ignore_errors=True)
        self._writer = SummaryWriter(str(folder))
        for line in metrics:
            self.write(line)

    def write(self, line: Mapping[str, Any]) -> None:
        """Adds the numbers of one line of `metrics.jsonl` at its step."""
        for name, value in line.items():
            if isinstance(value, (int, float, Mapping)) and name != "step":
                self._writer.add_scalar(name, mean_of(value), line["step"])
            if isinstance(value, Mapping):
                self._writer.add_scalar(f"{name}_std", value["std"], line["step"])
        self._writer.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()


def write_report(
    folder: Path,
    config: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
) -> None:
    """Writes `curves.png` and the self-contained `index.html` into a folder."""
    folder.mkdir(exist_ok=True)
    curves = draw_curves(metrics)
    (folder / "curves.png").write_bytes(curves)
    page = PAGE.format(
        title=f"mnist_flax on {html.escape(summary['dataset'])}",
        claim=(
            f"{percent(summary['test_accuracy'])} of {summary['test_examples']:,} test images "
            f"right, after {summary['epochs']} epochs, with {summary['parameters']:,} parameters"
            f"{_over_seeds(summary)}."
        ),
        curves=base64.b64encode(curves).decode(),
        epochs=_table(metrics[0], [line.values() for line in metrics]),
        summary=_table(("", ""), _flat(summary)),
        config=_table(("", ""), _flat(config)),
    )
    (folder / "index.html").write_text(page, encoding="utf-8")


def draw_curves(metrics: Sequence[Mapping[str, Any]]) -> bytes:
    """A PNG of loss and of error rate against the epoch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [line["epoch"] for line in metrics]
    styles = {"train": "C7", "validation": "C1", "test": "C0"}
    for split, color in styles.items():
        if f"{split}_loss" in metrics[0]:
            losses = [seeds_of(line[f"{split}_loss"]) for line in metrics]
            _draw(left, epochs, np.array(losses), color, split)
        if f"{split}_accuracy" in metrics[0]:
            right_answers = np.array([seeds_of(line[f"{split}_accuracy"]) for line in metrics])
            _draw(right, epochs, 100 * (1 - right_answers), color, split)
    for axes, ylabel in ((left, "cross-entropy (nats)"), (right, "wrong answers (%)")):
        axes.set(xlabel="epoch", ylabel=ylabel, ylim=(0, None))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
        axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw(axes: Any, epochs: Sequence[int], values: np.ndarray, color: str, label: str) -> None:
    """The mean of values [epochs, seeds], in a band from the lowest to the highest seed."""
    axes.plot(epochs, values.mean(axis=1), "o-", color=color, label=label)
    if values.shape[1] > 1:
        axes.fill_between(
            epochs, values.min(axis=1), values.max(axis=1), color=color, alpha=0.2, linewidth=0
        )


def _over_seeds(summary: Mapping[str, Any]) -> str:
    seeds = len(seeds_of(summary["test_accuracy"]))
    return f": mean and standard deviation of {seeds} seeds" if seeds > 1 else ""


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}: ")
        else:
            yield prefix + name.replace("_", " "), value


def _table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    def cell(value: Any) -> str:
        if isinstance(value, Mapping):
            value = f"{value['mean']:.5g} ± {value['std']:.2g}"
        if isinstance(value, float):
            value = f"{value:.5g}"
        text = value if isinstance(value, str) else json.dumps(value)
        return f"<td{' class=long' if len(text) > 40 else ''}>{html.escape(text)}</td>"

    head = "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in header)
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
