"""Single system calls that fail while a run writes, as on a dying disk or a network file system."""

import atexit
import errno
import functools
import os
import random
import shutil
import subprocess
import tempfile
from pathlib import Path

from experiments.faults import fault
from experiments.faults.fault import ARGUMENTS, Fault, Outcome, check_refusal, repeated

CALLS = {
    "write": (errno.EIO, errno.ENOSPC),
    "fsync": (errno.EIO,),
    "flock": (errno.EIO, errno.ENOSYS),
    "open": (errno.EIO, errno.EMFILE),
    "mkdir": (errno.EIO,),
    "rename": (errno.EIO,),
    "unlink": (errno.EIO,),
    "rmdir": (errno.EIO,),
}


@functools.cache
def library() -> Path | None:
    """`system_calls.c`, compiled; None where there is no C compiler or no Linux."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler or not Path("/proc/self/fd").exists():
        return None
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    source, compiled = Path(__file__).with_suffix(".c"), folder / "system_calls.so"
    command = [compiler, "-shared", "-fPIC", "-o", compiled, source, "-ldl", "-lpthread"]
    ended = subprocess.run(command, capture_output=True, check=False)
    return compiled if ended.returncode == 0 else None


def loading_library(**settings: object) -> list[str]:
    """The beginning of a command that is run with the library."""
    settings = {"LD_PRELOAD": library(), **settings}
    return ["env", *(f"{name}={value}" for name, value in settings.items())]


def failing_call(workdir: Path, number: int, rng: random.Random) -> Outcome:
    """One call fails: the run ends in one line or continues, and resumes to the same result."""
    name = list(CALLS)[number % len(CALLS)]
    error, call = rng.choice(CALLS[name]), rng.choice((1, 2, 3, 5, 8, 13, 21, 34))
    fault.baseline(*ARGUMENTS)
    prefix = loading_library(
        FAULT_FOLDER=workdir, FAULT_NAME=name, FAULT_CALL=call, FAULT_ERRNO=error
    )
    code, _, errors = fault.train(workdir, *ARGUMENTS, prefix=prefix)
    problem = check_refusal(code, errors) if code else errors
    if not problem:
        code, _, errors = fault.train(workdir, *ARGUMENTS)
        problem = errors if code else fault.compare(workdir, *ARGUMENTS)
    return problem and f"{name} {call}, {os.strerror(error)}: {problem[-300:]}"


FAULTS = (Fault("a system call that fails", repeated(failing_call, library), 24, 3),)
