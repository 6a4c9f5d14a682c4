"""The command that dispatches to all others."""

import importlib
import subprocess
import sys

import pytest

from mnist_flax import __main__, __version__


def run_script(*arguments, prelude=""):
    """Runs `mnist-flax` as its installed script does."""
    script = (
        f"import sys\nsys.argv[0] = '/somewhere/bin/mnist-flax'\n{prelude}\n"
        "from mnist_flax.__main__ import main\nsys.exit(main())"
    )
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []])
def test_help_describes_each_command_and_imports_nothing_heavy(arguments):
    print_modules = (
        "import atexit\n"
        "atexit.register(lambda: print(*sorted(m for m in sys.modules if '.' not in m)))"
    )
    result = run_script(*arguments, prelude=print_modules)
    assert result.returncode == 0, result.stderr
    *lines, modules = result.stdout.splitlines()
    for command in __main__.COMMANDS:
        options = importlib.import_module(f"mnist_flax.{command}").Options
        description = options.__doc__.splitlines()[0]
        assert 20 < len(description) < 90
        assert f"  {command:<8}  {description}" in lines
    assert not {"jax", "flax", "numpy", "scipy", "PIL", "matplotlib"} & set(modules.split())


@pytest.mark.parametrize("command", __main__.COMMANDS)
def test_the_help_of_a_command_names_it_as_it_was_called(command):
    result = run_script(command, "--help")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"usage: mnist-flax {command} [-h]")


def test_a_mistake_is_reported_by_the_command_itself():
    result = run_script("run", "--workdir", "w", "--epoch", "3")
    assert result.returncode == 2
    assert result.stderr.startswith("error: Unrecognized options: --epoch, 3")
    assert result.stderr.endswith("; see mnist-flax run --help\n")


@pytest.mark.parametrize(
    ("name", "quoted"),
    [
        ("evalute", "'evalute' (perhaps you meant evaluate?)"),
        ("zebra", "'zebra'"),
        ("--workdir", "'--workdir'"),
        ("\x1b[2J", r"'\x1b[2J'"),
    ],
)
def test_an_unknown_command_is_reported_in_one_line(name, quoted):
    result = run_script(name)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"error: there is no command {quoted}; see mnist-flax --help\n"


def test_the_module_prints_the_version():
    command = [sys.executable, "-m", "mnist_flax", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == f"mnist-flax {__version__}\n"
