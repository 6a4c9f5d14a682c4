"""The charts of the pages: pure functions from numbers to SVG, colored by the page's style.

Each value is in a `<title>`, which browsers show without a script.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

from markupsafe import Markup

from mnist_flax.evaluate.metrics import Calibration, CalibrationBin
from mnist_flax.evaluate.svg import (
    TOP,
    Axis,
    Format,
    Frame,
    element,
    linear_ticks,
    picture,
    points,
    text,
    whole_ticks,
)

FIFTHS = (0, 0.2, 0.4, 0.6, 0.8, 1)
MAX_DOTS = 40  # of a line; without dots beyond


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a chart."""

    name: str
    style: str
    """The class in the style sheet that has its color."""
    x: Sequence[int]
    y: Sequence[float]
    band: Sequence[tuple[float, float]] | None = None
    """The lowest and the highest value at each x, of several that `y` is the mean of."""


def line_chart(
    label: str,
    lines: Sequence[Line],
    y_ticks: Sequence[float],
    tick_text: Format,
    value_text: Format,
    *,
    log: bool = False,
    x_name: str = "epoch",
    frame: Frame = Frame(),  # noqa: B008  (it is frozen)
) -> Markup:
    """Lines over whole numbers such as epochs, and strips that name the values at each."""
    xs = sorted({x for line in lines for x in line.x})
    x, y = frame.x_axis(whole_ticks(xs[0], xs[-1]), 6), frame.y_axis(y_ticks, log)
    content = frame.draw(x, y, _whole, tick_text, x_name)
    for line in lines:
        content += _draw_line(line, x, y)
    middles = [x((a + b) / 2) for a, b in itertools.pairwise(xs)]
    edges = [frame.left, *middles, frame.right]
    for value, left, right in zip(xs, edges, edges[1:], strict=False):
        title = element("title", _describe_values(lines, value, x_name, value_text))
        strip = {"x": left, "y": TOP, "width": right - left, "height": frame.bottom - TOP}
        content.append(element("rect", title, class_="hover", **strip))
    return picture(label, content, frame.width, frame.height)


def _draw_line(line: Line, x: Axis, y: Axis) -> list[Markup]:
    pairs = [(x(a), y(b)) for a, b in zip(line.x, line.y, strict=True)]
    parts: list[Markup] = []
    if line.band:
        above = [(x(a), y(high)) for a, (_, high) in zip(line.x, line.band, strict=True)]
        below = [(x(a), y(low)) for a, (low, _) in zip(line.x, line.band, strict=True)]
        area = points([*above, *reversed(below)])
        parts.append(element("polygon", points=area, class_=f"band {line.style}"))
    parts.append(element("polyline", points=points(pairs), class_=f"line {line.style}"))
    if len(pairs) <= MAX_DOTS:
        style = f"dot {line.style}"
        parts += [element("circle", cx=a, cy=b, r=2.5, class_=style) for a, b in pairs]
    return parts


def _describe_values(lines: Sequence[Line], x: int, x_name: str, value_text: Format) -> str:
    """The values of all lines at an x, one a row."""
    texts = [f"{x_name} {x:,}"]
    for line in lines:
        if x in line.x:
            index = line.x.index(x)
            texts.append(f"{line.name} {value_text(line.y[index])}")
            if line.band:
                low, high = map(value_text, line.band[index])
                texts[-1] += f" ({low} to {high})"
    return "\n".join(texts)


def confusion_chart(matrix: Sequence[Sequence[int]]) -> Markup:
    """The confusion matrix: rows are true classes, columns are predictions."""
    cell, left, top = 32, 36, 40
    size = len(matrix) * cell
    wrong = [n for i, row in enumerate(matrix) for j, n in enumerate(row) if i != j]
    content: list[Markup] = []
    for label, counts in enumerate(matrix):
        middle = (label + 0.5) * cell
        content.append(text(f"{label}", left - 8, top + middle + 4, "end"))
        content.append(text(f"{label}", left + middle, top - 6))
        for prediction, count in enumerate(counts):
            corner = (left + prediction * cell, top + label * cell)
            share = count / max(1, *wrong)
            title = f"{count:,} of {sum(counts):,} images of a {label} were classified "
            title += "correctly" if label == prediction else f"as {prediction}"
            style = "correct" if label == prediction else "wrong" if count else "none"
            content.append(_draw_cell(title, style, corner, cell, count, share))
    turned = {"transform": f"rotate(-90 11 {top + size / 2:g})", "text_anchor": "middle"}
    content.append(text("predicted", left + size / 2, 13))
    content.append(element("text", "true", x=11, y=top + size / 2, **turned))
    label = (
        f"Confusion matrix of {sum(map(sum, matrix)):,} images, of which {sum(wrong):,} are "
        "misclassified and lie off the diagonal."
    )
    return picture(label, content, left + size + 2, top + size + 2)


