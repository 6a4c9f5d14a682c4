"""What may be handed to the commands: any command line, config, damaged JSON, any picture."""

import copy
import dataclasses
import functools
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin
from unittest import mock

from fuzz_pictures import file_names, huge_pictures, image_bytes, pictures
from fuzzing import ANYTHING, CHANGES, NUMBERS, TEXT, TINY, apart, changed, ended, tiny_run, tried
from hypothesis import strategies as st
from trials import Fault, Outcome


def options_of(kind: type) -> Iterator[tuple[str, Any]]:
    """The name and the type of each option in a dataclass of options."""
    for field in dataclasses.fields(kind):
        inner = next((arg for arg in get_args(field.type) if dataclasses.is_dataclass(arg)), None)
        if isinstance(inner, type):
            yield from options_of(inner)
        else:
            yield field.name, field.type


def command_lines(kind: type, folder: Path) -> st.SearchStrategy[list[str]]:
    """Any options of a command, some of them with values that they may have."""
    places = st.sampled_from(["run", "empty", "missing", "file", "~nobody", "..", "long" * 2_000])
    paths = places.map(lambda place: place if "~" in place else str(folder / place))
    junk = st.one_of(TEXT, NUMBERS.map(str), st.sampled_from(("", "-", "--", "nan", "1e999", "é")))
    parts = [junk.map(lambda text: (text,)), st.just(("--help",))]
    for name, hint in options_of(kind):
        flag = "--" + name.replace("_", "-")
        texts = st.sampled_from([str(x) for x in _choices(hint)] or ["1"])
        value = st.one_of(paths, junk) if "Path" in str(hint) else st.one_of(texts, junk)
        parts += [
            value.map(lambda text, flag=flag: (flag, text)),
            value.map(lambda text, flag=flag: (f"{flag}={text}",)),
            st.sampled_from([(flag,), (flag.upper(),), (flag[:-1],)]),
        ]
    run = str(folder / "run")
    start = ["--workdir", run] if "workdir" in dict(options_of(kind)) else [run, run]
    lists = st.tuples(st.sampled_from([[], start]), st.lists(st.one_of(parts), max_size=5))
    return lists.map(lambda case: case[0] + [text for part in case[1] for text in part])


