"""The package as users install it: built from the source distribution, run outside the checkout."""

import importlib.metadata
import re
import tarfile
import zipfile
from pathlib import Path

import pytest

import mnist_flax
from tests.conftest import read_summary
from tests.installed import OFFLINE, PIP, ROOT, command


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is not a git clone")
def test_the_source_distribution_holds_the_whole_repository(source):
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= set(command("git", "ls-files", cwd=ROOT).splitlines())


@pytest.mark.slow
def test_the_wheel_holds_only_the_package_and_its_metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(name for name in names if name.endswith("/METADATA")))
        scripts = archive.read(next(name for name in names if name.endswith("/entry_points.txt")))
    folder = f"mnist_flax-{mnist_flax.__version__}.dist-info"
    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "mnist_flax").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {"mnist_flax/py.typed", "mnist_flax/run/__main__.py"} <= files
    assert {name for name in names if not name.startswith(folder)} == files
    assert f"{folder}/licenses/LICENSE" in names
    assert b"mnist-flax = mnist_flax.__main__:main" in scripts
    lines = metadata.decode().splitlines()
    for line in ("Name: mnist-flax", f"Version: {mnist_flax.__version__}"):
        assert line in lines
    assert "License-Expression: Apache-2.0" in lines
    assert sum(line.startswith("Requires-Dist: jax<") for line in lines) == 1


@pytest.mark.nightly  # the matrix of `.ci/run` trains by a wheel built from git
def test_training_and_evaluation_work_from_the_wheel(clean, tmp_path):
    script = clean / "bin" / "mnist-flax"
    code = "import mnist_flax; print(mnist_flax.__file__)"
    path = command(clean / "bin" / "python", "-c", code, cwd=tmp_path).strip()
    assert Path(path).is_relative_to(clean)
    assert command(script, "--version", cwd=tmp_path) == f"mnist-flax {mnist_flax.__version__}\n"
    small = ("--dataset", "digits", "--epochs", "1")
    output = command(script, "run", "--workdir", "run", *small, cwd=tmp_path)
    assert re.search(r"^digits: test accuracy \d\d\.\d\d%", output, re.MULTILINE)
    assert read_summary(tmp_path / "run")["environment"]["mnist-flax"] == mnist_flax.__version__
    assert (tmp_path / "run" / "report" / "index.html").is_file()
    output = command(script, "evaluate", "--workdir", "run", "--no-report", cwd=tmp_path)
    assert output.startswith("digits test, step 23: accuracy ")


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is not a git clone")
def test_pip_installs_it_from_git(tmp_path):
    target = tmp_path / "packages"
    command(*PIP, "install", *OFFLINE, "--target", target, f"git+{ROOT.as_uri()}", cwd=tmp_path)
    assert (target / "bin" / "mnist-flax").is_file()
    distributions = importlib.metadata.distributions(name="mnist-flax", path=[str(target)])
    assert [distribution.version for distribution in distributions] == [mnist_flax.__version__]
    for file in ("__main__.py", "run/__main__.py", "run/command.py"):
        assert (target / "mnist_flax" / file).is_file()
