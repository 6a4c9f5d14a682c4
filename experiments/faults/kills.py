"""Runs that are killed, interrupted, started twice or long, compared with an undisturbed run."""

import contextlib
import functools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil

from experiments.faults import fault
from experiments.faults.fault import DIGITS, EPOCHS, Attempts, Fault, Outcome, baseline, repeated
from mnist_flax.data.tfds_mnist import CACHE_NAME
from mnist_flax.engine.workdir import CHECKPOINTED

MNIST = ("--dataset", "mnist", "--preset", "quick", "--batch-size", "512", "--no-report")
has_mnist = functools.partial(os.environ.get, "MNIST_FLAX_MANUAL_DIR")
SIGNAL_SECONDS = 5  # that a run may take to end

Check = Callable[[], bool]


def resume(workdir: Path, *arguments: str) -> Outcome:
    """Resumes a run by the same command, and compares it with the undisturbed one."""
    had_checkpoint = (workdir / CHECKPOINTED).exists()
    code, output, errors = fault.train(workdir, *arguments)
    if code or errors:
        return f"resuming ended with code {code}: {errors[-300:]}"
    if had_checkpoint and "resuming from step" not in output and "is finished" not in output:
        return f"started again, though a checkpoint had been saved: {output[-300:]}"
    return fault.compare(workdir, *arguments)


def wait_until(process: subprocess.Popen[str], condition: Check) -> None:
    """Returns once the condition holds or the process has ended, or raises a RuntimeError."""
    end = time.monotonic() + fault.TIMEOUT
    while process.poll() is None and not condition():
        if time.monotonic() > end:
            process.kill()
            raise RuntimeError(f"nothing happened for {fault.TIMEOUT} s")
        time.sleep(0.002)


def kill(
    workdir: Path, delay: Callable[[], float], condition: Check, is_late: Check, *arguments: str
) -> None:
    """Kills a training some time after a condition; again if that was too late."""
    for _ in range(20):
        process = fault.start(workdir, *arguments)
        wait_until(process, condition)
        time.sleep(delay())
        process.kill()
        if fault.finish(process)[0] == -signal.SIGKILL and not is_late():
            return
        shutil.rmtree(workdir, ignore_errors=True)
    raise RuntimeError("20 processes in a row ended before they were killed")


def killed_when(condition: Callable[[Path, int], bool], max_delay: float | None = None) -> Attempts:
    """Kills runs up to `max_delay` s, or half a run, after a condition on workdir and epochs."""

    def attempt(workdir: Path, number: int, rng: random.Random) -> Outcome:
        _, seconds = baseline(*DIGITS)
        limit, epochs = max_delay or seconds / 2, rng.randrange(EPOCHS)
        delay = functools.partial(rng.uniform, 0, limit)
        is_late = (workdir / "summary.json").exists
        kill(workdir, delay, lambda: condition(workdir, epochs), is_late, *DIGITS)
        return resume(workdir, *DIGITS)

    return repeated(attempt)


def _epochs(workdir: Path) -> int:
    """How many are in the metrics."""
    path = workdir / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def _is_training(workdir: Path, epochs: int) -> bool:
    return _epochs(workdir) >= epochs and (workdir / "checkpoints").exists()


def _is_saving(workdir: Path, epochs: int) -> bool:
    """Whether a checkpoint is being written, or is complete but has no checksums yet."""
    entries = (workdir / "checkpoints").glob("*") if _epochs(workdir) > epochs else ()
    return any("tmp" in entry.name or not (entry / "SHA256SUMS").exists() for entry in entries)


def killed_preparing(workdir: Path, number: int, rng: random.Random) -> Outcome:
    """With MNIST, from its original files each time."""
    data = workdir.with_name("data")
    arguments = (*MNIST, "--data-dir", str(data))
    baseline(*arguments)
    shutil.rmtree(data)

    def is_late() -> bool:
        is_prepared = any(data.rglob(CACHE_NAME))
        if is_prepared:
            shutil.rmtree(data)
        return is_prepared

    kill(workdir, lambda: rng.uniform(0, 25), data.exists, is_late, *arguments)
    return resume(workdir, *arguments)