def _choices(hint: Any) -> tuple[Any, ...]:
    """The values of a `Literal`, also of one inside another type."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return tuple(value for inner in get_args(hint) for value in _choices(inner))


def any_command_line(folder: Path, tries: int, seed: int) -> list[Outcome]:
    """Every option of every command; what would train or serve is left out."""
    from mnist_flax import compare, demo, evaluate, export, predict, run

    tiny_run(folder)
    (folder / "empty").mkdir()
    (folder / "file").write_text("no folder")
    outcomes: list[Outcome] = []
    with mock.patch.object(demo, "serve"), mock.patch.object(run, "_run", return_value=0):
        for module in (run, evaluate, compare, predict, export, demo):
            cases = command_lines(module.Options, folder)
            # Of many pictures, each that cannot be read is told in a line of its own.
            check = functools.partial(ended, module.main, one_mistake=module is not predict)
            outcomes += tried(check, cases, tries // 6, seed)
    return outcomes


# Values that each number in a config may have, from end to end.
VALID: dict[str, st.SearchStrategy[Any]] = {
    "validation_fraction": st.sampled_from((0.0, 0.001, 0.5, 0.99)),
    "channels": st.integers(1, 9),
    "shift": st.integers(0, 6),
    "rotation": st.floats(0, 180),
    "zoom": st.floats(0, 1),
    "shear": st.floats(0, 1),
    "elastic": st.floats(0, 10),
    "epochs": st.integers(1, 2),
    "batch_size": st.sampled_from((15, 359, 1_437)),
    "learning_rate": st.floats(1e-38, 1e38) | st.floats(1e-4, 1e-1),
    "warmup_fraction": st.floats(0, 1),
    "adam_b1": st.floats(0, 1, exclude_max=True),
    "adam_b2": st.floats(0, 1, exclude_max=True),
    "adam_epsilon": st.floats(1e-37, 1e38) | st.just(1e-7),
    "weight_decay": st.floats(0, 1),
    "seed": st.integers(0, 2**32 - 4),
    "num_seeds": st.integers(1, 3),
    "eval_every": st.integers(1, 2) | st.integers(1),
    "checkpoint_every": st.integers(1, 2) | st.integers(1),
    "keep_checkpoints": st.integers(1, 2) | st.integers(1),
}


def valid_configs() -> st.SearchStrategy[tuple[str, ...]]:
    """The flags of configs that may be run."""
    from mnist_flax.config import Config, UserError

    # A switch is tried with the command lines; it has no value to be given.
    fields = {x.name: x.type for x in dataclasses.fields(Config) if x.type is not bool}
    some = {
        name: VALID[name] if not _choices(hint) else st.sampled_from(_choices(hint))
        for name, hint in fields.items()
    } | {"dataset": st.just("digits")}

    def runs(values: dict[str, Any]) -> bool:
        try:
            return bool(Config(**values))
        except UserError:
            return False

    chosen = st.fixed_dictionaries(some).filter(runs)
    return chosen.map(
        lambda values: tuple(f"--{k.replace('_', '-')}={value}" for k, value in values.items())
    )


def random_configs(folder: Path, tries: int, seed: int) -> list[Outcome]:
    """Runs of random valid configs, which finish, or diverge and say so."""
    from mnist_flax import run

    def check(flags: tuple[str, ...]) -> Outcome:
        shutil.rmtree("run", ignore_errors=True)
        codes: list[int] = []

        def main(argv: Sequence[str]) -> int:
            codes.append(run.main(argv))
            return 2 if codes[0] == 1 else codes[0]  # both are told in one line

        problem = ended(main, ["--workdir", "run", *flags], seconds=120)
        return problem or ("refused" if codes[0] == 2 else None)

    return tried(check, valid_configs(), tries, seed, shrink=False)


def damaged(text: str) -> st.SearchStrategy[bytes]:
    """JSON with another value in any place or none, with a key twice, or with bytes changed."""
    document = json.loads(text)

    def replaced(way: tuple[Any, ...], value: Any, removed: bool) -> bytes:
        whole = {"": copy.deepcopy(document)}
        inner: Any = functools.reduce(lambda part, name: part[name], way[:-1], whole)
        inner[way[-1]] = value
        if removed:
            del inner[way[-1]]
        return json.dumps(whole.get("")).encode()

    def twice(key: str, value: Any) -> bytes:
        return f"{{{json.dumps(key)}: {json.dumps(value)}, {text.lstrip()[1:]}".encode()

    return st.one_of(
        st.builds(replaced, st.sampled_from(list(_ways(document))), ANYTHING, st.booleans()),
        st.builds(twice, st.sampled_from(list(document)), ANYTHING),
        st.builds(changed, st.just(text.encode()), CHANGES),
        st.sampled_from((b"[" * 100_000, b'{"a":' * 900 + b"1" + b"}" * 900, b"\xff\xfe", b"")),
    )


def _ways(value: Any, way: tuple[Any, ...] = ("",)) -> Iterator[tuple[Any, ...]]:
    """The ways to each value inside a JSON value."""
    yield way
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _ways(inner, (*way, name))


def damaged_config(folder: Path, tries: int, seed: int) -> list[Outcome]:
    """All commands that read one, with another run beside it that is sound."""
    from mnist_flax import checkpoint, compare, evaluate, predict, run

    where, picture = tiny_run(folder), folder / "picture"
    picture.write_bytes(pictures()["L.png"])
    shutil.copytree(where, folder / "sound")
    file = where / "config.json"
    commands = (
        (run.main, ("--workdir", where, *TINY)),
        (predict.main, ("--workdir", where, picture)),
        (evaluate.main, ("--workdir", where, "--dataset", "digits", "--no-report")),
        (compare.main, (folder / "sound", where)),
    )

    def check(content: bytes) -> Outcome:
        file.write_bytes(content)
        problems = (ended(main, argv) for main, argv in commands)
        return next(filter(None, problems), None)

    loaded = functools.cache(checkpoint.load_params)
    with mock.patch.object(checkpoint, "load_params", loaded):
        return tried(check, damaged(file.read_text()), tries, seed)


def damaged_results(folder: Path, tries: int, seed: int) -> list[Outcome]:
    """The commands that read `summary.json` and `metrics.jsonl`; a report is made of them."""
    from mnist_flax import checkpoint, evaluate, plots, report, run

    where = tiny_run(folder)
    files = [where / "summary.json", where / "metrics.jsonl"]
    sound = [file.read_bytes() for file in files]
    line, rest = sound[1].decode().split("\n", 1)
    commands = ((run.main, ("--workdir", where, *TINY)), (evaluate.main, ("--workdir", where)))

    def check(case: tuple[int, bytes]) -> Outcome:
        which, content = case
        for index, file in enumerate(files):
            file.write_bytes(content if index == which else sound[index])
        problems = (ended(main, argv) for main, argv in commands)
        return next(filter(None, problems), None)

    def draw(*args: Any) -> dict[str, bytes]:
        return {"curves": plots.curves(args[3])} if args[3] else {}

    cases = st.one_of(
        st.tuples(st.just(0), damaged(sound[0].decode())),
        st.tuples(st.just(1), damaged(line).map(lambda first: first + b"\n" + rest.encode())),
        st.tuples(st.just(1), st.builds(changed, st.just(sound[1]), CHANGES)),
    )
    loaded = functools.cache(checkpoint.load_params)
    kept = mock.patch.object(checkpoint, "load_params", loaded)
    with kept, mock.patch.object(report, "draw", draw):
        return tried(check, cases, tries, seed)


def gone_on_with(folder: Path, tries: int, seed: int) -> list[Outcome]:
    """A run without its summary and with damaged metrics, which the same command goes on with."""
    from mnist_flax import run

    where, copied = tiny_run(folder), folder / "copied"
    content = (where / "metrics.jsonl").read_bytes()
    (where / "summary.json").unlink()

    def check(case: bytes) -> Outcome:
        shutil.rmtree(copied, ignore_errors=True)
        shutil.copytree(where, copied)
        (copied / "metrics.jsonl").write_bytes(case)
        return ended(run.main, ["--workdir", copied, *TINY, "--no-report"], seconds=60)

    line, rest = content.decode().split("\n", 1)
    cases = damaged(line).map(lambda first: first + b"\n" + rest.encode())
    return tried(check, cases, tries, seed, shrink=False)


FAULTS = tuple(
    Fault(name, functools.partial(apart, attempt), tries, few)
    for name, attempt, tries, few in (
        ("any command line", any_command_line, 3_000, 200),
        ("any valid config", random_configs, 12, 1),
        ("a damaged `config.json`", damaged_config, 500, 30),
        ("a damaged `summary.json` or `metrics.jsonl`", damaged_results, 600, 30),
        ("going on with a damaged `metrics.jsonl`", gone_on_with, 12, 1),
        ("image bytes for `predict`", image_bytes, 12_000, 400),
        ("file names for `predict`", file_names, 2_000, 100),
        ("huge pictures for `predict`", huge_pictures, 11, 2),
    )
)
