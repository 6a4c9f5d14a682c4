"""How fast is the training, next to every peer on the same machine in the same run?

python experiments/benchmark.py --cores 2

Every implementation runs in a process of its own, on the same cores. In each round each one
trains on the same number of images in turn, while the others wait. Then each is started anew
and timed from the start of its process until it classifies 98.38 % and 99 % of the test images
correctly. Peers come with `pip install -e ".[bench]"`; a missing one is skipped and named.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import peers
from benchmark_tables import EPOCH, LABELS, TARGETS, draw, markdown
from provenance import RESULTS, provenance

from mnist_flax.config import DATASET_SIZES
from mnist_flax.spread import spread


class Process:
    """A running implementation."""

    def __init__(self, name: str, options: argparse.Namespace, **settings: Any):
        flags = {"dataset": options.dataset, "cores": len(options.use), **settings}
        self.command = [sys.executable, str(Path(peers.__file__)), name]
        self.command += [f"--{key.replace('_', '-')}={value}" for key, value in flags.items()]
        self.began = time.perf_counter()
        self.popen = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment(options),
        )
        self.ready = self.read()

    def ask(self, request: str) -> dict[str, Any]:
        """Sends a request and waits for the answer."""
        assert self.popen.stdin
        self.popen.stdin.write(request + "\n")
        self.popen.stdin.flush()
        return self.read()

    def read(self) -> dict[str, Any]:
        """The next answer. Whatever else a library prints is passed over."""
        assert self.popen.stdout
        for line in self.popen.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"{' '.join(self.command)} ended; run it by hand to see why")

    def close(self) -> None:
        """Ends the process."""
        assert self.popen.stdin
        self.popen.stdin.close()
        self.popen.wait()


def main() -> None:
    """Runs the parts in turn and stores the results after each."""
    options = parse()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, options.use)
    result: dict[str, Any] = provenance() | {"dataset": options.dataset, "missing": {}}
    names = []
    for name in options.peers:
        try:
            result.setdefault("versions", {})[name] = peers.versions(name)
            names.append(name)
        except importlib.metadata.PackageNotFoundError as error:
            result["missing"][name] = str(error)
            print(f"skipped: {LABELS[name]} ({error})")
    options.output.mkdir(parents=True, exist_ok=True)
    parts = {
        "speed": lambda: speed(names, options),
        "own_window": lambda: speed(names, options, size=22, rounds=options.window_rounds),
        "start": lambda: start(options),
        "accuracy": lambda: accuracy(names, options),
        "growth": lambda: growth(options),
    }
    for part in options.parts:
        print(f"--- {part}", flush=True)
        result[part] = parts[part]()
        write(result, options.output)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", nargs="+", choices=peers.PEERS, default=list(peers.PEERS))
    parts = ("speed", "own_window", "start", "accuracy", "growth")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--cores", type=int, default=2, help="use the first so many")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--window-rounds", type=int, default=2, help="of own_window")
    parser.add_argument("--images", type=int, default=19_200, help="a round and implementation")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=3, help="of the accuracy part")
    parser.add_argument("--epochs", type=int, default=10, help="of the accuracy part, at most")
    parser.add_argument(
        "--race",
        nargs="+",
        choices=LABELS,
        default=[
            "ours_quick",
            "ours_quick_again",
            "ours_default",
            "ours",
            "keras_tensorflow",
            "torch",
        ],
        help="who takes part in the accuracy part",
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    here = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    options.use = here[: options.cores]
    return options


def environment(options: argparse.Namespace, **more: str) -> dict[str, str]:
    """For the processes: their threads, and each library's own defaults."""
    threads = str(len(options.use))
    unset = ("JAX_NUMPY_DTYPE_PROMOTION", "JAX_NUMPY_RANK_PROMOTION", "JAX_COMPILATION_CACHE_DIR")
    return {
        **{name: value for name, value in os.environ.items() if name not in unset},
        "OMP_NUM_THREADS": threads,
        "TF_NUM_INTRAOP_THREADS": threads,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONWARNINGS": "ignore",
    } | more


