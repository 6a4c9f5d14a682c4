"""The documentation against the code: options, commands, links and tests; snippets are run."""

import ast
import importlib
import importlib.util
import itertools
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

from mnist_flax import checkpoint, command, config, train

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "experiments/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
CHANGES = ROOT / "docs" / "changing.md"
COMMANDS = ("run", "evaluate", "compare", "predict", "export", "demo")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)

# What stands in snippets for a reader's own, and what the tests have in its place.
PLACEHOLDERS = {"/absolute/path/to": "{folder}", "checkpoints/4690": "checkpoints/48"}


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """The line before each fenced block of a language, and what is in it."""
    text = page.read_text(encoding="utf-8")
    found = ((match, match[2]) for match in FENCE.finditer(text) if match[1] == language)
    return [(text[: match.start()].count("\n") + 1, content) for match, content in found]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def having(language: str) -> list[Path]:
    return [page for page in PAGES if blocks(page, language)]


@pytest.fixture
def elsewhere(small_run, digits, tmp_path, monkeypatch):
    """A folder to work in, with what the pages take as given: a trained run, and own arrays."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small_run, "runs/exp1")
    own = {"train": [x[:1_000] for x in digits.train], "test": [x[:200] for x in digits.test]}
    np.savez(
        "mine.npz",
        **{f"{split}_images": images for split, (images, _) in own.items()},
        **{f"{split}_labels": labels for split, (_, labels) in own.items()},
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


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_pages_say_of_the_code_is_up_to_date(generate, page):
    text = page.read_text(encoding="utf-8")
    assert text == generate.filled(text), "run `python docs/generate.py`"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_documented_as_it_is_spelled(name, capsys):
    with pytest.raises(SystemExit):
        importlib.import_module(f"mnist_flax.{name}").main(["--help"])
    spelled = set(re.findall(r"(?<![\w`-])--[a-z][\w-]+", capsys.readouterr().out)) - {"--help"}
    page = (ROOT / "docs" / "commands" / f"{name}.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `(--[\w-]+)`", page, re.MULTILINE))
    fields = {config.flag(field) for field in config.Config.__dataclass_fields__}
    assert documented == spelled - (fields if name == "run" else set())


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", x.lower()).replace(" ", "-") for x in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def command_lines(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Each of our commands in the blocks for a shell, and its arguments."""
    for _, content in blocks(page, "sh"):
        for line in content.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\|\||;|\|", line):
                words = shlex.split(part, comments=True)
                for at, (word, following) in enumerate(itertools.pairwise(words)):
                    if word == "-m" and following.startswith("mnist_flax."):
                        yield following.removeprefix("mnist_flax."), words[at + 2 :]
                    elif word == "mnist-flax" and following[0] != "-":
                        yield following, words[at + 2 :]


# Those for changed copies are run, below.
@pytest.mark.parametrize("page", [x for x in having("sh") if x != CHANGES], ids=name_of)
def test_command_lines_parse(page):
    for name, arguments in command_lines(page):
        module: Any = importlib.import_module(f"mnist_flax.{name}")
        if hasattr(module, "parse"):
            module.parse(arguments)
        else:
            command.parse(module.Options, module.PROG, arguments)


def test_command_lines_are_found():
    assert all(any(command_lines(ROOT / "docs" / "commands" / f"{x}.md")) for x in COMMANDS)
    assert any(command_lines(ROOT / "README.md"))


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow) if page == CHANGES else page
        for page in having("python")
    ],
    ids=name_of,
)
def test_python_snippets_run(page, elsewhere, digits):
    namespace = {"__name__": "snippet", "images": digits.test[0]}
    # A reader's own JAX is not as strict as the tests'.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for line, code in blocks(page, "python"):
            for placeholder, real in PLACEHOLDERS.items():
                code = code.replace(placeholder, real.format(folder=elsewhere))  # noqa: PLW2901
            exec(compile("\n" * line + code, str(page), "exec"), namespace)


def hunks(diff: str) -> Iterator[tuple[str, str, str]]:
    """The file, the old lines and the new ones of each part of a diff."""
    for part in re.split(r"^--- ", diff, flags=re.MULTILINE)[1:]:
        path, _, changes = part.partition("\n")
        for hunk in re.split(r"^@@.*\n", changes, flags=re.MULTILINE)[1:]:
            lines = [(line[:1] or " ", line[1:] + "\n") for line in hunk.splitlines()]
            old, new = ("".join(x for sign, x in lines if sign in signs) for signs in (" -", " +"))
            yield path, old, new


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(blocks(CHANGES, "diff"))))
def test_diffs_apply_and_run(number, elsewhere):
    line, diff = blocks(CHANGES, "diff")[number]
    changed = [x for x in diff.splitlines() if re.match(r"[+-]\s*\S", x) and x[:3] != "---"]
    assert len([x for x in changed if x[0] == "+"]) < 15
    copy = elsewhere / "copy"
    shutil.copytree(ROOT / "mnist_flax", copy / "mnist_flax")
    for name, old, new in hunks(diff):
        text = (copy / name).read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{name} no longer has, once, what {CHANGES}:{line} changes"
        (copy / name).write_text(text.replace(old, new), encoding="utf-8")
    script = blocks(CHANGES, "sh")[number][1]
    ended = subprocess.run(
        [sys.executable, *shlex.split(script)[1:]],
        env=os.environ | {"PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ": test accuracy " in ended.stdout


def test_named_tests_exist():
    named = re.findall(r"`tests/(\w+)\.py::(\w+)`", (ROOT / "docs/determinism.md").read_text())
    assert len(named) > 10
    for file, test in named:
        tree = ast.parse((ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8"))
        assert test in {x.name for x in tree.body if isinstance(x, ast.FunctionDef)}, test


def test_determinism_says_what_the_readme_says():
    section = (ROOT / "README.md").read_text().split("\n## The same bits\n")[1].split("\n## ")[0]
    readme, page = (
        dict(re.findall(r"^\| (.+?) \| ((?:yes|no|only).*?) \|", text, re.MULTILINE))
        for text in (section, (ROOT / "docs" / "determinism.md").read_text())
    )
    assert len(readme) > 10
    assert {row: page.get(row) for row in readme} == readme


def test_the_tour_passes_every_file():
    tour = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    for path in (ROOT / "mnist_flax").glob("*.py"):
        assert f"`{path.name}`" in tour, path.name


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
@pytest.mark.parametrize("preset", ["default", "best"])
def test_a_checkpoint_holds_the_documented_state(generate, preset, key, tmp_path):
    from orbax.checkpoint import v1 as ocp

    chosen = config.PRESETS[preset]
    with checkpoint.Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(0, train.create_state(key, config=chosen))
    leaves = jax.tree_util.tree_leaves_with_path(ocp.load(str(tmp_path / "0")))
    assert generate.state_leaves(chosen) == {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            str(leaf.dtype),
            str(list(leaf.shape)),
        )
        for path, leaf in leaves
    }
