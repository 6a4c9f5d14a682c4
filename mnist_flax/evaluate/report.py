"""The report on a run: one HTML page that needs no network, and all figures as JSON."""

import dataclasses
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from mnist_flax.core.config import Config
from mnist_flax.core.model import NUM_CLASSES, Params
from mnist_flax.engine import workdir
from mnist_flax.engine.environment import Environment, describe_machine
from mnist_flax.engine.files import read_json, write_json, write_text
from mnist_flax.engine.recipe import describe_recipe
from mnist_flax.engine.seed_stats import per_seed
from mnist_flax.engine.trained_model import TrainedModel
from mnist_flax.engine.workdir import MetricsRow, Summary
from mnist_flax.evaluate import charts, pages, pictures
from mnist_flax.evaluate.curves import draw_curves, thin
from mnist_flax.evaluate.metrics import Evaluation, Misclassified
from mnist_flax.evaluate.pad import has_pad, render_pad
from mnist_flax.evaluate.provenance import provenance, saved_at
from mnist_flax.evaluate.saliency import saliency_map

MAX_MISTAKES = 240  # that are shown
SALIENCY_IMAGES = 100  # of each class


@dataclasses.dataclass(frozen=True)
class Report:
    """What the page and TensorBoard show of a run."""

    config: Config
    parameters: int
    environment: Environment | None
    saved: datetime | None
    metrics: list[MetricsRow]
    summary: Summary | None
    evaluation: Evaluation
    mistakes: list[Misclassified]
    """The first `MAX_MISTAKES`, by their confidence."""
    images: np.ndarray
    """Theirs, uint8 [N, 28, 28, 1]."""
    mean_images: np.ndarray
    """Of each class, float [10, 28, 28]."""
    saliency: np.ndarray
    """The mean of each class, float [10, 28, 28], of the first network."""
    kernel: np.ndarray
    """Of the first network's first layer, float32 [3, 3, 1, channels]."""
    pad: Markup | None = None
    """A part of the page to draw a digit on."""


def make_report(
    folder: Path,
    trained: TrainedModel,
    images: np.ndarray,
    labels: np.ndarray,
    evaluation: Evaluation,
    summary: Summary | None = None,
) -> Report:
    """The report on networks evaluated on uint8 images [N, 28, 28, 1], labels int32 [N].

    Reads the files of the run as well; `summary` is for one that is not written yet.
    """
    mistakes = sorted(evaluation["misclassified"], key=lambda row: -row["confidence"])
    mistakes = mistakes[:MAX_MISTAKES]
    params = trained.first_params()
    mean_images, saliency = explain_classes(params, images, labels, trained.config)
    summary = summary or workdir.read_summary(folder)
    started_in = read_json(folder / workdir.ENVIRONMENT, Environment)
    return Report(
        config=workdir.read_config(folder) or trained.config,
        parameters=trained.num_parameters,
        environment=summary["environment"] if summary else started_in,
        saved=saved_at(folder, trained.step),
        metrics=workdir.read_metrics(folder),
        summary=summary,
        evaluation=evaluation,
        mistakes=mistakes,
        images=images[[row["index"] for row in mistakes]],
        mean_images=mean_images,
        saliency=saliency,
        kernel=np.asarray(params["Conv_0"]["kernel"]),
        pad=render_pad(trained) if has_pad(trained) else None,
    )


def explain_classes(
    params: Params, images: np.ndarray, labels: np.ndarray, config: Config
) -> tuple[np.ndarray, np.ndarray]:
    """Mean image and mean saliency map of each class, float [10, 28, 28] both; 0 without images."""
    mean_images, maps = np.zeros((2, NUM_CLASSES, *images.shape[1:3]))
    for label in range(NUM_CLASSES):
        selected = images[labels == label][:SALIENCY_IMAGES]
        if count := len(selected):
            # Always as many, so that one program does for all classes.
            padding = ((0, SALIENCY_IMAGES - count), (0, 0), (0, 0), (0, 0))
            padded = np.pad(selected, padding)
            maps[label] = np.asarray(saliency_map(params, padded, config))[:count].mean(axis=0)
            mean_images[label] = selected[..., 0].mean(axis=0)
    return mean_images, maps


