"""Folders import only from folders above them in the listing, and importing does nothing else."""

import ast
import graphlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mnist_flax

PACKAGE = Path(mnist_flax.__file__).parent
ROOT = PACKAGE.parent
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES]


def imported_modules(path):
    """The package's modules that a file imports, anywhere in it, also for types only."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            modules |= {name if name in MODULES else node.module for name in names}
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    return {module for module in modules if module.split(".")[0] == "mnist_flax"}


def test_folders_import_only_from_folders_above_them():
    folders = {path.parent.name for path in FILES} - {PACKAGE.name}
    for path in FILES:
        if path.parent == PACKAGE:
            continue
        for module in imported_modules(path):
            folder = module.split(".")[1]
            assert folder in folders, f"{path} imports {module}"
            assert folder <= path.parent.name, f"{path} imports {module}"


def test_imports_are_free_of_circles():
    graph = {module: imported_modules(path) for module, path in zip(MODULES, FILES, strict=True)}
    expected = {"mnist_flax.run.loop", "mnist_flax.engine.workdir"}
    assert expected <= graph["mnist_flax.run.experiment"]
    graphlib.TopologicalSorter(graph).prepare()


def run_python(script, **environment):
    command = [sys.executable, "-B", "-c", script]
    result = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_importing_touches_no_device_and_no_file(tmp_path):
    names = [name for name in MODULES if not name.endswith("__main__")]
    script = "\n".join(
        [
            "import importlib, os, threading",
            "import mnist_flax",
            f"os.chdir({str(tmp_path)!r})",
            f"for name in {names}: importlib.import_module(name)",
            "assert threading.active_count() == 1",
        ]
    )
    # Matplotlib creates its folder when it is imported; JAX has no platform of this name.
    variables = {"MPLCONFIGDIR": str(tmp_path / "matplotlib"), "JAX_PLATFORMS": "none"}
    assert run_python(script, HOME=str(tmp_path), XDG_CACHE_HOME=str(tmp_path), **variables) == ""
    assert {path.name for path in tmp_path.iterdir()} <= {"matplotlib"}
