"""Runs that are killed, stopped, doubled and long: what is left must be as if nothing had been."""

import atexit
import contextlib
import functools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from trials import Fault, Outcome, command

from mnist_flax.tfds_source import CACHE_NAME

DIGITS = ("--dataset", "digits", "--epochs", "6", "--batch-size", "128")
EPOCHS = 6
MNIST = ("--dataset", "mnist", "--preset", "quick", "--batch-size", "512", "--no-report")
TIMING = ("seconds", "images_per_second")

# A run is not waited for longer, in seconds; and what a signal may take.
PATIENCE = 600
SIGNAL_SECONDS = 5


def train(workdir: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Starts a training in a workdir."""
    return command("run", "--workdir", workdir, *arguments, **environment)


def finish(workdir: Path, undisturbed: Path, *arguments: str) -> Outcome:
    """Goes on with a run by the same command, and compares it with the undisturbed one."""
    had = (workdir / ".saved").exists()
    process = train(workdir, *arguments)
    output, errors = process.communicate(timeout=PATIENCE)
    if process.returncode or errors:
        return f"going on ended with code {process.returncode}: {errors[-300:]}"
    if had and "going on from step" not in output and "finished already" not in output:
        return f"started over, though a checkpoint had been saved: {output[-300:]}"
    return difference(workdir, undisturbed)


def difference(workdir: Path, undisturbed: Path) -> Outcome:
    """What two finished runs differ in; None if they are the same but for their pace."""
    for name in ("config.json", "environment.json"):
        if (workdir / name).read_text() != (undisturbed / name).read_text():
            return f"{name} differs"
    ours, theirs = (_result(folder) for folder in (workdir, undisturbed))
    for name in theirs:
        if ours[name] != theirs[name]:
            return f"{name} differs: {ours[name]} instead of {theirs[name]}"
    left = [path.name for path in workdir.rglob("*") if "tmp" in path.name]
    return f"left behind: {left}" if left else None


def _result(workdir: Path) -> dict[str, Any]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    summary = json.loads((workdir / "summary.json").read_text())
    metrics = [{k: v for k, v in json.loads(line).items() if k not in TIMING} for line in lines]
    names = {
        name: sorted(path.name for path in (workdir / name).glob("*"))
        for name in ("checkpoints", "report")
    }
    evaluation = workdir / "report" / "evaluation.json"
    del summary["seconds"]
    return (
        summary
        | names
        | {
            "metrics.jsonl": metrics,
            "evaluation.json": evaluation.read_text() if evaluation.exists() else None,
        }
    )


@functools.cache
def baseline(*arguments: str) -> tuple[Path, float]:
    """An undisturbed run's workdir and seconds; what it compiled is kept for the others."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    workdir, began = Path(folder) / "undisturbed", 0.0
    for _ in range(2):
        shutil.rmtree(workdir, ignore_errors=True)
        began = time.monotonic()
        process = train(workdir, *arguments)
        _, errors = process.communicate(timeout=PATIENCE)
        if process.returncode:
            raise RuntimeError(errors)
    return workdir, time.monotonic() - began


# From the process, its workdir and a random source: waits for the moment to interrupt.
Wait = Callable[[subprocess.Popen[str], Path, random.Random, float], None]


def _killed(wait: Wait, *arguments: str) -> Callable[[Path, int, int], Iterator[Outcome]]:
    def attempt(folder: Path, tries: int, seed: int) -> Iterator[Outcome]:
        rng = random.Random(seed)
        undisturbed, seconds = baseline(*arguments)
        for number in range(tries):
            workdir = folder / f"killed{number}"
            _kill_alive(lambda w=workdir: _killed_once(wait, w, rng, seconds, *arguments))
            yield finish(workdir, undisturbed, *arguments)
            shutil.rmtree(workdir)

    return attempt


def _killed_once(
    wait: Wait, workdir: Path, rng: random.Random, seconds: float, *arguments: str
) -> bool:
    """Whether the kill came before the end."""
    process = train(workdir, *arguments)
    wait(process, workdir, rng, seconds)
    process.kill()
    process.communicate()
    if process.returncode == -signal.SIGKILL and not (workdir / "summary.json").exists():
        return True
    shutil.rmtree(workdir)
    return False


def _kill_alive(kill: Callable[[], bool]) -> None:
    """Tries again where the moment drawn was after the end; that would be no try."""
    if not any(kill() for _ in range(20)):
        raise RuntimeError("20 processes in a row had ended before they were killed")


def _until(process: subprocess.Popen[str], reached: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while process.poll() is None and not reached():
        if time.monotonic() > end:
            process.kill()
            raise RuntimeError(f"nothing happened for {PATIENCE} s")
        time.sleep(0.002)


def _lines(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def _starting(
    process: subprocess.Popen[str], workdir: Path, rng: random.Random, seconds: float
) -> None:
    """Anywhere in importing, data and compiling."""
    time.sleep(rng.uniform(0, seconds / 2))


def _training(
    process: subprocess.Popen[str], workdir: Path, rng: random.Random, seconds: float
) -> None:
    count = rng.randrange(EPOCHS)
    _until(process, lambda: _lines(workdir) >= count and (workdir / "checkpoints").exists())
    time.sleep(rng.uniform(0, 0.3))


def _saving(
    process: subprocess.Popen[str], workdir: Path, rng: random.Random, seconds: float
) -> None:
    """While a checkpoint is being written, or is there and does not count yet."""
    count, folder = rng.randrange(EPOCHS), workdir / "checkpoints"

    def writing() -> bool:
        entries = list(folder.glob("*")) if _lines(workdir) > count else []
        return any("tmp" in entry.name or not (entry / "SHA256SUMS").exists() for entry in entries)

    _until(process, writing)
    time.sleep(rng.uniform(0, 0.05))


def _reporting(
    process: subprocess.Popen[str], workdir: Path, rng: random.Random, seconds: float
) -> None:
    _until(process, lambda: _lines(workdir) >= EPOCHS)
    time.sleep(rng.uniform(0, seconds / 2))


def _killed_preparing(folder: Path, tries: int, seed: int) -> Iterator[Outcome]:
    """On MNIST itself, each time from the original files; nothing where they are not at hand."""
    if not os.environ.get("MNIST_FLAX_MANUAL_DIR"):
        return
    rng = random.Random(seed)
    arguments = (*MNIST, "--data-dir", str(folder / "data"))
    undisturbed, _ = baseline(*arguments)

    def wait(process: subprocess.Popen[str], _: Path, rng: random.Random, seconds: float) -> None:
        _until(process, (folder / "data").exists)
        time.sleep(rng.uniform(0, seconds))

    def kill(workdir: Path) -> bool:
        for made in (folder / "data", workdir):
            shutil.rmtree(made, ignore_errors=True)
        alive = _killed_once(wait, workdir, rng, 25, *arguments)
        return alive and not list((folder / "data").rglob(CACHE_NAME))

    for number in range(tries):
        workdir = folder / f"killed{number}"
        _kill_alive(lambda w=workdir: kill(w))
        yield finish(workdir, undisturbed, *arguments)
        shutil.rmtree(workdir)


def _stopped(folder: Path, tries: int, seed: int) -> Iterator[Outcome]:
    """SIGTERM and Ctrl-C in turn, at moments spread over the whole run."""
    rng = random.Random(seed)
    undisturbed, seconds = baseline(*DIGITS)
    for number in range(tries):
        workdir = folder / f"stopped{number}"
        signum = (signal.SIGTERM, signal.SIGINT)[number % 2]
        process = train(workdir, *DIGITS)
        # Python itself takes a moment before it can listen.
        time.sleep(0.5 + (seconds - 0.5) * (number + rng.random()) / tries)
        process.send_signal(signum)
        try:
            _, errors = process.communicate(timeout=SIGNAL_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            yield f"still there {SIGNAL_SECONDS} s after {signum.name}"
            continue
        if process.returncode not in (0, -signum, 128 + signum) or errors.count("\n") > 1:
            yield f"{signum.name} ended with code {process.returncode}: {errors[-300:]}"
        elif process.returncode != 128 + signum and not (workdir / "summary.json").exists():
            yield f"{signum.name} ended with code {process.returncode} before the run was done"
        else:
            yield finish(workdir, undisturbed, *DIGITS)
        shutil.rmtree(workdir)


def _doubled(folder: Path, tries: int, seed: int) -> Iterator[Outcome]:
    """A second process beside the first, or, in each other try, after that was killed."""
    arguments = (*DIGITS, "--no-report")
    undisturbed, _ = baseline(*arguments)
    for number in range(tries):
        workdir = folder / f"doubled{number}"
        first = train(workdir, *arguments)
        holder = f"in use by process {first.pid} on {socket.gethostname()}"
        _until(first, lambda w=workdir: (w / "config.json").exists())
        if number % 2:
            first.kill()
            first.communicate()
            yield finish(workdir, undisturbed, *arguments)
            continue
        second = train(workdir, *arguments)
        _, errors = second.communicate(timeout=PATIENCE)
        _, firsts = first.communicate(timeout=PATIENCE)
        if second.returncode != 2 or holder not in errors or errors.count("\n") != 1:
            yield f"the second ended with code {second.returncode}: {errors[-300:]}"
        else:
            yield firsts or difference(workdir, undisturbed)


# Has glibc give what is freed back at once; it keeps 200 MiB now and then, which hides a leak
# (https://man7.org/linux/man-pages/man3/mallopt.3.html).
GIVING_BACK = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**17),
    "MALLOC_TRIM_THRESHOLD_": str(2**17),
}


def _long(folder: Path, tries: int, seed: int) -> Iterator[Outcome]:
    """A run of `tries` epochs, watched: memory, open files and what is kept on disk."""
    workdir = folder / "long"
    arguments = ("--dataset", "digits", "--epochs", str(tries), "--no-report")
    process = train(workdir, *arguments, **GIVING_BACK)
    reader = ThreadPoolExecutor(1)  # or the process would wait until somebody reads
    ended = reader.submit(process.communicate)
    watched, seen = psutil.Process(process.pid), []
    while process.poll() is None:
        kept = len(list((workdir / "checkpoints").glob("*")))
        with contextlib.suppress(psutil.Error):
            seen.append((_lines(workdir), watched.memory_info().rss, watched.num_fds(), kept))
        time.sleep(0.01)
    _, errors = ended.result()
    reader.shutdown()
    if process.returncode:
        yield f"ended with code {process.returncode}: {errors[-300:]}"
        return
    # In the first third buffers find their size; after the last epoch it is not training.
    middle, late = (
        np.array([now for now in seen if begin <= now[0] < end])
        for begin, end in ((tries / 3, tries * 2 / 3), (tries * 2 / 3, tries))
    )
    epochs, memory = np.concatenate([middle, late])[:, :2].T
    details = {
        "epochs": tries,
        "memory_kib_per_epoch": float(np.polyfit(epochs, memory / 2**10, 1)[0]),
        # In the second and in the last third.
        "peak_memory_mib": [float(part[:, 1].max() / 2**20) for part in (middle, late)],
        "open_files_at_rest": [int(part[:, 2].min()) for part in (middle, late)],
        "open_files_while_saving": [int(part[:, 2].max()) for part in (middle, late)],
        "most_checkpoints": int(max(part[:, 3].max() for part in (middle, late))),
        "workdir_bytes": sum(path.stat().st_size for path in workdir.rglob("*") if path.is_file()),
    }
    (folder / "details.json").write_text(json.dumps(details))
    before, after = details["peak_memory_mib"]
    at_first, at_last = details["open_files_at_rest"]
    # One that is being written and one that is being deleted, besides the three kept.
    grown = after > before + 32 or at_last > at_first + 2 or details["most_checkpoints"] > 5
    for _ in range(tries):
        yield f"grown: {details}" if grown else None


FAULTS = (
    Fault("SIGKILL while it starts and compiles", _killed(_starting, *DIGITS), 20, 1),
    Fault("SIGKILL while it trains", _killed(_training, *DIGITS), 30, 1),
    Fault("SIGKILL while a checkpoint is written", _killed(_saving, *DIGITS), 20, 1),
    Fault("SIGKILL while the report is written", _killed(_reporting, *DIGITS), 20, 1),
    Fault("SIGKILL while MNIST is prepared", _killed_preparing, 10, 0),
    Fault("SIGTERM or Ctrl-C at any moment", _stopped, 30, 2),
    Fault("two processes in one workdir", _doubled, 10, 2),
    Fault("epoch after epoch, in one process", _long, 500, 30),
)
