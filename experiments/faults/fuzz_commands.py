"""Generated input for the commands: command lines, configs, damaged JSON, images."""

import copy
import dataclasses
import functools
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin
from unittest import mock

from hypothesis import strategies as st

from experiments.faults import fuzz_images
from experiments.faults import fuzz_runner as fuzz
from experiments.faults.fault import Fault, Outcome
from mnist_flax import compare, demo, evaluate, export, predict, run
from mnist_flax import list as list_command
from mnist_flax.core.config import Config, UserError, flag_name
from mnist_flax.engine import distributed
from mnist_flax.run import experiment


def any_command_line(folder: Path) -> fuzz.Experiment:
    """All options of all commands, except that nothing is trained or served."""
    fuzz.tiny_run(folder)
    (folder / "empty").mkdir()
    (folder / "file").write_text("not a folder")
    experiment.run_experiment = mock.Mock(side_effect=UserError("not trained"))
    distributed.initialize = demo.make_app = demo.serve = mock.Mock()

    def check(case: tuple[Any, list[str]]) -> Outcome:
        module, argv = case
        # `predict` reports each unreadable image in a separate line.
        # The first evaluation compiles, which takes longer than a refusal may.
        return fuzz.run(module.main, argv, seconds=60, one_line=module is not predict)

    modules: list[Any] = [run, evaluate, compare, predict, export, demo, list_command]
    cases = [st.tuples(st.just(x), command_lines(x.Options, folder)) for x in modules]
    return check, st.one_of(cases)


def command_lines(kind: type, folder: Path) -> st.SearchStrategy[list[str]]:
    """Any options of a command, some of them with values that may be valid."""
    options, run = dict(_options(kind)), str(folder / "run")
    names = st.sampled_from(["run", "empty", "missing", "file", "~nobody", "..", "long" * 2_000])
    paths = names.map(lambda name: name if "~" in name else str(folder / name))
    special = st.sampled_from(("", "-", "--", "nan", "1e999", "é"))
    junk = fuzz.TEXT | fuzz.NUMBERS.map(str) | special
    parts = [junk.map(lambda text: [text]), st.just(["--help"])]
    for name, hint in options.items():
        flag = "--" + name.replace("_", "-")
        valid = st.sampled_from([str(x) for x in _choices(hint)] or ["1"])
        value = st.one_of(paths if "Path" in str(hint) else valid, junk)
        parts += [
            value.map(lambda text, flag=flag: [flag, text]),
            value.map(lambda text, flag=flag: [f"{flag}={text}"]),
            st.sampled_from([[flag], [flag.upper()], [flag[:-1]]]),
        ]
    positional = [run for name in ("a", "b", "folder") if name in options]
    start = st.sampled_from([[], positional or ["--workdir", run]])
    lists = st.tuples(start, st.lists(st.one_of(parts), max_size=5))
    return lists.map(lambda case: case[0] + [text for part in case[1] for text in part])


def _options(kind: type) -> Iterator[tuple[str, Any]]:
    """Name and type of each option in a dataclass of options."""
    for field in dataclasses.fields(kind):
        inner = next((arg for arg in get_args(field.type) if dataclasses.is_dataclass(arg)), None)
        if isinstance(inner, type):
            yield from _options(inner)
        else:
            yield field.name, field.type


