"""The options of the commands: dataclasses, whose docstrings are their help. Parsed by tyro."""

import argparse
import ast
import contextlib
import dataclasses
import difflib
import inspect
import io
import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from mnist_flax.core.config import UserError, flag_name

Options = TypeVar("Options")
Value = TypeVar("Value")

METAVARS = {Path: "PATH", int: "INT", float: "NUMBER", str: "TEXT"}
KINDS = {"INT": "a whole number", "NUMBER": "a number"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of a command that uses trained networks."""

    workdir: Path | None = None
    """The workdir of a run. Default: the pretrained network that comes with the package."""
    checkpoint: str = "latest"
    """Which checkpoint: `latest`, `best` (by the validation accuracy) or a step."""
    seed_index: int | None = None
    """Use only this network of a run with several seeds. Default: all, by their mean
    probability; a page to draw on uses the first."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The options of a command that reads a dataset."""

    data_dir: Path | None = None
    """The data folder of TensorFlow Datasets. Default: TFDS_DATA_DIR, else its own default."""
    manual_dir: Path | None = dataclasses.field(
        default_factory=lambda: Path(path) if (path := os.getenv("MNIST_FLAX_MANUAL_DIR")) else None
    )
    """Read-only folder with the four original .gz files, for machines without internet access.
    Default: MNIST_FLAX_MANUAL_DIR."""


def parse_options(
    kind: type[Options], prog: str, argv: Sequence[str], default: Options | None = None
) -> Options:
    """A dataclass of options from a command line.

    Raises a UserError if it is not valid, or SystemExit with code 0 after printing the help.
    """
    for flag, value in itertools.pairwise([*argv, "end"]):
        name, equals, rest = flag.partition("=")
        if name.startswith("--") and not (rest if equals else value):  # a path would be "."
            raise UserError(f"{name} has an empty value; see {prog} --help")
    start: Any = tyro.MISSING_NONPROP if default is None else default
    message = io.StringIO()
    config = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)
    registry = ConstructorRegistry()
    registry.struct_rule(_describe_fields)
    try:
        with contextlib.redirect_stderr(message), registry:
            options = tyro.cli(kind, prog=prog, args=list(argv), default=start, config=config)
    except SystemExit as error:
        if not error.code:
            raise
        summary = _summarize_message(message.getvalue(), kind, argv)
        raise UserError(f"{summary}; see {prog} --help") from error
    return _expand_paths(options)


def require_option(value: Value | None, message: str) -> Value:
    """An option that has no default; raises a UserError with the message if it is missing."""
    if value is None:
        raise UserError(message)
    return value


def peek_option(argv: Sequence[str], name: str) -> str | None:
    """The value of one option, on which the defaults of others depend."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(name, nargs="?", dest="value")
    return parser.parse_known_args(argv)[0].value


def field_docs(kind: type) -> dict[str, str]:
    """The text below each field of a dataclass and its bases, in one line."""
    docs: dict[str, str] = {}
    for base in kind.__mro__[:-1]:  # without `object`
        definition: Any = ast.parse(inspect.getsource(base)).body[0]
        for field, below in itertools.pairwise(definition.body):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                docs[ast.unparse(field.target)] = " ".join(ast.literal_eval(below.value).split())
    return docs


def _describe_fields(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Has tyro show each field's text as one paragraph, and its default if that says something."""
    if not dataclasses.is_dataclass(info.type):
        return None
    docs, hints = field_docs(info.type), get_type_hints(info.type, include_extras=True)
    fields = []
    for field in dataclasses.fields(info.type):
        hint: Any = hints[field.name]
        text, default = docs.get(field.name, ""), field.default
        if hasattr(info.default, field.name):
            default = getattr(info.default, field.name)
        elif default is dataclasses.MISSING:
            factory = field.default_factory
            missing = factory is dataclasses.MISSING
            default = tyro.MISSING_NONPROP if missing else factory()
        if text:
            says_nothing = "Default: " in text or default is None or default is False
            says_nothing = says_nothing or default == ()
            shown = tyro.conf.arg(
                help=text,
                help_behavior_hint="" if says_nothing else None,
                metavar=next((METAVARS[x] for x in (hint, *get_args(hint)) if x in METAVARS), None),
            )
            hint = Annotated[(hint, shown, *getattr(hint, "__metadata__", ()))]
        fields.append(StructFieldSpec(field.name, hint, default))
    return StructConstructorSpec(info.type, tuple(fields))


def _expand_paths(options: Any) -> Any:
    """The options with `~` in paths replaced; raises a UserError if a path cannot be used."""

    def expand(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(expand, value))
        if not isinstance(value, Path):
            return value
        path = value.expanduser()
        path.exists()  # raises for a path that is too long or forbidden
        return path

    try:
        values = {name: expand(value) for name, value in vars(options).items()}
    except RuntimeError as error:
        raise UserError("a path begins with ~, but there is no such user or home") from error
    except OSError as error:
        raise UserError(f"cannot use {error.filename}: {error.strerror}") from error
    return dataclasses.replace(options, **values)


def _summarize_message(message: str, kind: type, argv: Sequence[str]) -> str:
    """The first paragraph of tyro's framed message in one line, with what was perhaps meant."""
    paragraphs = [""]
    for line in message.splitlines():
        text = line.strip(" │")
        if text and set(text) <= set("─-"):
            paragraphs.append("")
        elif not text.startswith(("╭", "╰")):
            paragraphs[-1] = f"{paragraphs[-1]} {text}".strip()
    if "╭" not in message:  # without a frame, the title is a paragraph
        del paragraphs[0]
    summary = paragraphs[0].rstrip(".").replace("Expected 1 values", "Expected a value")
    wrong_number = re.match(r"Error parsing (--[\w-]+): .*'(.*)'", summary)
    if wrong_number:
        metavar = re.findall(rf"{wrong_number[1]} (\w+)", " ".join(paragraphs[1:]))
        if metavar and metavar[0] in KINDS:
            return f"{wrong_number[1]} must be {KINDS[metavar[0]]}, but is {wrong_number[2]!r}"
    unknown = re.match(r"Unrecognized options: ([^,]*)", summary)
    hint = _suggest(unknown[1], kind) if unknown else None
    hint = None if hint and hint.split()[0] in argv else hint
    return f"{summary} (perhaps you meant {hint}?)" if hint else summary


def _suggest(unknown: str, kind: type) -> str | None:
    """The flag that was perhaps meant: one with a similar name, or `--learning-rate` for `--lr`."""
    fields = _all_fields(kind)
    if not unknown.startswith("-"):
        target = "output" if "output" in fields else "workdir"
        return f"{flag_name(target)} {unknown}" if target in fields else None
    flags = [flag_name(name) for name in fields]
    initials = {"".join(word[0] for word in flag[2:].split("-")): flag for flag in flags}
    similar = [flag for flag in flags if len(unknown) > 3 and flag.startswith(unknown)]
    similar = similar or difflib.get_close_matches(unknown, flags, n=1) or [None]
    return initials.get(unknown.strip("-"), similar[0])


def _all_fields(kind: Any) -> list[str]:
    """The names of a dataclass's fields, and of those of the dataclasses in it."""
    names = []
    for field in dataclasses.fields(kind):
        types = (x for x in get_args(field.type) if isinstance(x, type))
        inner = [x for x in types if dataclasses.is_dataclass(x)]
        names += _all_fields(inner[0]) if inner else [field.name]
    return names
