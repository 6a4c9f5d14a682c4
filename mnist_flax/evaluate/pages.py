"""Self-contained HTML pages in one style, from the templates and scripts in `assets/`."""

import json
from collections.abc import Sequence
from pathlib import Path

import jinja2

from mnist_flax.engine.seed_stats import SeedValue, format_percent, mean_of

ASSETS = Path(__file__).with_name("assets")

DATASET_TITLES = {
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "kmnist": "KMNIST",
    "digits": "scikit-learn's digits",
}


def render_page(template: str, **values: object) -> str:
    """A page of a template in `assets/`, which may include the styles and scripts there."""
    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.FileSystemLoader(ASSETS),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "percent": format_percent,
        "range": format_range,
        "loss": format_loss,
        "points": format_points,
        "duration": format_duration,
        "value": format_value,
        "number": "{:,}".format,
    }
    return environment.get_template(template).render(values)


def dataset_title(name: str) -> str:
    """A dataset as its authors spell it."""
    return DATASET_TITLES.get(name, name)


def format_range(ends: Sequence[float]) -> str:
    """An interval of shares: `99.26% to 99.56%`."""
    return " to ".join(f"{end:.2%}" for end in ends)


def format_points(value: float) -> str:
    """A difference of two shares, with its sign: `+0.31`."""
    return f"{100 * value:+.2f}"


def format_loss(value: SeedValue) -> str:
    """`0.0182`, or with several seeds mean and standard deviation: `0.0182 ± 0.0004`."""
    text = f"{mean_of(value):.4f}"
    if isinstance(value, dict) and value["std"] is not None:
        text += f" ± {value['std']:.4f}"
    return text


def format_duration(seconds: float) -> str:
    """`77 s`, `12.5 min` or `2.1 h`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 99.95 else f"{minutes / 60:,.1f} h"


def format_value(value: object) -> str:
    """Any value of a JSON file as the text of a table cell."""
    if isinstance(value, dict) and value.get("std") is not None:
        return f"{value['mean']:.5g} ± {value['std']:.2g}"
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list):
        return ", ".join(map(format_value, value))
    return value if isinstance(value, str) else json.dumps(value)
