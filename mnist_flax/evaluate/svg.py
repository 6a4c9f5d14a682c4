"""Drawings as SVG: elements, axes with round numbers, frames. Pure functions that return text."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

from markupsafe import Markup

Format = Callable[[float], str]

RIGHT, TOP, BOTTOM = 18, 10, 36  # margins


@dataclasses.dataclass(frozen=True)
class Axis:
    """Values between the first and the last tick become positions from `start` to `end`."""

    ticks: Sequence[float]
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The position of a value; what lies outside is drawn at the edge."""
        low, high = self.ticks[0], self.ticks[-1]
        value = min(max(value, low), high)
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (self.end - self.start) * (value - low) / (high - low)


@dataclasses.dataclass(frozen=True)
class Frame:
    """The space of a chart, and its margins.

    The defaults are those of a phone, where the text is then as large as in the drawing.
    """

    width: float = 360
    height: float = 220
    left: float = 54

    @property
    def right(self) -> float:
        """Where the horizontal axis ends."""
        return self.width - RIGHT

    @property
    def bottom(self) -> float:
        """Where the vertical axis begins."""
        return self.height - BOTTOM

    def x_axis(self, ticks: Sequence[float], margin: float = 0) -> Axis:
        """A horizontal axis."""
        return Axis(ticks, self.left + margin, self.right - margin)

    def y_axis(self, ticks: Sequence[float], log: bool = False) -> Axis:
        """A vertical axis."""
        return Axis(ticks, self.bottom, TOP, log)

    def draw(self, x: Axis, y: Axis, x_text: Format, y_text: Format, x_name: str) -> list[Markup]:
        """A line at each tick of the vertical axis, and the texts of both; no text, no line."""
        parts = [text(x_name, (self.left + self.right) / 2, self.height - 4)]
        for tick in y.ticks:
            if label := y_text(tick):
                ends = {"x1": self.left, "x2": self.right, "y1": y(tick), "y2": y(tick)}
                parts.append(element("line", class_="grid", **ends))
                parts.append(text(label, self.left - 8, y(tick) + 4, "end"))
        return parts + [text(x_text(tick), x(tick), self.bottom + 16) for tick in x.ticks]


def element(name: str, *content: str, **attributes: object) -> Markup:
    """An element; `stroke_width=1` is its attribute `stroke-width`, `class_` its class."""
    texts = [
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _compact(value))
        for key, value in attributes.items()
    ]
    inside = Markup("").join(content)
    return Markup("<{}{}>{}</{}>").format(name, Markup("").join(texts), inside, name)


def picture(label: str, content: Iterable[Markup], width: float, height: float) -> Markup:
    """A drawing, with a text that says what is seen."""
    box = f"0 0 {width:g} {height:g}"
    return element("svg", *content, viewBox=box, role="img", aria_label=label)


def text(content: str, x: float, y: float, anchor: str = "middle", style: str = "") -> Markup:
    """A text that begins, has its middle or ends at a position."""
    attributes = {"class_": style} if style else {}
    return element("text", content, x=x, y=y, text_anchor=anchor, **attributes)


def points(pairs: Iterable[tuple[float, float]]) -> str:
    """The corners of a line or an area."""
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in pairs)


def linear_ticks(low: float, high: float, at_most: int = 6) -> list[float]:
    """At least two round numbers that enclose the values."""
    size = max(abs(low), abs(high))
    if high - low <= max(1e-9 * size, 1e-100):  # as good as equal
        size = size if size > 1e-90 else 1.0
        return linear_ticks(low - 0.01 * size, low + 0.01 * size, at_most)
    exponent = math.floor(math.log10((high - low) / at_most))
    steps = [factor * 10.0**e for e in (exponent, exponent + 1) for factor in (1, 2, 5)]
    for step in steps:
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first < at_most:
            return [number * step for number in range(first, last + 1)]
    raise AssertionError("the largest step is more than five times what is needed")


def log_ticks(values: Iterable[float]) -> list[float]:
    """At most nine numbers such as 1, 2, 5 or powers of ten that enclose the positive values."""
    positive = [max(value, 1e-100) for value in values if value > 0] or [1.0]
    low, high = min(positive), max(positive)
    chosen: list[float] = []
    for factors, stride in (((1, 2, 5), 1), ((1, 3), 1), *(((1,), n) for n in (1, 2, 5, 20))):
        start = math.floor(math.log10(low)) - 1
        exponents = range(start, math.ceil(math.log10(high)) + 1 + stride, stride)
        ticks = [factor * 10.0**exponent for exponent in exponents for factor in factors]
        first = max(i for i, tick in enumerate(ticks) if tick <= low * (1 + 1e-9))
        last = min(i for i, tick in enumerate(ticks) if tick >= high * (1 - 1e-9))
        chosen = ticks[first : max(last, first + 1) + 1]
        if len(chosen) <= 9:
            break
    return chosen


def whole_ticks(low: int, high: int, at_most: int = 7) -> list[float]:
    """Whole numbers from the lowest to the highest, with round ones between them."""
    if low == high:
        return [low - 0.5, low, low + 0.5]
    gap = 0.75 * (high - low) / at_most
    round_numbers = linear_ticks(low, high, at_most)
    inner = [x for x in round_numbers if low + gap < x < high - gap and x == round(x)]
    return [low, *inner, high]


def _compact(value: object) -> object:
    return f"{round(value, 1):g}" if isinstance(value, float) else value
