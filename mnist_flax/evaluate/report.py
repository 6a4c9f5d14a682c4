"""The report on a run: figures, and one HTML page that holds them and needs no network."""

import base64
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import numpy as np

from mnist_flax.core.config import Config
from mnist_flax.core.inference import saliency_map
from mnist_flax.core.model import NUM_CLASSES
from mnist_flax.engine.files import atomic_path, write_json, write_text
from mnist_flax.engine.seed_stats import format_percent, per_seed
from mnist_flax.engine.trained_model import TrainedModel
from mnist_flax.engine.workdir import MetricsRow, Summary
from mnist_flax.evaluate import plots
from mnist_flax.evaluate.metrics import Evaluation


def make_figures(
    trained: TrainedModel,
    images: np.ndarray,
    labels: np.ndarray,
    metrics: Sequence[MetricsRow],
    evaluation: Evaluation,
) -> dict[str, bytes]:
    """The figures of the report as PNG; saliency and filters are those of the first network.

    The images, uint8 [N, 28, 28, 1], and labels, int32 [N], are those of the evaluation. The
    saliency is averaged over at most 100 images of each class.
    """
    params, misclassified = trained.first_params(), evaluation["misclassified"]
    classes = [images[labels == label][:100] for label in range(NUM_CLASSES)]
    maps = [np.asarray(saliency_map(params, x, trained.config)).mean(axis=0) for x in classes]
    mean_images = [x[..., 0].mean(axis=0) for x in classes]
    figures = {
        "confusion": plots.confusion(evaluation["confusion"]),
        "reliability": plots.reliability(evaluation["calibration"]),
        "saliency": plots.saliency(np.stack(maps), np.stack(mean_images)),
        "filters": plots.filters(np.asarray(params["Conv_0"]["kernel"])),
    }
    if misclassified:
        selected = images[[image["index"] for image in misclassified]]
        figures["misclassified"] = plots.misclassified_grid(selected, misclassified)
    if metrics:
        figures["curves"] = plots.curves(metrics)
    if "robustness" in evaluation:
        figures["robustness"] = plots.robustness(evaluation["robustness"])
    return figures


def write_report(
    folder: Path,
    config: Config,
    metrics: Sequence[MetricsRow],
    summary: Summary | None,
    evaluation: Evaluation,
    figures: Mapping[str, bytes],
) -> None:
    """Writes `index.html`, `evaluation.json` and the figures as PNG files into a folder.

    Raises an OSError if the folder cannot be written.
    """
    folder.mkdir(exist_ok=True)
    for name, figure in figures.items():
        with atomic_path(folder / f"{name}.png") as path:
            path.write_bytes(figure)
    write_json(folder / "evaluation.json", evaluation)
    page = render_html(config, metrics, summary, evaluation, figures)
    write_text(folder / "index.html", page)


def render_html(
    config: Config,
    metrics: Sequence[MetricsRow],
    summary: Summary | None,
    evaluation: Evaluation,
    figures: Mapping[str, bytes],
) -> str:
    """The page, which includes the figures."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": format_percent, "text": format_value}
    template = Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        config=dataclasses.asdict(config),
        metrics=metrics,
        summary=summary,
        evaluation=evaluation,
        networks=len(per_seed(evaluation["accuracy"])),
        interval=_format_interval(evaluation),
        confusions=_format_confusions(evaluation, 3),
        max_misclassified=plots.MAX_MISCLASSIFIED,
        figures={name: base64.b64encode(figure).decode() for name, figure in figures.items()},
    )


def summary_lines(evaluation: Evaluation) -> list[str]:
    """The most important results, for a terminal."""
    networks = len(evaluation["seeds"])
    lines = [f"by the mean probability of the {networks} networks:"] if networks > 1 else []
    lines.append(
        f"{len(evaluation['misclassified']):,} of {evaluation['examples']:,} {evaluation['split']} "
        f"images misclassified (accuracy {_format_interval(evaluation)}, 95% interval)"
    )
    if evaluation["top_confusions"]:
        lines.append(f"most often confused: {_format_confusions(evaluation, 4)}")
    return lines


def format_value(value: object) -> str:
    """A value as the text of a table cell."""
    if isinstance(value, dict) and value.get("std") is not None:
        return f"{value['mean']:.5g} ± {value['std']:.2g}"
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list):
        return ", ".join(map(format_value, value))
    return value if isinstance(value, str) else json.dumps(value)


def _format_interval(evaluation: Evaluation) -> str:
    low, high = evaluation["accuracy_ci95"]
    return f"{100 * low:.2f} to {high:.2%}"


def _format_confusions(evaluation: Evaluation, count: int) -> str:
    return ", ".join(
        f"{row['label']} as {row['prediction']} ({row['count']})"
        for row in evaluation["top_confusions"][:count]
    )
