"""The package as others install it, in an environment that has nothing of the checkout."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# pip fetches nothing: the package alone is built and installed, by what is installed already.
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
ALONE = ("--no-deps", "--no-build-isolation", "--no-index")


def command(*arguments, cwd):
    """The output of a command that knows nothing of this process's own packages."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_"))}
    ended = subprocess.run(
        list(map(str, arguments)), cwd=cwd, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr + ended.stdout
    return ended.stdout


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """The source distribution."""
    pytest.importorskip("hatchling")
    pytest.importorskip("pip")
    folder = tmp_path_factory.mktemp("source")
    command(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=ROOT)
    return next(folder.glob("*.tar.gz"))


@pytest.fixture(scope="session")
def wheel(source, tmp_path_factory):
    """The wheel, built from the source distribution."""
    folder = tmp_path_factory.mktemp("wheel")
    command(*PIP, "wheel", *ALONE, "--wheel-dir", folder, source, cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
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
