"""How commands are fuzzed: each case in the process itself, and that in one of its own.

A command must end within seconds and below 2 GB, with exit code 0, or 2 and one line on stderr.
"""

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
from typing import Any
from unittest import mock

import hypothesis
from hypothesis import HealthCheck as Health
from hypothesis import strategies as st
from hypothesis.errors import Flaky
from trials import Outcome, complaint

SECONDS, BYTES = 10, 2e9
# A run that is trained in seconds, and the same from the start to its end.
TINY = ("--dataset", "digits", "--epochs", "2", "--batch-size", "512", "--channels", "4")

Main = Callable[[Sequence[str]], int]


class Hang(BaseException):
    """The time is over; not an `Exception`, which a decoder's guard would take for its own."""


class Broken(Exception):
    """A try that lost something."""


def ended(
    main: Main, argv: Sequence[str | Path], seconds: int = SECONDS, one_mistake: bool = True
) -> Outcome:
    """What is wrong with how a command ended, which writes to this process's own stderr."""
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
    except Hang:
        return f"no end within {seconds} s"
    except SystemExit as end:
        code = end.code or 0
    except BaseException as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    finally:
        signal.alarm(0)
    sys.stdout.flush()
    sys.stderr.flush()
    written = [os.pread(stream, 1_000_000, 0).decode(errors="replace") for stream in (1, 2)]
    if any(not char.isprintable() for char in "".join(written).replace("\n", "")):
        return f"control characters: {written!r}"
    if not code and not written[1]:
        return None
    told = [written[1]] if one_mistake else written[1].splitlines() or [""]
    return next(filter(None, (complaint(int(code), text) for text in told)), None)


def tried(
    check: Callable[[Any], Outcome],
    cases: st.SearchStrategy[Any],
    tries: int,
    seed: int,
    shrink: bool = True,
) -> list[Outcome]:
    """The outcome of each try; the first that loses something is the last, made small."""
    outcomes: list[Outcome] = []

    def attempt(case: Any) -> None:
        outcomes.append(check(case))
        if outcomes[-1]:
            raise Broken(f"{outcomes[-1]}: {case!r}"[:4_000])

    phases = (hypothesis.Phase.generate, *((hypothesis.Phase.shrink,) * shrink))
    settings = hypothesis.settings(
        max_examples=tries,
        phases=phases,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=(Health.too_slow, Health.filter_too_much, Health.data_too_large),
    )
    try:
        hypothesis.seed(seed)(settings(hypothesis.given(cases)(attempt)))()
    except (Broken, Flaky) as lost:
        return [outcome for outcome in outcomes if not outcome] + [str(lost)]
    return outcomes


def apart(
    attempt: Callable[[Path, int, int], list[Outcome]], folder: Path, tries: int, seed: int
) -> Iterator[Outcome]:
    """An attempt in a process of its own: what it may spoil, and how much memory it takes."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            outcomes, peak = pool.submit(_inside, attempt, folder, tries, seed).result()
        except BrokenProcessPool:
            outcomes, peak = [f"the process died; see {folder}"], 0
    yield from outcomes
    if peak > BYTES:
        yield f"{peak / 1e9:.1f} GB of memory"


def _inside(
    attempt: Callable[[Path, int, int], list[Outcome]], folder: Path, tries: int, seed: int
) -> tuple[list[Outcome], int]:
    def over(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, over)
    for stream in (1, 2):
        file = os.open(folder / f"stream{stream}", os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(file, stream)
    here = folder / "here"
    here.mkdir()
    os.chdir(here)
    os.environ["HOME"] = str(here)
    with (
        mock.patch("mnist_flax.data.load_tfds", side_effect=_no_network),
        mock.patch("mnist_flax.mnist_c.load_mnist_c", side_effect=_no_network),
    ):
        outcomes = attempt(folder, tries, seed)
    return outcomes, _peak()


def _peak() -> int:
    """The most bytes of memory that this process has had.

    Not `ru_maxrss`: that begins with what the process had which started this one.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def _no_network(*_: object) -> None:
    from mnist_flax.download import DataUnavailable

    raise DataUnavailable("there is no network here")


def tiny_run(folder: Path) -> Path:
    """The workdir of a finished run of `TINY`."""
    from mnist_flax import run

    where = folder / "run"
    if run.main(["--workdir", str(where), *TINY]):
        raise RuntimeError(f"cannot train {TINY}; see {folder}")
    return where


# What an argument, a name or a string may be; the system itself refuses a zero byte.
TEXT = st.text(st.characters(exclude_characters="\0/", categories=None), max_size=12)
# Small, huge, and past what the digits of a number may be.
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


# A place, how many bytes to leave out there, and what to put there instead.
CHANGES = st.lists(
    st.tuples(
        st.integers(0, 80) | st.integers(0, 2_000),
        st.sampled_from((0, 1, 4, 10**9)),
        st.binary(max_size=4) | st.sampled_from((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff")),
    ),
    min_size=1,
    max_size=4,
)


def changed(content: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    """Bytes after some of `CHANGES`."""
    for place, without, new in changes:
        at = place % (len(content) + 1)
        content = content[:at] + new + content[at + without :]
    return content
