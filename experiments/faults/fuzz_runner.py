"""Runs commands on generated input: all cases of a fault in one process, which may be spoiled.

A command must end within seconds and below 2 GB, with code 0, or with 2 and one line on stderr.
"""

import functools
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NoReturn

import hypothesis
from hypothesis import HealthCheck as Health
from hypothesis import strategies as st
from hypothesis.errors import Flaky

from experiments.faults.fault import Outcome, check_refusal
from mnist_flax.run import main as train

SECONDS, BYTES = 10, 2e9
# A run that trains in seconds.
TINY = ("--dataset", "digits", "--epochs", "2", "--batch-size", "512", "--channels", "4")
# What a command says where no run is named, whether it then succeeds or not.
PRETRAINED_NOTE = "using the pretrained network"

Main = Callable[[Sequence[str]], int]
# What checks a case, and how to generate cases.
Experiment = tuple[Callable[[Any], Outcome], st.SearchStrategy[Any]]


class TimeIsUp(BaseException):
    """Not an `Exception`, which a decoder could catch."""


def run(
    main: Main, argv: Sequence[str | Path], seconds: int = SECONDS, one_line: bool = True
) -> Outcome:
    """What is wrong with how a command ended; `one_line` if it may report only one mistake."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="strict")
    for stream in (1, 2):
        os.ftruncate(stream, 0)
    signal.alarm(seconds)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            for kind in (DeprecationWarning, PendingDeprecationWarning, ResourceWarning):
                warnings.simplefilter("ignore", kind)
            code = main([str(arg) for arg in argv])
    except TimeIsUp:
        return f"did not end within {seconds} s"
    except SystemExit as end:
        code = end.code or 0
    except BaseException as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    finally:
        signal.alarm(0)
    sys.stdout.flush()
    sys.stderr.flush()
    output, errors = (os.pread(x, 1_000_000, 0).decode(errors="replace") for x in (1, 2))
    if any(not char.isprintable() for char in (output + errors).replace("\n", "")):
        return f"control characters: {output!r}, {errors!r}"
    lines = errors.splitlines(keepends=True)
    errors = "".join(line for line in lines if not line.startswith(PRETRAINED_NOTE))
    if not code and not errors:
        return None
    mistakes = [errors] if one_line else errors.splitlines() or [""]
    return next(filter(None, (check_refusal(int(code), text) for text in mistakes)), None)


def run_cases(experiment: Experiment, tries: int, seed: int, shrink: bool) -> list[Outcome]:
    """The outcome of each try; ends with the first failure, reduced to a small case if `shrink`."""
    outcomes: list[Outcome] = []
    check, cases = experiment

    def attempt(case: Any) -> None:
        outcomes.append(check(case))
        if outcomes[-1]:
            raise AssertionError(f"{outcomes[-1]}: {case!r}"[:4_000])

    settings = hypothesis.settings(
        max_examples=tries,
        phases=(hypothesis.Phase.generate, *((hypothesis.Phase.shrink,) * shrink)),
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=(Health.too_slow, Health.filter_too_much, Health.data_too_large),
    )
    try:
        hypothesis.seed(seed)(settings(hypothesis.given(cases)(attempt)))()
    except (AssertionError, Flaky) as failure:
        return [outcome for outcome in outcomes if not outcome] + [str(failure)]
    return outcomes


def isolated(
    define: Callable[[Path], Experiment], shrink: bool, folder: Path, tries: int, seed: int
) -> Iterator[Outcome]:
    """The outcomes in a separate process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            yield from pool.submit(_isolate, define, shrink, folder, tries, seed).result()
        except BrokenProcessPool:
            yield f"the process died; see {folder}"


def _isolate(
    define: Callable[[Path], Experiment], shrink: bool, folder: Path, tries: int, seed: int
) -> list[Outcome]:
    """The outcomes, and one more if this process needed too much memory; it may be spoiled."""
    from mnist_flax.data import dataset, mnist_c
    from mnist_flax.data.download import DataUnavailable
    from mnist_flax.engine import checkpoint

    def on_alarm(*_: object) -> None:
        raise TimeIsUp

    def no_network(*_: object) -> NoReturn:
        raise DataUnavailable("this process has no network")

    signal.signal(signal.SIGALRM, on_alarm)
    for stream in (1, 2):
        file = os.open(folder / f"stream{stream}", os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(file, stream)
    home = folder / "home"
    home.mkdir()
    os.chdir(home)
    os.environ["HOME"] = str(home)
    dataset.load_tfds = mnist_c.load_mnist_c = no_network
    checkpoint.load_params = functools.cache(checkpoint.load_params)
    outcomes = run_cases(define(folder), tries, seed, shrink)
    # In KiB. `ru_maxrss` would start with the memory of the parent.
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    return outcomes + [f"{peak / 1e9:.1f} GB of memory"] * (peak > BYTES)


def tiny_run(folder: Path) -> Path:
    """The workdir of a finished run of `TINY`."""
    workdir = folder / "run"
    if train(["--workdir", str(workdir), *TINY]):
        raise RuntimeError(f"cannot train {TINY}; see {folder}")
    return workdir


# What an argument, a name or a string may be; the system itself refuses a zero byte.
TEXT = st.text(st.characters(exclude_characters="\0/", categories=None), max_size=12)
# Also numbers with more digits than Python converts.
NUMBERS = st.one_of(
    st.integers(-3, 70_000),
    st.integers(),
    st.sampled_from((2**31, 2**32, 2**53, 2**63, 2**64, 10**400)),
    st.floats(),
)
ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXT, st.just("<script>alert(1)</script>\x1b[2J")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=6,
)
# Positions, how many bytes to remove there, and what to insert.
CHANGES = st.lists(
    st.tuples(
        st.integers(0, 80) | st.integers(0, 2_000),
        st.sampled_from((0, 1, 4, 10**9)),
        st.binary(max_size=4) | st.sampled_from((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff")),
    ),
    min_size=1,
    max_size=4,
)


def change(content: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    """Bytes after some of `CHANGES`."""
    for position, removed, inserted in changes:
        start = position % (len(content) + 1)
        content = content[:start] + inserted + content[start + removed :]
    return content