def speed(
    names: list[str], options: argparse.Namespace, size: int = 28, rounds: int | None = None
) -> dict[str, Any]:
    """Steady images per second, all implementations in turn in every round."""
    images, batch = options.images, options.batch_size
    running, found = {}, {}
    for name in names:
        process = Process(name, options, batch_size=batch, size=size)
        assert process.ready["parameters"] == peers.PARAMETERS, name
        first = process.ask(f"train {batch}")["seconds"]
        process.ask("evaluate")
        running[name] = process
        found[name] = {"compile_seconds": process.ready["seconds"] + first, "rounds": []}
    for turn in range(rounds or options.rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            answer = running[name].ask(f"train {images}")
            found[name]["rounds"].append(images / answer["seconds"])
            found[name]["peak_bytes"] = answer["peak_bytes"]
            print(f"{LABELS[name]}: {found[name]['rounds'][-1]:,.0f} images/s", flush=True)
    for name, process in running.items():
        process.close()
        rates = found[name]["rounds"]
        found[name] |= {
            "images_per_second": statistics.median(rates),
            "slowest": min(rates),
            "fastest": max(rates),
            "epoch_seconds": EPOCH / statistics.median(rates),
        }
    ours = {name for name in names if name.startswith("ours")}
    rivals = [found[name]["epoch_seconds"] for name in names if name not in ours]
    for name in ours if rivals else ():
        # Round by round, against the peer that was the fastest in that round.
        best = [
            max(found[rival]["rounds"][turn] for rival in names if rival not in ours)
            for turn in range(len(found[name]["rounds"]))
        ]
        ratios = [rival / own for rival, own in zip(best, found[name]["rounds"], strict=True)]
        found[name]["epoch_against_fastest_peer"] = {
            "median": statistics.median(ratios),
            "per_round": ratios,
        }
    return {"size": size, "batch_size": batch, "images_per_round": images, "peers": found}


def start(options: argparse.Namespace) -> dict[str, Any]:
    """Where the seconds of our command go, first without and then with compiled programs."""
    found: dict[str, Any] = {"cold": [], "warm": []}
    for _ in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            for kind in ("cold", "warm"):
                workdir = Path(folder) / kind
                for _ in follow(options, workdir, Path(folder) / "cache", "--preset=quick"):
                    pass
                summary = json.loads((workdir / "summary.json").read_text())
                found[kind].append(summary["seconds"])
                print(kind, {name: round(s, 2) for name, s in summary["seconds"].items()})
    return {
        kind: {name: spread([run[name] for run in runs], "per_run") for name in runs[0]}
        for kind, runs in found.items()
    }


def follow(
    options: argparse.Namespace, workdir: Path, cache: Path, *flags: str
) -> Generator[tuple[float, float]]:
    """Runs our command; yields the seconds since its start and the accuracy at each epoch."""
    command = [sys.executable, "-m", "mnist_flax.run", f"--workdir={workdir}", *flags]
    command += [f"--dataset={options.dataset}"]
    began = time.perf_counter()
    env = environment(options, JAX_COMPILATION_CACHE_DIR=str(cache))
    popen = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    assert popen.stdout
    try:
        for line in popen.stdout:
            seconds = time.perf_counter() - began
            if line.startswith("epoch "):
                lines = (workdir / "metrics.jsonl").read_text().splitlines()
                yield seconds, json.loads(lines[-1])["test_accuracy"]
        if popen.wait():
            raise RuntimeError(f"{' '.join(command)} failed")
    finally:
        popen.kill()
        popen.wait()
        popen.stdout.close()


def accuracy(names: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Seconds from the start of the process until it reaches each target, for several seeds.

    Peers and `ours` follow the reference's recipe (batch 32, Adam at 1e-3), scored after each
    epoch until they reach the last target, or have had its 5 epochs and reached the first.
    """
    racers = [name for name in options.race if name in names or name not in peers.PEERS]
    found: dict[str, Any] = {name: [] for name in racers}
    compiled = tempfile.TemporaryDirectory()
    if "ours_quick_again" in racers:
        with tempfile.TemporaryDirectory() as folder:
            for _ in follow(options, Path(folder), Path(compiled.name), "--preset=quick"):
                pass
    for seed in range(options.seeds):
        for name in racers:
            curve = []
            with contextlib.closing(race(name, seed, options, Path(compiled.name))) as epochs:
                for seconds, share in epochs:
                    curve.append({"seconds": seconds, "test_accuracy": share})
                    best = max(point["test_accuracy"] for point in curve)
                    if best >= TARGETS[1] or (len(curve) >= 5 and best >= TARGETS[0]):
                        break
            found[name].append(curve)
            print(f"{LABELS[name]}: {curve[-1]}", flush=True)
    compiled.cleanup()
    return {
        name: {
            "seeds": list(range(options.seeds)),
            "curves": curves,
            **{f"{target:.2%}": reach(curves, target) for target in TARGETS},
        }
        for name, curves in found.items()
    }


def race(
    name: str, seed: int, options: argparse.Namespace, compiled: Path
) -> Generator[tuple[float, float]]:
    """Trains one implementation epoch by epoch, from the start of its process."""
    if name.startswith("ours"):
        preset = name.removesuffix("_again").removeprefix("ours").strip("_") or "reference"
        with tempfile.TemporaryDirectory() as folder:
            cache = compiled if name.endswith("_again") else Path(folder) / "cache"
            flags = (f"--seed={seed}", f"--preset={preset}")
            yield from follow(options, Path(folder) / "run", cache, *flags)
        return
    process = Process(name, options, batch_size=32, seed=seed)
    try:
        for _ in range(options.epochs):
            process.ask(f"train {DATASET_SIZES[options.dataset][0]}")
            share = process.ask("evaluate")["test_accuracy"]
            yield time.perf_counter() - process.began, share
    finally:
        process.close()


def reach(curves: list[list[dict[str, float]]], target: float) -> dict[str, Any]:
    """Seconds until the target, for each seed; None for one that did not reach it."""
    seconds = [
        next((point["seconds"] for point in curve if point["test_accuracy"] >= target), None)
        for curve in curves
    ]
    reached = [value for value in seconds if value is not None]
    median = statistics.median(reached) if len(reached) == len(seconds) else None
    return {"median": median, "reached": len(reached), "per_seed": seconds}


def growth(options: argparse.Namespace) -> dict[str, Any]:
    """How our own time and memory grow with batch size, training images and epochs."""
    found: dict[str, Any] = {"batch_size": [], "images": [], "epochs": []}
    for batch in (32, 64, 128, 256, 512, 1024, 2048):
        process = Process("ours_default", options, batch_size=batch)
        process.ask(f"train {batch}")
        process.ask("evaluate")  # which has been compiled then
        count = max(options.images // batch, 4) * batch
        answer = process.ask(f"train {count}")
        rate = count / answer["seconds"]
        row = {"batch_size": batch, "images_per_second": rate, "peak_bytes": answer["peak_bytes"]}
        found["batch_size"].append(row)
        process.close()
        print(row, flush=True)
    total = DATASET_SIZES[options.dataset][0]
    for share in (0.125, 0.25, 0.5, 1.0):
        process = Process("ours_default", options, batch_size=128, share=share)
        process.ask("train 128")
        process.ask("evaluate")
        images = int(total * share) // 128 * 128
        answer = process.ask(f"train {images}")
        row = {"images": images, "seconds": answer["seconds"], "peak_bytes": answer["peak_bytes"]}
        found["images"].append(row)
        print(row, flush=True)
        if share == 0.125:
            for epoch in range(2, 21):
                peak = process.ask(f"train {images}")["peak_bytes"]
                found["epochs"].append({"epoch": epoch, "peak_bytes": peak})
            print(found["epochs"][-1], flush=True)
        process.close()
    return found


def write(result: dict[str, Any], folder: Path) -> None:
    """Stores the JSON, and the table and the picture of what has been measured so far."""
    (folder / "benchmark.json").write_text(json.dumps(result, indent=2) + "\n")
    (folder / "benchmark.md").write_text(markdown(result))
    if "speed" in result:
        draw(result, folder / "benchmark.png")


if __name__ == "__main__":
    main()
