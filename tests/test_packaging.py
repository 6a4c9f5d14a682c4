"""What others install: built from the source distribution, and run far from the checkout."""

import importlib.metadata
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import mnist_flax
from tests.conftest import read_summary

pytest.importorskip("hatchling")
pytest.importorskip("pip")

ROOT = Path(__file__).parent.parent
# pip fetches nothing: the package alone is built and installed, by what is installed already.
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
ALONE = ("--no-deps", "--no-build-isolation", "--no-index")

pytestmark = pytest.mark.slow


def command(*arguments, cwd):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_"))}
    ended = subprocess.run(
        list(map(str, arguments)), cwd=cwd, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr + ended.stdout
    return ended.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    command(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=ROOT)
    return next(folder.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command(*PIP, "wheel", *ALONE, "--wheel-dir", folder, source, cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def clean(wheel, tmp_path_factory):
    """An environment with the wheel, and this one's other packages, in a folder of its own."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    command(*PIP, "--python", python, "install", *ALONE, wheel, cwd=folder)
    # Added after the installation, which would else look at them. Of a folder that a .pth file
    # adds no .pth file is read, so an editable installation of the checkout stays unseen.
    packages = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})["purelib"]
    others = [path for path in sys.path if Path(path).name.endswith("-packages")]
    (Path(packages) / "others.pth").write_text("\n".join(others) + "\n")
    return folder


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
