"""Options: the help that people read, and what is said about mistakes."""

import re
from pathlib import Path

import pytest

from mnist_flax import compare, demo, evaluate, export, predict, run
from mnist_flax import list as list_command
from mnist_flax.core.config import UserError
from mnist_flax.engine.options import parse_options
from mnist_flax.run.command import parse

COMMANDS = (run, evaluate, compare, list_command, predict, export, demo)


def help_of(command, capsys, monkeypatch):
    """The help in a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match=r"^0$"):
        parse_options(command.Options, "mnist-flax COMMAND", ["--help"])
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS, ids=lambda x: x.__name__.split(".")[-1])
def test_help_fits_80_columns_and_has_an_example(command, capsys, monkeypatch):
    text = help_of(command, capsys, monkeypatch)
    name = command.__name__.split(".")[-1]
    assert re.search(rf"^Example: mnist-flax {name}\b", text, re.MULTILINE)
    assert max(map(len, text.splitlines()[1:])) <= 80  # the first shows the usage
    for oddity in ("None", "False", "STR", "default: )", "[["):
        assert oddity not in text


def test_help_shows_a_text_as_one_paragraph(capsys, monkeypatch):
    words = " ".join(help_of(run, capsys, monkeypatch).replace("│", " ").split())
    assert (
        "Decides the initial parameters, the order of the images and their augmentation." in words
    )
    lines = help_of(run, capsys, monkeypatch).splitlines()
    (first,) = [line for line in lines if "The config to start from;" in line]
    assert "other flags override it." in first
    assert "IMAGE..." in help_of(predict, capsys, monkeypatch)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epoch", "3"], "(perhaps you meant --epochs?)"),
        (["--lr", "0.1"], "(perhaps you meant --learning-rate?)"),
        (["--wd", "0.1"], "(perhaps you meant --weight-decay?)"),
        (["runs/exp1"], "(perhaps you meant --workdir runs/exp1?)"),
        (["--zebra"], "Unrecognized options: --zebra; see"),
        (["--epochs", "many"], "--epochs must be a whole number, but is 'many'; see"),
        (["--seed", "1.5"], "--seed must be a whole number, but is '1.5'; see"),
        (["--learning-rate", "x"], "--learning-rate must be a number, but is 'x'; see"),
        (["--num-processes", "x"], "--num-processes must be a whole number, but is 'x'; see"),
        (["--workdir", "w", "--deterministic", "False"], "Unrecognized options: False; see"),
        (["--workdir", ""], "--workdir has an empty value; see"),
        (["--workdir=", "--deterministic"], "--workdir has an empty value; see"),
    ],
)
def test_mistakes_get_a_hint_in_plain_words(arguments, message):
    with pytest.raises(UserError, match=re.escape(message)):
        parse(arguments)


def test_a_value_that_equals_the_default_overrides_a_preset():
    assert parse(["--preset", "best", "--epochs", "5"]).config.epochs == 5


def test_a_home_in_every_path_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    options = parse_options(compare.Options, "compare", ["~/a", "~/b", "~/c", "~/d"])
    paths = (options.a, options.b, *options.more)
    assert paths == tuple(Path("/home/ada", name) for name in "abcd")
