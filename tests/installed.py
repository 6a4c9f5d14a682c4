"""The installed package, in an environment without the checkout."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# pip downloads nothing: only this package is built and installed, beside installed packages.
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
OFFLINE = ("--no-deps", "--no-build-isolation", "--no-index")


def command(*arguments, cwd):
    """The output of a command that does not inherit this process's Python and pip settings."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_"))}
    result = subprocess.run(
        list(map(str, arguments)), cwd=cwd, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr + result.stdout
    return result.stdout


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
    command(*PIP, "wheel", *OFFLINE, "--wheel-dir", folder, source, cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def clean(wheel, tmp_path_factory):
    """An environment with the wheel and the other packages of this environment."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    command(*PIP, "--python", python, "install", *OFFLINE, wheel, cwd=folder)
    # Added after the installation, so that pip ignores them. Python reads no .pth files in a folder
    # that a .pth file adds, so an editable installation of the checkout has no effect.
    packages = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})["purelib"]
    others = [path for path in sys.path if Path(path).name.endswith("-packages")]
    (Path(packages) / "others.pth").write_text("\n".join(others) + "\n")
    return folder
