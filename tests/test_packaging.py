"""What others install: built from the source distribution, and run far from the checkout."""

import importlib.metadata
import re
import tarfile
import zipfile
from pathlib import Path

import pytest

import mnist_flax
from tests.conftest import read_summary
from tests.installed import ALONE, PIP, ROOT, command

pytestmark = pytest.mark.slow


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no clone")
def test_the_source_distribution_is_the_whole_repository(source):
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= set(command("git", "ls-files", cwd=ROOT).splitlines())


def test_the_wheel_holds_the_package_alone_and_says_what_it_is(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(name for name in names if name.endswith("/METADATA")))
        scripts = archive.read(next(name for name in names if name.endswith("/entry_points.txt")))
    folder = f"mnist_flax-{mnist_flax.__version__}.dist-info"
    ours = {f"mnist_flax/{path.name}" for path in (ROOT / "mnist_flax").glob("*.py")}
    assert {name for name in names if not name.startswith(folder)} == {*ours, "mnist_flax/py.typed"}
    assert f"{folder}/licenses/LICENSE" in names
    assert b"mnist-flax = mnist_flax.__main__:main" in scripts
    lines = metadata.decode().splitlines()
    for line in ("Name: mnist-flax", f"Version: {mnist_flax.__version__}"):
        assert line in lines
    assert "License-Expression: Apache-2.0" in lines
    assert sum(line.startswith("Requires-Dist: jax<") for line in lines) == 1


def test_the_main_job_runs_from_the_wheel_alone(clean, tmp_path):
    script = clean / "bin" / "mnist-flax"
    where = "import mnist_flax; print(mnist_flax.__file__)"
    told = command(clean / "bin" / "python", "-c", where, cwd=tmp_path)
    assert Path(told.strip()).is_relative_to(clean)
    assert command(script, "--version", cwd=tmp_path) == f"mnist-flax {mnist_flax.__version__}\n"
    small = ("--dataset", "digits", "--epochs", "1")
    told = command(script, "run", "--workdir", "run", *small, cwd=tmp_path)
    assert re.search(r"^digits: test accuracy \d\d\.\d\d%", told, re.MULTILINE)
    assert read_summary(tmp_path / "run")["environment"]["mnist-flax"] == mnist_flax.__version__
    assert (tmp_path / "run" / "report" / "index.html").is_file()
    told = command(script, "evaluate", "--workdir", "run", "--no-report", cwd=tmp_path)
    assert told.startswith("digits test, step 23: accuracy ")


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no clone")
def test_pip_installs_it_from_git(tmp_path):
    place = tmp_path / "packages"
    command(*PIP, "install", *ALONE, "--target", place, f"git+{ROOT.as_uri()}", cwd=tmp_path)
    assert (place / "bin" / "mnist-flax").is_file()
    found = importlib.metadata.distributions(name="mnist-flax", path=[str(place)])
    assert [distribution.version for distribution in found] == [mnist_flax.__version__]
    assert {path.name for path in (place / "mnist_flax").glob("*.py")} >= {"run.py", "__main__.py"}
