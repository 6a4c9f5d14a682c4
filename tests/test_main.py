"""The one command in front of all others."""

import importlib
import subprocess
import sys

import pytest

from mnist_flax import __main__, __version__


def ask(*arguments, prelude=""):
    """Runs `mnist-flax` as its installed script does."""
    script = (
        f"import sys\nsys.argv[0] = '/somewhere/bin/mnist-flax'\n{prelude}\n"
        "from mnist_flax.__main__ import main\nsys.exit(main())"
    )
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []])
def test_help_lists_each_command_and_imports_none(arguments):
    after = (
        "import atexit\n"
        "atexit.register(lambda: print(*sorted(m for m in sys.modules if '.' not in m)))"
    )
    ended = ask(*arguments, prelude=after)
    assert ended.returncode == 0, ended.stderr
    *lines, modules = ended.stdout.splitlines()
    for command in __main__.COMMANDS:
        assert f"  {command:<8}  {__main__.purpose(command)}" in lines
    assert not {"jax", "flax", "numpy"} & set(modules.split())


@pytest.mark.parametrize("command", __main__.COMMANDS)
def test_a_purpose_is_the_first_line_of_the_commands_help(command):
    options = importlib.import_module(f"mnist_flax.{command}").Options
    assert __main__.purpose(command) == options.__doc__.splitlines()[0]
    assert 20 < len(__main__.purpose(command)) < 90


@pytest.mark.parametrize("command", __main__.COMMANDS)
def test_a_commands_help_names_it_as_it_was_called(command):
    ended = ask(command, "--help")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(f"usage: mnist-flax {command} [-h]")


def test_a_commands_mistakes_are_its_own():
    ended = ask("run", "--workdir", "w", "--epoch", "3")
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: Unrecognized options: --epoch, 3")
    assert ended.stderr.endswith("; see mnist-flax run --help\n")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("evalute", "'evalute' (perhaps you meant evaluate?)"),
        ("zebra", "'zebra'"),
        ("--workdir", "'--workdir'"),
        ("\x1b[2J", r"'\x1b[2J'"),
    ],
)
def test_an_unknown_command_is_told_in_one_line(name, told):
    ended = ask(name)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"error: there is no command {told}; see mnist-flax --help\n"


def test_the_version_also_as_a_module():
    command = [sys.executable, "-m", "mnist_flax", "--version"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ended.stdout == f"mnist-flax {__version__}\n"