def _draw_cell(
    title: str, style: str, corner: tuple[float, float], size: float, count: int, share: float
) -> Markup:
    x, y = corner
    square = {"x": x + 1, "y": y + 1, "width": size - 2, "height": size - 2, "rx": 3}
    # The text stays readable on the strongest color.
    opacity = {"fill_opacity": f"{0.12 + 0.43 * share:.2f}"} if style == "wrong" else {}
    parts = [element("title", title), element("rect", class_=style, **square, **opacity)]
    if count:
        parts.append(text(f"{count:,}", x + size / 2, y + size / 2 + 4, style=f"count {style}"))
    return element("g", *parts, class_="cell")


def reliability_chart(calibration: Calibration) -> Markup:
    """Accuracy by confidence, with the line on which the two are equal."""
    bins, frame = calibration["bins"], Frame()
    x, y = frame.x_axis(FIFTHS), frame.y_axis(FIFTHS)
    pairs = [(x(row["confidence"]), y(row["accuracy"])) for row in bins]
    content = frame.draw(x, y, _whole_percent, _whole_percent, "confidence")
    diagonal = points([(x(0), y(0)), (x(1), y(1))])
    content.append(element("polyline", points=diagonal, class_="line ideal"))
    content.append(element("polyline", points=points(pairs), class_="line test"))
    for row, (a, b) in zip(bins, pairs, strict=True):
        title = element("title", f"{_describe_bin(row)}\n{row['accuracy']:.2%} of them correct")
        content.append(element("circle", title, cx=a, cy=b, r=5, class_="dot test"))
    label = f"Accuracy by confidence in {len(bins)} bins; the dashed line is perfect calibration."
    return picture(label, content, frame.width, frame.height)


def confidence_chart(calibration: Calibration) -> Markup:
    """How many images have which confidence, on a logarithmic scale."""
    bins, frame = calibration["bins"], Frame()
    most = max(row["examples"] for row in bins)
    decades = [10.0**exponent for exponent in range(max(1, math.ceil(math.log10(most))) + 1)]
    # From half an image on, so that a single one is seen.
    x, y = frame.x_axis(FIFTHS), frame.y_axis([0.5, *decades], log=True)
    content = frame.draw(x, y, _whole_percent, _whole, "confidence")
    for row in bins:
        left, right, top = x(row["low"]) + 1, x(row["high"]) - 1, y(row["examples"])
        bar = {"x": left, "y": top, "width": right - left, "height": frame.bottom - top}
        title = element("title", _describe_bin(row))
        content.append(element("rect", title, class_="bar", **bar))
    last = bins[-1]
    label = f"Images by confidence: {last['examples']:,} have {last['low']:.2%} or more."
    return picture(label, content, frame.width, frame.height)


def severity_chart(kind: str, accuracies: Sequence[float]) -> Markup:
    """The accuracy by severity of one kind of corruption; severity 0 is without."""
    line = Line("accuracy", "test", range(len(accuracies)), accuracies)
    label = f"Accuracy with {kind}: {accuracies[0]:.2%} without, {accuracies[-1]:.2%} at the worst."
    frame, percent = Frame(190, 136, 44), "{:.2%}".format
    return line_chart(
        label, [line], (0, 0.5, 1), _whole_percent, percent, x_name="severity", frame=frame
    )


def interval_chart(label: str, rows: Sequence[tuple[str, float, Sequence[float]]]) -> Markup:
    """A share and its interval in each row, with a name."""
    left, step, width = 44, 26, Frame().width
    values = [end for _, value, ends in rows for end in (value, *ends)]
    x = Axis(linear_ticks(min(values), max(values), 5), left + 16, width - 28)
    bottom = 8 + step * len(rows)
    content: list[Markup] = []
    for tick in x.ticks:
        ends = {"x1": x(tick), "x2": x(tick), "y1": 4, "y2": bottom}
        content.append(element("line", class_="grid", **ends))
        content.append(text(f"{100 * tick:.5g}%", x(tick), bottom + 16))
    for index, (name, value, (low, high)) in enumerate(rows):
        y = 8 + step * (index + 0.5)
        title = element("title", f"{name} {value:.2%}\n95% interval {low:.2%} to {high:.2%}")
        strip = element("rect", class_="hover", x=0, y=y - step / 2, width=width, height=step)
        bar = element("line", class_="interval", x1=x(low), x2=x(high), y1=y, y2=y)
        dot = element("circle", class_="dot test", cx=x(value), cy=y, r=5)
        content.append(element("g", title, strip, bar, dot, text(name, left - 8, y + 4, "end")))
    return picture(label, content, width, bottom + 24)


def _whole(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else ""


def _whole_percent(share: float) -> str:
    return f"{share:.0%}"


def _describe_bin(row: CalibrationBin) -> str:
    return f"confidence {row['low']:.2%} to {row['high']:.2%}\n{row['examples']:,} images"
