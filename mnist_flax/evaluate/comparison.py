"""Runs on the same test images, each compared with the first, as text and as a page."""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mnist_flax.core.config import UserError
from mnist_flax.core.inference import loss_and_accuracy
from mnist_flax.data.dataset import load_dataset
from mnist_flax.engine import workdir
from mnist_flax.engine.seed_stats import aggregate, mean_of
from mnist_flax.engine.trained_model import TrainedModel, load_trained
from mnist_flax.engine.workdir import MetricsRow
from mnist_flax.evaluate import charts, pages, pictures
from mnist_flax.evaluate.curves import overlay_curves, run_styles
from mnist_flax.evaluate.leaderboard import (
    RunRow,
    accuracy_interval,
    describe_rows,
    read_row,
    sort_rows,
)
from mnist_flax.evaluate.significance import ChangedImage, RunComparison, compare_logits

MAX_IMAGES = 480  # that are shown, of all comparisons


@dataclasses.dataclass(frozen=True)
class RunGroup:
    """Runs that were evaluated on the same images, in the order of the user."""

    dataset: str
    rows: list[RunRow]
    """What their checkpoints achieve; the names are A, B, ..."""
    metrics: list[list[MetricsRow]]
    comparisons: list[RunComparison]
    """Of each but the first with the first."""
    images: np.ndarray
    """The test images, uint8 [N, 28, 28, 1]."""


def compare_folders(
    folders: Sequence[Path],
    data_dir: Path | None,
    manual_dir: Path | None,
    log: Callable[[str], None],
) -> RunGroup:
    """Evaluates trained runs on the test images of their dataset, and compares them.

    If two share two seeds or more, only those are compared, in pairs. Raises a UserError if one
    holds no trained run or a damaged file, or they are of different datasets.
    """
    runs = [load_trained(folder) for folder in folders]
    dataset = runs[0].config.dataset
    for folder, run in zip(folders, runs, strict=True):
        if run.config.dataset != dataset:
            raise UserError(
                f"{folders[0]} is a run on {dataset}, {folder} on {run.config.dataset}: they "
                "cannot be compared"
            )
    images, labels = load_dataset(dataset, data_dir, manual_dir, log=log).test
    logits = [run.logits(images) for run in runs]
    evaluated = list(zip(folders, runs, logits, strict=True))
    return RunGroup(
        dataset=dataset,
        rows=[
            _evaluated_row(index, folder, run, x, labels)
            for index, (folder, run, x) in enumerate(evaluated)
        ],
        metrics=[workdir.read_metrics(folder) for folder in folders],
        comparisons=[
            _compare(evaluated[0], other, labels, (run_letter(0), run_letter(index)))
            for index, other in enumerate(evaluated[1:], start=1)
        ],
        images=images,
    )


def _evaluated_row(
    index: int, folder: Path, run: TrainedModel, logits: np.ndarray, labels: np.ndarray
) -> RunRow:
    """The row of a run, with what its latest checkpoint achieves."""
    scores = loss_and_accuracy(logits, labels)
    accuracy = aggregate(scores["accuracy"])
    return {
        **read_row(folder, run.config, run_letter(index)),
        "epoch": run.epochs,
        "parameters": run.num_parameters,
        "test_accuracy": accuracy,
        "interval95": accuracy_interval(accuracy, run.config.dataset),
        "test_loss": aggregate(scores["loss"]),
    }