def interrupted(workdir: Path, number: int, rng: random.Random) -> Outcome:
    """SIGTERM and Ctrl-C in turn, at moments spread over the whole run."""
    signum = (signal.SIGTERM, signal.SIGINT)[number % 2]
    _, seconds = baseline(*DIGITS)
    process = fault.start(workdir, *DIGITS)
    share = (0.618 * number + 0.1 * rng.random()) % 1  # the golden ratio spreads them evenly
    # Python needs a moment before it can handle signals.
    time.sleep(0.5 + (seconds - 0.5) * share)
    process.send_signal(signum)
    try:
        code, _, errors = fault.finish(process, SIGNAL_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        fault.finish(process)
        return f"still running {SIGNAL_SECONDS} s after {signum.name}"
    if code not in (0, -signum, 128 + signum) or errors.count("\n") > 1:
        return f"{signum.name} ended with code {code}: {errors[-300:]}"
    if code != 128 + signum and not (workdir / "summary.json").exists():
        return f"{signum.name} ended with code {code} before the run was finished"
    return resume(workdir, *DIGITS)


def started_twice(workdir: Path, number: int, rng: random.Random) -> Outcome:
    """A second process beside the first, or, in every other try, after that was killed."""
    baseline(*fault.ARGUMENTS)
    first = fault.start(workdir, *fault.ARGUMENTS)
    wait_until(first, (workdir / "config.json").exists)
    if number % 2:
        first.kill()
        fault.finish(first)
        return resume(workdir, *fault.ARGUMENTS)
    code, _, errors = fault.train(workdir, *fault.ARGUMENTS)
    first_errors = fault.finish(first)[2]
    holder = f"in use by process {first.pid} on {socket.gethostname()}"
    if code != 2 or holder not in errors or errors.count("\n") != 1:
        return f"the second ended with code {code}: {errors[-300:]}"
    return first_errors or fault.compare(workdir, *fault.ARGUMENTS)


# glibc then returns freed memory at once; otherwise it sometimes keeps 200 MiB, which hides a leak
# (https://man7.org/linux/man-pages/man3/mallopt.3.html).
THRESHOLDS = ("MALLOC_MMAP_THRESHOLD_=131072", "MALLOC_TRIM_THRESHOLD_=131072")
RETURN_MEMORY = ("env", "MALLOC_ARENA_MAX=1", *THRESHOLDS)


def long_run(folder: Path, tries: int, seed: int) -> Iterator[Outcome]:
    """A run of `tries` epochs, in which memory, open files and files on disk are observed."""
    workdir = folder / "long"
    arguments = ("--dataset", "digits", "--epochs", str(tries), "--no-report")
    process = fault.start(workdir, *arguments, prefix=RETURN_MEMORY)
    observed, samples = psutil.Process(process.pid), []
    with ThreadPoolExecutor(1) as reader:  # without one, the process would block on a full pipe
        ended = reader.submit(fault.finish, process)
        while process.poll() is None:
            kept = len(list((workdir / "checkpoints").glob("*")))
            with contextlib.suppress(psutil.Error):
                memory, files = observed.memory_info().rss, observed.num_fds()
                samples.append((_epochs(workdir), memory, files, kept))
            time.sleep(0.01)
    code, _, errors = ended.result()
    if code:
        yield f"ended with code {code}: {errors[-300:]}"
        return
    # In the first third buffers reach their size; after the last epoch it is not training.
    parts = [
        np.array([x for x in samples if third * tries / 3 <= x[0] < (third + 1) * tries / 3]).T
        for third in (1, 2)
    ]
    epochs, memory = np.concatenate(parts, axis=1)[:2]
    details = {
        "epochs": tries,
        "memory_kib_per_epoch": float(np.polyfit(epochs, memory / 2**10, 1)[0]),
        # In the second and in the last third.
        "peak_memory_mib": [float(memory.max() / 2**20) for _, memory, _, _ in parts],
        "open_files_at_rest": [int(files.min()) for _, _, files, _ in parts],
        "open_files_while_saving": [int(files.max()) for _, _, files, _ in parts],
        "most_checkpoints": int(max(kept.max() for _, _, _, kept in parts)),
        "workdir_bytes": sum(path.stat().st_size for path in workdir.rglob("*") if path.is_file()),
    }
    (folder / "details.json").write_text(json.dumps(details))
    memory_growth = float(np.diff(details["peak_memory_mib"])[0])
    file_growth = int(np.diff(details["open_files_at_rest"])[0])
    # One that is being written and one that is being deleted, besides the three kept.
    has_grown = memory_growth > 32 or file_growth > 2 or details["most_checkpoints"] > 5
    yield from [f"grown: {details}" if has_grown else None] * tries


FAULTS = (
    Fault("SIGKILL while it starts and compiles", killed_when(lambda *_: True), 10, 1),
    Fault("SIGKILL while it trains", killed_when(_is_training, 0.3), 10, 1),
    Fault("SIGKILL while a checkpoint is written", killed_when(_is_saving, 0.05), 10, 1),
    Fault(
        "SIGKILL while the report is written",
        killed_when(lambda run, _: _epochs(run) >= EPOCHS),
        10,
        1,
    ),
    Fault("SIGKILL while MNIST is prepared", repeated(killed_preparing, has_mnist), 5, 0),
    Fault("SIGTERM or Ctrl-C at any moment", repeated(interrupted), 20, 2),
    Fault("two processes in one workdir", repeated(started_twice), 10, 2),
    Fault("epoch after epoch, in one process", long_run, 500, 30),
)
