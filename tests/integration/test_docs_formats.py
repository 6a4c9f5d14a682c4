"""Every field of a run's files is documented with its type, and every documented field exists."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typeguard

from mnist_flax import evaluate, run
from mnist_flax.core import config
from mnist_flax.data import mnist_c
from mnist_flax.engine.seed_stats import SeedValue
from mnist_flax.evaluate import corruptions
from tests.conftest import SMALL, read_metrics, read_summary

DOCS = Path(__file__).parents[2] / "docs"


def is_seed_value(value: Any) -> bool:
    """Whether it is a float, or an object with statistics over seeds."""
    try:
        typeguard.check_type(value, SeedValue)
    except typeguard.TypeCheckError:
        return False
    return not isinstance(value, int)


IS_TYPE = {
    "true or false": lambda value: type(value) is bool,
    "int": lambda value: type(value) is int,
    "float": lambda value: type(value) is float,
    "float or null": lambda value: value is None or type(value) is float,
    "text": lambda value: isinstance(value, str),
    "seed value": is_seed_value,
}


def section(page: str, heading: str) -> str:
    text = (DOCS / page).read_text(encoding="utf-8")
    return text.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def documented(heading: str) -> dict[str, tuple[str, str]]:
    """The type of each field in a table of the formats, and the flag that it exists only with."""
    rows = re.findall(r"^\| (`.*) \|$", section("formats.md", heading), re.MULTILINE)
    cells = [row.split(" | ") for row in rows]
    return {name.strip("`"): (kind, (rest[2:3] or [""])[0]) for name, kind, *rest in cells}


def fields(value: Any, path: str = "") -> dict[str, list[Any]]:
    """All values at each path of a JSON value; statistics over seeds count as one value."""
    if isinstance(value, dict) and not is_seed_value(value):
        parts = [(f"{path}.{name}".lstrip("."), part) for name, part in value.items()]
    elif isinstance(value, list):
        parts = [(f"{path}[]", part) for part in value]
    else:
        return {path: [value]}
    result: dict[str, list[Any]] = {}
    for name, part in parts:
        for inner, values in fields(part, name).items():
            result.setdefault(inner, []).extend(values)
    return result


@pytest.fixture(scope="module")
def full_run(tmp_path_factory):
    """A run with every optional field."""
    folder = tmp_path_factory.mktemp("full")
    held_out = ("--validation-fraction", "0.2", "--num-seeds", "2", "--no-report")
    assert run.main(["--workdir", str(folder), *SMALL, *held_out, "--epochs", "1"]) == 0
    with pytest.MonkeyPatch.context() as patch:
        fog = (np.zeros((5, 28, 28, 1), np.uint8), np.arange(5, dtype=np.int32))
        patch.setattr(mnist_c, "load_mnist_c", lambda *_: {"fog": fog})
        patch.setattr(corruptions, "KINDS", {"noise": corruptions.noise})
        assert evaluate.main(["--workdir", str(folder), "--corruptions", "--mnist-c"]) == 0
    return folder


READERS = {
    "environment.json": lambda folder: json.loads((folder / "environment.json").read_text()),
    "metrics.jsonl": lambda folder: read_metrics(folder)[-1],
    "summary.json": read_summary,
    "evaluation.json": lambda folder: json.loads((folder / "report/evaluation.json").read_text()),
}


@pytest.mark.nightly
@pytest.mark.parametrize("file", READERS)
def test_fields_are_as_documented(file, small_run, full_run):
    rows = documented(file)
    rows.pop("environment", None)
    for folder, full in ((small_run, False), (full_run, True)):
        value = READERS[file](folder)
        if file == "summary.json":
            assert set(value.pop("environment")) == set(documented("environment.json"))
        actual = {
            re.sub(r"^(robustness|mnist_c)\.\w+", r"\1.KIND", name): values
            for name, values in fields(value).items()
        }
        expected = {name for name, (_, only) in rows.items() if full or not only}
        assert set(actual) == expected
        for name, values in actual.items():
            assert all(map(IS_TYPE[rows[name][0]], values)), name


def test_the_fields_of_the_config_are_documented(small_run):
    stored = json.loads((small_run / "config.json").read_text())
    names = re.findall(r"^\| `(\w+)` ", section("config.md", "Fields"), re.MULTILINE)
    assert names == list(stored) == list(config.Config.__dataclass_fields__)


def test_files_are_documented(small_run):
    documented = (DOCS / "formats.md").read_text().split("\n\n")[1]
    files = {f"{path.name}{'/' * path.is_dir()}" for path in small_run.iterdir()}
    assert files <= set(re.findall(r"`([\w.]+/?)`", documented))
    table = re.findall(r"^\| `4690/([\w.]+)", section("formats.md", "checkpoints/"), re.MULTILINE)
    for saved in (small_run / "checkpoints").iterdir():
        assert {path.name for path in saved.iterdir()} == set(table)