def run_letter(index: int) -> str:
    """A, B, ..., Z, A1, B1, ..."""
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[index % 26] + (str(index // 26) if index >= 26 else "")


def _compare(
    a: tuple[Path, TrainedModel, np.ndarray],
    b: tuple[Path, TrainedModel, np.ndarray],
    labels: np.ndarray,
    names: tuple[str, str],
) -> RunComparison:
    (folder_a, run_a, logits_a), (folder_b, run_b, logits_b) = a, b
    shared = sorted(set(run_a.seeds) & set(run_b.seeds))
    paired = len(shared) > 1
    seeds_a, seeds_b = (shared, shared) if paired else (run_a.seeds, run_b.seeds)
    chosen_a = logits_a[np.array(seeds_a) - run_a.config.seed]
    chosen_b = logits_b[np.array(seeds_b) - run_b.config.seed]
    return {
        "a": {"workdir": str(folder_a), "step": run_a.step, "seeds": seeds_a},
        "b": {"workdir": str(folder_b), "step": run_b.step, "seeds": seeds_b},
        **compare_logits(chosen_a, chosen_b, labels, paired, names),
    }


def describe_group(group: RunGroup) -> str:
    """The leaderboard, and each run compared with the first, for a terminal."""
    first, *others = (row["name"] for row in group.rows)
    named: list[RunRow] = [
        {**row, "name": f"{row['name']}  {row['workdir']}"} for row in sort_rows(group.rows)
    ]
    lines = describe_rows(named)
    for name, result in zip(others, group.comparisons, strict=True):
        lines += [
            "",
            f"{name} - {first}  {100 * result['difference']:+.3f} points; 95% over seeds "
            f"{format_interval(result['interval95_over_seeds'])}, over test images "
            f"{format_interval(result['interval95_over_images'])}; McNemar's exact test "
            f"p = {result['mcnemar_p']:.3g}",
            result["verdict"],
        ]
    return "\n".join(lines)


def format_interval(interval: Sequence[float] | None) -> str:
    """An interval of a difference, in points."""
    if interval is None:
        return "unknown: it takes more seeds"
    return f"{100 * interval[0]:+.3f} to {100 * interval[1]:+.3f} points"


def render_comparison(group: RunGroup) -> str:
    """The page."""
    rows = sort_rows(group.rows)
    first, *others = (row["name"] for row in group.rows)
    shown = max(1, MAX_IMAGES // (2 * len(others)))
    title = f"{len(rows)} runs on {pages.dataset_title(group.dataset)}"
    draw = functools.cache(lambda index: _draw_image(group.images, index))

    def show(changed: Sequence[ChangedImage]) -> list[tuple[ChangedImage, str]]:
        return [(image, draw(image["index"])) for image in changed[:shown]]

    pairs: list[dict[str, Any]] = [
        {
            "name": name,
            "result": result,
            "only": [
                (winner, loser, prediction, changed, show(changed))
                for winner, loser, prediction, changed in (
                    (first, name, "prediction_b", result["only_a_correct"]),
                    (name, first, "prediction_a", result["only_b_correct"]),
                )
            ],
        }
        for name, result in zip(others, group.comparisons, strict=True)
    ]
    return pages.render_page(
        "comparison.html.jinja",
        title=title,
        first=first,
        rows=rows,
        places=_shorten_paths(rows),
        examples=len(group.images),
        intervals=_draw_intervals(rows),
        curves=overlay_curves(
            {row["name"]: x for row, x in zip(group.rows, group.metrics, strict=True)}
        ),
        styles=run_styles(row["name"] for row in group.rows),
        pairs=pairs,
    )


def _shorten_paths(rows: Sequence[RunRow]) -> dict[str, str]:
    """The workdir of each run without the folders that all have in common."""
    paths = {row["name"]: Path(row["workdir"]).absolute() for row in rows}
    common = os.path.commonpath([path.parent for path in paths.values()])
    return {name: path.relative_to(common).as_posix() for name, path in paths.items()}


def _draw_image(images: np.ndarray, index: int) -> str:
    return pictures.to_data_url(pictures.ink(images[index, ..., 0]))


def _draw_intervals(rows: Sequence[RunRow]) -> Any:
    points = [
        (row["name"], mean_of(accuracy), row["interval95"])
        for row in rows
        if (accuracy := row["test_accuracy"]) is not None and row["interval95"]
    ]
    names = ", ".join(f"{name} {value:.2%}" for name, value, _ in points)
    label = f"Accuracy and its 95% interval, the best first: {names}."
    return charts.interval_chart(label, points) if points else None
