"""The report: one page, without any network, on how good a run is and where it fails."""

import base64
import html
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mnist_flax import plots
from mnist_flax.inference import sway
from mnist_flax.records import is_figure
from mnist_flax.spread import percent, seeds_of
from mnist_flax.trained import Trained
from mnist_flax.workdir import replacing, write_text

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff }
body { max-width: 64rem; margin: 2rem auto; padding: 0 1rem }
h1 { margin-bottom: 0 }
h2 { margin-top: 2.5rem }
.claim { font-size: 1.25rem; margin-top: .3rem }
img { max-width: 100%; height: auto }
.wide { overflow-x: auto }
.wide img { min-width: 40rem }
table { border-collapse: collapse; font-size: 90%; display: block; overflow-x: auto }
td, th { padding: .2rem .8rem .2rem 0; text-align: right; vertical-align: top }
td:first-child, th:first-child, td.text { text-align: left }
td { border-top: 1px solid #ddd; white-space: nowrap }
td.long { white-space: normal; overflow-wrap: anywhere; text-align: left }
"""

WIDE = {"mistakes", "saliency", "filters", "robustness", "curves"}

# How many images of each class the saliency is averaged over.
SWAY_IMAGES = 100


def draw(
    trained: Trained,
    images: np.ndarray,
    labels: np.ndarray,
    metrics: Sequence[Mapping[str, Any]],
    evaluation: Mapping[str, Any],
) -> dict[str, bytes]:
    """The report's pictures as PNG by name; of several networks, the first one's insides.

    Args:
      trained: the networks.
      images: uint8 [N, 28, 28, 1], the evaluated ones.
      labels: int32 [N].
      metrics: the lines of `metrics.jsonl`.
      evaluation: what `metrics.assess` says of their answers; may have `robustness`.
    """
    mistakes = evaluation["mistakes"]
    wrong = images[[mistake["index"] for mistake in mistakes]]
    params = trained.first_params()
    chosen = [np.flatnonzero(labels == digit)[:SWAY_IMAGES] for digit in plots.DIGITS]
    maps = [np.asarray(sway(params, images[c], trained.config)).mean(axis=0) for c in chosen]
    means = [images[c, ..., 0].mean(axis=0) for c in chosen]
    pictures = {
        "confusion": plots.confusion(evaluation["confusion"]),
        "reliability": plots.reliability(evaluation["calibration"]),
        "saliency": plots.saliency(np.stack(maps), np.stack(means)),
        "filters": plots.filters(np.asarray(params["Conv_0"]["kernel"])),
    }
    if mistakes:
        pictures["mistakes"] = plots.gallery(wrong, mistakes)
    if metrics:
        pictures["curves"] = plots.curves(metrics)
    if "robustness" in evaluation:
        pictures["robustness"] = plots.robustness(evaluation["robustness"])
    return pictures


def write_report(
    folder: Path,
    config: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    pictures: Mapping[str, bytes],
) -> None:
    """Writes `index.html`, `evaluation.json` and each picture as PNG into a folder."""
    folder.mkdir(exist_ok=True)
    for name, picture in pictures.items():
        with replacing(folder / f"{name}.png") as path:
            path.write_bytes(picture)
    write_text(folder / "evaluation.json", json.dumps(evaluation, indent=2) + "\n")
    write_text(folder / "index.html", page(config, metrics, summary, evaluation, pictures))


def in_short(evaluation: Mapping[str, Any]) -> list[str]:
    """The evaluation in a few lines, for a terminal."""
    low, high = (f"{100 * end:.2f}" for end in evaluation["wilson95"])
    wrong = len(evaluation["mistakes"])
    lines = [
        f"{wrong:,} of {evaluation['examples']:,} {evaluation['split']} images wrong "
        f"(95%: {low} to {high}% right)"
    ]
    if evaluation["top_confusions"]:
        lines.append("most often took " + _confusions(evaluation, 5))
    return lines


def page(
    config: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    pictures: Mapping[str, bytes],
) -> str:
    """The page as HTML, with its pictures inside."""
    title = f"mnist_flax on {html.escape(evaluation['dataset'])}"
    parts = [
        f"<h1>{title}</h1>",
        f'<p class="claim">{html.escape(claim(summary, evaluation))}</p>',
        *_section("Where it fails", _mistakes_text(evaluation), pictures, "mistakes"),
        *_section(
            "Which digits it takes for which",
            "Rows are the true digits, columns the answers. Right answers stand on the diagonal.",
            pictures,
            "confusion",
        ),
        _table(
            ("digit", "images", "recall", "precision", "F1"),
            (
                (row["class"], row["examples"], row["recall"], row["precision"], row["f1"])
                for row in evaluation["per_class"]
            ),
        ),
        *_section("How sure it was", _calibration_text(evaluation), pictures, "reliability"),
        *_section(
            "What it looks at",
            "Above, the mean image of each digit; below, how much each pixel sways the answer: the "
            "size of the gradient, averaged. Where it is blank, nothing the image shows can change "
            "the answer.",
            pictures,
            "saliency",
        ),
        *_section(
            "Its first layer",
            "Each of its 3x3 filters.",
            pictures,
            "filters",
        ),
        *_section(
            "How robust it is",
            "The same images made worse, from severity 1 to 5; 0 is as they are.",
            pictures,
            "robustness",
        ),
        *_mnist_c(evaluation.get("mnist_c", {})),
        *_section("How it learned", "", pictures, "curves"),
    ]
    if metrics:
        parts.append(_table(metrics[0], (line.values() for line in metrics)))
    for name, values in (("Summary", summary), ("Config", config)):
        rows = ((name, _text(value)) for name, value in _flat(values))
        parts += [f"<h2>{name}</h2>", _table(("", ""), rows)]
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n" + "\n".join(parts) + "\n</html>\n"
    )


def claim(summary: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    """One sentence that says how good it is."""
    seeds = len(seeds_of(evaluation["accuracy"]))
    low, high = (f"{100 * end:.2f}" for end in evaluation["wilson95"])
    text = (
        f"{percent(evaluation['accuracy'])} of {evaluation['examples']:,} {evaluation['split']} "
        f"images right"
    )
    if seeds > 1:
        together = evaluation["right"] / evaluation["examples"]
        text += (
            f" (mean and standard deviation of {seeds} networks); by their mean probability "
            f"{together:.2%} (95% interval {low} to {high}%)"
        )
    else:
        text += f" (95% interval {low} to {high}%)"
    if summary:
        text += (
            f", after {evaluation['epochs']:g} epochs, with {summary['parameters']:,} parameters"
        )
    return f"{text}."


def _mistakes_text(evaluation: Mapping[str, Any]) -> str:
    wrong = len(evaluation["mistakes"])
    if not wrong:
        return "Nowhere: every answer is right."
    shown = f", of which these are the first {plots.GALLERY}" if wrong > plots.GALLERY else ""
    return (
        f"{wrong} wrong answers, the most certainly wrong first{shown}: the label, what it took "
        f"the image for, and how sure it was. It most often takes {_confusions(evaluation, 3)}."
    )


def _confusions(evaluation: Mapping[str, Any], count: int) -> str:
    return ", ".join(
        f"{row['label']} for {row['answer']} ({row['count']})"
        for row in evaluation["top_confusions"][:count]
    )


def _calibration_text(evaluation: Mapping[str, Any]) -> str:
    found = evaluation["calibration"]
    text = (
        f"A network that is 90% sure should be right 9 times in 10. This one's expected "
        f"calibration error is {100 * found['ece']:.2f} points."
    )
    if found["temperature"] is None:
        return f"{text} No images were held out, so no temperature was fitted."
    return (
        f"{text} Divided by the temperature {found['temperature']:.3f}, fitted on the validation "
        f"split, its logits have an error of {100 * found['ece_at_temperature']:.2f} points."
    )


def _section(title: str, text: str, pictures: Mapping[str, bytes], name: str) -> Iterator[str]:
    if name not in pictures:
        return
    yield f"<h2>{title}</h2>"
    yield f"<p>{html.escape(text)}</p>"
    encoded = base64.b64encode(pictures[name]).decode()
    # On a phone, what has many small parts is scrolled rather than shrunk.
    kind = "wide" if name in WIDE else "whole"
    yield f'<div class="{kind}"><img alt="{title}" src="data:image/png;base64,{encoded}"></div>'


def _mnist_c(shares: Mapping[str, float]) -> Iterator[str]:
    if shares:
        yield "<h2>MNIST-C</h2>"
        mean = sum(shares.values()) / len(shares)
        yield f"<p>The test images in {len(shares)} corruptions: {mean:.2%} right on average.</p>"
        yield _table(("corruption", "right"), ((kind, f"{s:.2%}") for kind, s in shares.items()))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        title = prefix + name.replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{title}: ")
        else:
            yield title, value


def _table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    head = "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in header)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _cell(value: Any) -> str:
    text = _text(value)
    kind = " class=long" if len(text) > 40 else " class=text" if isinstance(value, str) else ""
    return f"<td{kind}>{html.escape(text)}</td>"


def _text(value: Any) -> str:
    if isinstance(value, Mapping) and is_figure(value):
        return f"{value['mean']:.5g} ± {value['std']:.2g}"
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return value if isinstance(value, str) else json.dumps(value)