def write_report(folder: Path, report: Report) -> None:
    """Writes `index.html` and `evaluation.json` into a folder.

    Raises an OSError if the folder cannot be written.
    """
    folder.mkdir(exist_ok=True)
    write_json(folder / "evaluation.json", report.evaluation)
    write_text(folder / "index.html", render_html(report))


def render_html(report: Report) -> str:
    """The page."""
    evaluation, config = report.evaluation, report.config
    highest = float(np.quantile(report.saliency, 0.999))
    values: dict[str, Any] = {
        "title": f"mnist_flax on {pages.dataset_title(evaluation['dataset'])}",
        "dataset": pages.dataset_title(evaluation["dataset"]),
        "recipe": describe_recipe(config),
        "networks": len(per_seed(evaluation["accuracy"])),
        "confusions": _format_confusions(evaluation, 3),
        "gallery": [
            (row, pictures.to_data_url(pictures.ink(image[..., 0])))
            for row, image in zip(report.mistakes, report.images, strict=True)
        ],
        "confusion": charts.confusion_chart(evaluation["confusion"]),
        "curves": draw_curves(report.metrics),
        "rows": thin(report.metrics),
        "is_augmented": _is_augmented(config),
        "reliability": charts.reliability_chart(evaluation["calibration"]),
        "confidence": charts.confidence_chart(evaluation["calibration"]),
        "classes": [
            (pictures.to_data_url(pictures.ink(mean)), pictures.to_data_url(heat))
            for mean, values in zip(report.mean_images, report.saliency, strict=True)
            for heat in [pictures.heat(values, highest)]
        ],
        "unseen": _unseen_border(report.saliency),
        "filters": pictures.to_data_url(pictures.filters(report.kernel)),
        "filter_count": report.kernel.shape[-1],
        "robustness": {
            kind: charts.severity_chart(kind, accuracies)
            for kind, accuracies in evaluation.get("robustness", {}).items()
        },
        "machine": describe_machine(report.environment or {}),
        "provenance": provenance(config, report.environment, report.saved),
        "config_values": dataclasses.asdict(config),
    }
    names = ("parameters", "metrics", "summary", "evaluation", "pad")
    values |= {name: getattr(report, name) for name in names}
    return pages.render_page("report.html.jinja", **values)


def draw_pictures(report: Report) -> dict[str, np.ndarray]:
    """Pictures for TensorBoard, RGB, by name."""
    drawn = {
        "confusion": pictures.confusion(report.evaluation["confusion"]),
        "saliency": pictures.saliency(report.saliency, report.mean_images),
        "filters": pictures.filters_on_white(report.kernel),
    }
    if report.mistakes:
        drawn["misclassified"] = pictures.misclassified_grid(report.images, report.mistakes)
    return drawn


def summary_lines(evaluation: Evaluation) -> list[str]:
    """The most important results, for a terminal."""
    networks = len(evaluation["seeds"])
    low, high = evaluation["accuracy_ci95"]
    lines = [f"by the mean probability of the {networks} networks:"] if networks > 1 else []
    lines.append(
        f"{len(evaluation['misclassified']):,} of {evaluation['examples']:,} {evaluation['split']} "
        f"images misclassified (accuracy {100 * low:.2f} to {high:.2%}, 95% interval)"
    )
    if evaluation["top_confusions"]:
        lines.append(f"most often confused: {_format_confusions(evaluation, 4)}")
    return lines


def _format_confusions(evaluation: Evaluation, count: int) -> str:
    return ", ".join(
        f"{row['label']} as {row['prediction']} ({row['count']})"
        for row in evaluation["top_confusions"][:count]
    )


def _is_augmented(config: Config) -> bool:
    """Whether the training images are moved or distorted."""
    names = ("shift_pixels", "rotation_degrees", "zoom", "shear", "elastic_pixels")
    return any(getattr(config, name) for name in names)


def _unseen_border(saliency: np.ndarray) -> bool:
    """Whether there are pixels that change no prediction."""
    return bool((saliency == 0).all(axis=0).any())
