"""The documentation agrees with the code: options, commands, links, tests; snippets are run."""

import ast
import importlib
import importlib.util
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from mnist_flax.core import config, train
from mnist_flax.engine import checkpoint
from mnist_flax.engine.options import parse_options
from mnist_flax.run import command

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "experiments/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
CHANGES = ROOT / "docs" / "changing.md"
COMMANDS = ("run", "evaluate", "compare", "list", "predict", "export", "demo")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)

# Placeholders in snippets, and what the tests use instead.
PLACEHOLDERS = {"/absolute/path/to": "{folder}", "checkpoints/4690": "checkpoints/48"}


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """The line number of each fenced block of a language, and its content."""
    text = page.read_text(encoding="utf-8")
    matches = [match for match in FENCE.finditer(text) if match[1] == language]
    return [(text[: match.start()].count("\n") + 1, match[2]) for match in matches]


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def pages_with(language: str) -> list[Path]:
    return [page for page in PAGES if blocks(page, language)]


@pytest.fixture
def working_folder(small_run, digits, tmp_path, monkeypatch):
    """The current folder, with what the pages assume: a trained run, and a dataset as arrays."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small_run, "runs/exp1")
    splits = {"train": [x[:1_000] for x in digits.train], "test": [x[:200] for x in digits.test]}
    np.savez(
        "mine.npz",
        **{f"{split}_images": images for split, (images, _) in splits.items()},
        **{f"{split}_labels": labels for split, (_, labels) in splits.items()},
    )
    return tmp_path


@pytest.fixture(scope="module")
def generate() -> Any:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_generated_parts_of_pages_are_up_to_date(generate, page):
    text = page.read_text(encoding="utf-8")
    assert text == generate.update_page(text), "run `python docs/generate.py`"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_documented(name, capsys):
    with pytest.raises(SystemExit):
        importlib.import_module(f"mnist_flax.{name}").main(["--help"])
    options = set(re.findall(r"(?<![\w`-])--[a-z][\w-]+", capsys.readouterr().out)) - {"--help"}
    page = (ROOT / "docs" / "commands" / f"{name}.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `(--[\w-]+)`", page, re.MULTILINE))
    fields = {config.flag_name(field) for field in config.Config.__dataclass_fields__}
    assert documented == options - (fields if name == "run" else set())


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub derives them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", x.lower()).replace(" ", "-") for x in headings}


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_have_a_target(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def command_lines(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Each of the package's commands in the shell blocks, and its arguments."""
    for _, content in blocks(page, "sh"):
        for line in content.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\|\||;|\|", line):
                words = shlex.split(part, comments=True)
                for index, (word, following) in enumerate(itertools.pairwise(words)):
                    if word == "-m" and following.startswith("mnist_flax."):
                        yield following.removeprefix("mnist_flax."), words[index + 2 :]
                    elif word == "mnist-flax" and following[0] != "-":
                        yield following, words[index + 2 :]


# The commands of changing.md are run below.
@pytest.mark.parametrize("page", [x for x in pages_with("sh") if x != CHANGES], ids=page_name)
def test_command_lines_parse(page):
    for name, arguments in command_lines(page):
        if name == "run":
            command.parse(arguments)
        else:
            options: Any = importlib.import_module(f"mnist_flax.{name}").Options
            parse_options(options, name, arguments)


def test_pages_have_command_lines():
    assert all(any(command_lines(ROOT / "docs" / "commands" / f"{x}.md")) for x in COMMANDS)
    assert any(command_lines(ROOT / "README.md"))


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.nightly if page == CHANGES else pytest.mark.slow)
        for page in pages_with("python")
    ],
    ids=page_name,
)
def test_python_snippets_run(page, working_folder, digits):
    namespace = {"__name__": "snippet", "images": digits.test[0]}
    # A reader's JAX is not as strict as that of the tests.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for line, code in blocks(page, "python"):
            for placeholder, real in PLACEHOLDERS.items():
                code = code.replace(placeholder, real.format(folder=working_folder))  # noqa: PLW2901
            exec(compile("\n" * line + code, str(page), "exec"), namespace)


