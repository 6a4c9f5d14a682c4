"""Imports point down the README's list of modules, and importing does nothing else."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mnist_flax

PACKAGE = Path(mnist_flax.__file__).parent
README = Path(__file__).parent.parent / "README.md"
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))
# Those of the commands that only look at options and files until they are asked for more.
LIGHT = ("__init__", "__main__", "command", "config", "run", "evaluate", "compare", "predict")


def order():
    """The modules of the README's table, from the top, each row from the left."""
    section = README.read_text(encoding="utf-8").split("\n## How it is organised\n")[1]
    rows = [line for line in section.split("\n## ")[0].splitlines() if line.startswith("| `")]
    return [name for row in rows for name in re.findall(r"`(\w+)\.py`", row.split("|")[1])]


def imported(module):
    """The package's modules that one imports, wherever in it, for types only too."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for parts in (name.split(".") for name in names):
            if parts[0] == "mnist_flax" and parts[1:] not in ([], ["__version__"]):
                found |= {parts[1]} if parts[1] in MODULES else imported("__init__")
    return found


def test_the_readme_lists_each_module_once():
    assert sorted(order()) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    below = order()[order().index(module) + 1 :]
    assert imported(module) <= set(below)


def test_what_imports_is_seen():
    assert imported("__init__") == {"trained"}
    assert {"experiment", "workdir", "command"} <= imported("run")
    assert imported("config") == set()


def python(script, **environment):
    command = [sys.executable, "-B", "-c", script]
    ended = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_importing_touches_no_device_and_no_file(tmp_path):
    script = "\n".join(
        [
            "import importlib, os, threading",
            "import mnist_flax",
            f"os.chdir({str(tmp_path)!r})",
            f"for name in {MODULES}: importlib.import_module(f'mnist_flax.{{name}}')",
            "assert threading.active_count() == 1",
        ]
    )
    # Matplotlib makes its folder as it is imported; of this platform JAX can make no device.
    elsewhere = {"MPLCONFIGDIR": str(tmp_path / "matplotlib"), "JAX_PLATFORMS": "none"}
    assert python(script, HOME=str(tmp_path), XDG_CACHE_HOME=str(tmp_path), **elsewhere) == ""
    assert {path.name for path in tmp_path.iterdir()} <= {"matplotlib"}


def test_importing_what_reads_options_imports_nothing_heavy():
    script = "\n".join(
        [
            "import importlib, sys",
            f"for name in {LIGHT}: importlib.import_module(f'mnist_flax.{{name}}')",
            "print(*sys.modules)",
        ]
    )
    assert not {"jax", "flax", "numpy", "matplotlib", "PIL"} & set(python(script).split())