def _choices(hint: Any) -> tuple[Any, ...]:
    """The values of a `Literal`, also inside another type."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return tuple(value for inner in get_args(hint) for value in _choices(inner))


# Values of fields for which most values take too long, are invalid, or diverge.
COMMON = {
    "dataset": st.just("digits"),
    "validation_fraction": st.sampled_from((0.0, 0.001, 0.5, 0.99)),
    "channels": st.integers(1, 9),
    "epochs": st.integers(1, 2),
    "batch_size": st.sampled_from((15, 359, 1_437)),
    "learning_rate": st.floats(1e-38, 1e38) | st.floats(1e-4, 1e-1),
    "adam_epsilon": st.floats(1e-37, 1e38) | st.just(1e-7),
    "num_seeds": st.integers(1, 3),
}


def valid_configs() -> st.SearchStrategy[list[str]]:
    """The flags of valid configs."""

    def values(field: dataclasses.Field[Any]) -> st.SearchStrategy[Any]:
        if _choices(field.type):
            return st.sampled_from(_choices(field.type))
        low, high, _ = field.metadata["limits"]
        if field.type is float:
            return st.floats(low, high)
        return st.integers(low, low + 1) | st.integers(low, high if high < math.inf else None)

    def is_valid(values: dict[str, Any]) -> bool:
        try:
            return bool(Config(**values))
        except UserError:
            return False

    # A switch takes no value; `any_command_line` includes it.
    fields = [field for field in dataclasses.fields(Config) if field.type is not bool]
    strategies = {x.name: COMMON[x.name] if x.name in COMMON else values(x) for x in fields}
    configs = st.fixed_dictionaries(strategies).filter(is_valid)
    return configs.map(lambda config: [f"{flag_name(k)}={value}" for k, value in config.items()])


def random_configs(folder: Path) -> fuzz.Experiment:
    """Runs of random valid configs, which finish, or diverge and report that."""

    def main(argv: Sequence[str]) -> int:
        # A divergence may be reported in one line; nothing may be refused.
        return {0: 0, 1: 2, 2: 1}[run.main(argv)]

    def check(flags: list[str]) -> Outcome:
        shutil.rmtree("run", ignore_errors=True)
        return fuzz.run(main, ["--workdir", "run", *flags], seconds=120)

    return check, valid_configs()


def damaged_json(text: str) -> st.SearchStrategy[bytes]:
    """An object with a value replaced or removed, a key twice, or bytes changed."""
    document = json.loads(text)

    def replace(path: tuple[str, ...], value: Any, is_removed: bool) -> bytes:
        root = {"": copy.deepcopy(document)}
        parent: Any = functools.reduce(lambda part, name: part[name], path[:-1], root)
        parent[path[-1]] = value
        if is_removed:
            del parent[path[-1]]
        return json.dumps(root.get("")).encode()

    def duplicate(key: str, value: Any) -> bytes:
        return f"{{{json.dumps(key)}: {json.dumps(value)}, {text.lstrip()[1:]}".encode()

    return st.one_of(
        st.builds(replace, st.sampled_from(list(_paths(document))), fuzz.ANYTHING, st.booleans()),
        st.builds(duplicate, st.sampled_from(list(document)), fuzz.ANYTHING),
        st.builds(fuzz.change, st.just(text.encode()), fuzz.CHANGES),
        st.sampled_from((b"[" * 100_000, b'{"a":' * 900 + b"1" + b"}" * 900, b"\xff\xfe", b"")),
    )


def _paths(value: Any, path: tuple[str, ...] = ("",)) -> Iterator[tuple[str, ...]]:
    """The path to each value inside a JSON value."""
    yield path
    for name, inner in value.items() if isinstance(value, dict) else ():
        yield from _paths(inner, (*path, name))


def _damaged_metrics(content: str) -> st.SearchStrategy[bytes]:
    """`metrics.jsonl` with its first line damaged."""
    line, rest = content.split("\n", 1)
    return damaged_json(line).map(lambda damaged: damaged + b"\n" + rest.encode())


def damaged_config(folder: Path) -> fuzz.Experiment:
    """All commands that read `config.json`; `compare` also reads an intact run."""
    workdir, picture = fuzz.tiny_run(folder), folder / "picture"
    picture.write_bytes(fuzz_images.pictures()["L.png"])
    shutil.copytree(workdir, folder / "intact")
    file = workdir / "config.json"

    def check(content: bytes) -> Outcome:
        file.write_bytes(content)
        evaluation = ("--workdir", workdir, "--dataset", "digits", "--no-report")
        return (
            fuzz.run(run.main, ("--workdir", workdir, *fuzz.TINY))
            or fuzz.run(predict.main, ("--workdir", workdir, picture))
            or fuzz.run(evaluate.main, evaluation)
            or fuzz.run(compare.main, (folder / "intact", workdir))
        )

    return check, damaged_json(file.read_text())


def damaged_results(folder: Path) -> fuzz.Experiment:
    """The commands that read `summary.json` and `metrics.jsonl`, and draw a report of them."""
    import numpy as np

    from mnist_flax.evaluate import report

    workdir = fuzz.tiny_run(folder)
    summary, metrics = (workdir / name for name in ("summary.json", "metrics.jsonl"))
    intact = {file: file.read_bytes() for file in (summary, metrics)}
    # The slow part of a report, which does not depend on these files.
    report.explain_classes = lambda *_: np.zeros((2, 10, 28, 28))

    def check(case: tuple[Path, bytes]) -> Outcome:
        for file, content in (intact | dict([case])).items():
            file.write_bytes(content)
        arguments = ("--workdir", workdir)
        return fuzz.run(run.main, (*arguments, *fuzz.TINY)) or fuzz.run(evaluate.main, arguments)

    changed = st.builds(fuzz.change, st.just(intact[metrics]), fuzz.CHANGES)
    return check, st.one_of(
        st.tuples(st.just(summary), damaged_json(intact[summary].decode())),
        st.tuples(st.just(metrics), _damaged_metrics(intact[metrics].decode()) | changed),
    )


def resumed_with_damaged_metrics(folder: Path) -> fuzz.Experiment:
    """A run without its summary and with damaged metrics, resumed by the same command."""
    original, workdir = fuzz.tiny_run(folder), folder / "copy"
    content = (original / "metrics.jsonl").read_text()
    (original / "summary.json").unlink()

    def check(case: bytes) -> Outcome:
        shutil.rmtree(workdir, ignore_errors=True)
        shutil.copytree(original, workdir)
        (workdir / "metrics.jsonl").write_bytes(case)
        return fuzz.run(run.main, ["--workdir", workdir, *fuzz.TINY, "--no-report"], seconds=60)

    return check, _damaged_metrics(content)


# Only fast tries are repeated to reduce a failing case.
FAULTS = tuple(
    Fault(name, functools.partial(fuzz.isolated, define, tries >= 50), tries, few)
    for name, define, tries, few in (
        ("any command line", any_command_line, 200, 50),
        ("any valid config", random_configs, 12, 1),
        ("a damaged `config.json`", damaged_config, 50, 10),
        ("a damaged `summary.json` or `metrics.jsonl`", damaged_results, 50, 10),
        ("resuming with a damaged `metrics.jsonl`", resumed_with_damaged_metrics, 12, 1),
        ("image bytes for `predict`", fuzz_images.image_bytes, 200, 50),
        ("file names for `predict`", fuzz_images.file_names, 50, 20),
        ("huge pictures for `predict`", fuzz_images.huge_pictures, 11, 2),
    )
)