def hunks(diff: str) -> Iterator[tuple[str, str, str]]:
    """The file, the old lines and the new lines of each hunk of a diff."""
    for part in re.split(r"^--- ", diff, flags=re.MULTILINE)[1:]:
        path, _, changes = part.partition("\n")
        for hunk in re.split(r"^@@.*\n", changes, flags=re.MULTILINE)[1:]:
            lines = [(line[:1] or " ", line[1:] + "\n") for line in hunk.splitlines()]
            old, new = ("".join(x for sign, x in lines if sign in signs) for signs in (" -", " +"))
            yield path, old, new


def apply_diff(diff: str, folder: Path) -> None:
    """Applies a diff to the package in this folder; each hunk must fit exactly one place."""
    for name, old, new in hunks(diff):
        text = (folder / name).read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{name} does not have the lines {old!r}"
        (folder / name).write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize("number", range(len(blocks(CHANGES, "diff"))))
def test_diffs_apply(number, tmp_path):
    diff = blocks(CHANGES, "diff")[number][1]
    assert len(re.findall(r"^\+\s*\S", diff, re.MULTILINE)) < 15
    shutil.copytree(ROOT / "mnist_flax", tmp_path / "mnist_flax")
    apply_diff(diff, tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("number", range(len(blocks(CHANGES, "diff"))))
def test_diffs_run(number, working_folder):
    copy = working_folder / "copy"
    shutil.copytree(ROOT / "mnist_flax", copy / "mnist_flax")
    apply_diff(blocks(CHANGES, "diff")[number][1], copy)
    script = blocks(CHANGES, "sh")[number][1]
    result = subprocess.run(
        [sys.executable, *shlex.split(script)[1:]],
        env=os.environ | {"PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert ": test accuracy " in result.stdout


def test_tests_named_in_the_documentation_exist():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    files = re.findall(r"`(tests/[\w/]+\.py)", text)
    tests = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(tests) > 10
    assert all((ROOT / file).is_file() for file in files)
    for file, test in tests:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert test in {x.name for x in tree.body if isinstance(x, ast.FunctionDef)}, test


def test_every_promise_of_the_determinism_page_names_its_tests():
    page = (ROOT / "docs" / "determinism.md").read_text(encoding="utf-8")
    promises = re.findall(r"^\| (.+?) \| (?:yes|no|only)", page, re.MULTILINE)
    entries = dict(re.findall(r"^- (.+?): (.*`tests/.+)$", page, re.MULTILINE))
    assert len(promises) > 10
    assert list(entries) == promises


def test_the_table_of_faults_is_that_of_the_results():
    results = json.loads((ROOT / "experiments/results/faults.json").read_text(encoding="utf-8"))
    assert "\n".join(results["table"]) in (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1_000


def test_the_tour_visits_every_file():
    tour = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    package = ROOT / "mnist_flax"
    for path in package.rglob("*.py"):
        name = path.relative_to(package).as_posix()
        if path.parent == package or path.name not in ("__init__.py", "__main__.py"):
            assert f"`{name}`" in tour, name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Sharding info not provided")
@pytest.mark.parametrize("preset", ["default", "best"])
def test_a_checkpoint_holds_the_documented_state(generate, preset, key, tmp_path):
    from orbax.checkpoint import v1 as ocp

    preset_config = config.PRESETS[preset]
    with checkpoint.CheckpointManager(tmp_path, max_to_keep=1) as checkpoints:
        checkpoints.save(0, train.create_state(key, preset_config))
    leaves = jax.tree_util.tree_leaves_with_path(ocp.load(str(tmp_path / "0")))
    assert generate.state_leaves(preset_config) == {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            str(leaf.dtype),
            str(list(leaf.shape)),
        )
        for path, leaf in leaves
    }
