"""How fast is training, compared with other frameworks on the same machine in the same session?

python -m experiments.benchmark --cores 2

Every framework runs in a separate process, on the same cores. In each round they train one
after the other on the same number of images. Then each one is restarted and timed from the start
of its process until it classifies 98.38 % and 99 % of the test images correctly. The frameworks
come with `pip install -e ".[bench]"`; a missing one is skipped and named.
"""

import argparse
import contextlib
import importlib.metadata
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmark import frameworks
from experiments.benchmark.frameworks import FRAMEWORKS, PARAMETERS
from experiments.benchmark.tables import EPOCH, LABELS, TARGETS, draw, markdown
from experiments.common.provenance import make_parser, provenance, store
from mnist_flax.core.config import DATASET_SIZES
from mnist_flax.engine.seed_stats import mean_of, seed_statistics
from mnist_flax.engine.workdir import read_metrics, read_summary

PARTS = ("speed", "center_crop", "start", "accuracy", "growth")
RACE = ("ours_quick", "ours_quick_again", "ours_default", "ours", "keras_tensorflow", "torch")
RACERS = [name for name in LABELS if name != "ours_bfloat16"]  # no preset


class Process(ProcessPoolExecutor):
    """A framework in a separate process, which ends with the context."""

    def __init__(self, name: str, options: argparse.Namespace, **settings: float):
        self.start = time.perf_counter()
        super().__init__(1, mp_context=get_context("spawn"))
        cores = len(options.use)
        self.ready = self._call(frameworks.prepare, name, options.dataset, cores, **settings)

    def train(self, count: int) -> dict[str, float]:
        """Trains on a number of images; returns `seconds` and `peak_bytes`."""
        return self._call(frameworks.call, "train", count)[1]

    def evaluate(self) -> float:
        """The test accuracy."""
        return self._call(frameworks.call, "evaluate")[0]

    def warm_up(self, batch: int) -> float:
        """Compiles what training and evaluation need; returns the seconds of the first step."""
        seconds = self.train(batch)["seconds"]
        self.evaluate()
        return seconds

    def _call(self, function: Callable[..., Any], *args, **kwargs) -> Any:
        return self.submit(function, *args, **kwargs).result()


def run_ours(workdir: Path, cache: Path, *flags: str) -> Generator[tuple[float, float]]:
    """Runs our command; yields the seconds since its start and the accuracy after each epoch."""
    command = [sys.executable, "-m", "mnist_flax.run", f"--workdir={workdir}", *flags]
    start = time.perf_counter()
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout
        try:
            for line in process.stdout:
                seconds = time.perf_counter() - start
                if line.startswith("epoch "):
                    yield seconds, mean_of(read_metrics(workdir)[-1]["test_accuracy"])
            if process.wait():
                raise RuntimeError(f"{' '.join(command)} failed")
        finally:
            process.kill()


def main() -> None:
    """Runs the parts in turn and stores the results after each."""
    options = parse()
    result = provenance() | {"dataset": options.dataset, "missing": {}, "versions": {}}
    for name in options.peers:
        try:
            result["versions"][name] = frameworks.versions(name)
        except importlib.metadata.PackageNotFoundError as error:
            result["missing"][name] = str(error)
            print(f"skipped: {LABELS[name]} ({error})")
    names = list(result["versions"])
    measure = {
        "speed": lambda: measure_speed(names, options, 28),
        "center_crop": lambda: measure_speed(names, options, 22),
        "start": lambda: measure_start(options),
        "accuracy": lambda: measure_accuracy(names, options),
        "growth": lambda: measure_growth(options),
    }
    for part in options.parts:
        print(f"--- {part}", flush=True)
        result[part] = measure[part]()
        store("benchmark", result, options.output)
        (options.output / "benchmark.md").write_text(markdown(result))
        if "speed" in result:
            draw(result, options.output / "benchmark.png")


def parse() -> argparse.Namespace:
    """The options, and in `use` the cores to run on, to which it binds all processes."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--peers", nargs="+", choices=FRAMEWORKS, default=list(FRAMEWORKS), help="who is measured")
    add("--parts", nargs="+", choices=PARTS, default=PARTS)
    add("--dataset", choices=DATASET_SIZES, default="mnist")
    add("--cores", type=int, default=2, help="how many to use, from the first one")
    add("--rounds", type=int, default=5)
    add("--images", type=int, default=19_200, help="per round and framework, at most")
    add("--batch-size", type=int, default=128)
    add("--seeds", type=int, default=3, help="of the part accuracy")
    add("--epochs", type=int, default=10, help="of the part accuracy, at most")
    add("--race", nargs="+", choices=RACERS, default=RACE, help="who takes part in accuracy")
    options = parser.parse_args()
    # Whole batches, without repeating an image.
    images = min(options.images, DATASET_SIZES[options.dataset][0])
    options.images = images // options.batch_size * options.batch_size
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    options.use = cores[: options.cores]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, options.use)
    # The defaults of each library, except for the number of threads.
    for name in ("NUMPY_DTYPE_PROMOTION", "NUMPY_RANK_PROMOTION", "COMPILATION_CACHE_DIR"):
        os.environ.pop(f"JAX_{name}", None)
    for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"):
        os.environ[name] = str(len(options.use))
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONWARNINGS": "ignore"}
    return options


def measure_speed(names: list[str], options: argparse.Namespace, size: int) -> dict[str, Any]:
    """Steady images per second; in every round all frameworks take their turn."""
    images, batch = options.images, options.batch_size
    processes, rows = {}, {}
    for name in names:
        process = Process(name, options, batch_size=batch, size=size)
        assert process.ready["parameters"] == PARAMETERS, name
        compile_seconds = process.ready["seconds"] + process.warm_up(batch)
        processes[name], rows[name] = process, {"compile_seconds": compile_seconds, "rounds": []}
    for turn in range(options.rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            answer = processes[name].train(images)
            rows[name]["rounds"].append(images / answer["seconds"])
            rows[name]["peak_bytes"] = answer["peak_bytes"]
            print(f"{LABELS[name]}: {rows[name]['rounds'][-1]:,.0f} images/s", flush=True)
    for name, process in processes.items():
        process.shutdown()
        rates = rows[name]["rounds"]
        rows[name] |= {
            "images_per_second": statistics.median(rates),
            "slowest": min(rates),
            "fastest": max(rates),
            "epoch_seconds": EPOCH / statistics.median(rates),
        }
    # The peer that was the fastest in each round with that precision, as a ratio to ours.
    for name, row in rows.items():
        rivals = [
            other["rounds"]
            for peer, other in rows.items()
            if not peer.startswith("ours") and is_bfloat16(peer) == is_bfloat16(name)
        ]
        if rivals and name.startswith("ours"):
            ratios = (np.max(rivals, axis=0) / row["rounds"]).tolist()
            against = {"median": statistics.median(ratios), "per_round": ratios}
            row["epoch_against_fastest_peer"] = against
    return {"size": size, "batch_size": batch, "images_per_round": images, "peers": rows}


def is_bfloat16(name: str) -> bool:
    """Whether a framework multiplies in bfloat16."""
    return name.endswith("bfloat16")


def measure_start(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each phase of our command, without and then with compiled programs."""
    seconds: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    for _ in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            for kind, runs in seconds.items():
                workdir = Path(folder) / kind
                flags = (f"--dataset={options.dataset}", "--preset=quick")
                list(run_ours(workdir, Path(folder) / "cache", *flags))
                summary = read_summary(workdir)
                assert summary
                runs.append(summary["seconds"])
                print(kind, {name: round(s, 2) for name, s in runs[-1].items()})
    result: dict[str, Any] = {kind: {} for kind in seconds}
    for kind, runs in seconds.items():
        for phase in runs[0]:
            values: dict[str, Any] = {**seed_statistics(run[phase] for run in runs)}
            values["per_run"] = values.pop("per_seed")
            result[kind][phase] = values
    return result


def measure_accuracy(names: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Seconds from the start of a process until it reaches each target, for several seeds.

    The frameworks and `ours` follow the reference recipe (batch 32, Adam at 1e-3). They train
    until they reach the last target, or only the first one in the 5 epochs of the recipe or more.
    """
    racers = [name for name in options.race if name in names or name not in FRAMEWORKS]
    curves: dict[str, list[list[dict[str, float]]]] = {name: [] for name in racers}
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        if "ours_quick_again" in racers:
            list(train_by_epoch("ours_quick_again", 0, options, cache))
        for seed in range(options.seeds):
            for name in racers:
                curve = []
                with contextlib.closing(train_by_epoch(name, seed, options, cache)) as epochs:
                    for seconds, accuracy in epochs:
                        curve.append({"seconds": seconds, "test_accuracy": accuracy})
                        best = max(point["test_accuracy"] for point in curve)
                        if best >= TARGETS[1 if len(curve) < 5 else 0]:
                            break
                curves[name].append(curve)
                print(f"{LABELS[name]}: {curve[-1]}", flush=True)
    seeds = list(range(options.seeds))
    return {
        name: {"seeds": seeds, "curves": curves[name]}
        | {f"{target:.2%}": time_to_target(curves[name], target) for target in TARGETS}
        for name in racers
    }


def train_by_epoch(
    name: str, seed: int, options: argparse.Namespace, cache: Path
) -> Generator[tuple[float, float]]:
    """Trains one network; yields the seconds since the start and the accuracy at each epoch."""
    if name.startswith("ours"):
        preset = name.removesuffix("_again").removeprefix("ours").strip("_") or "reference"
        with tempfile.TemporaryDirectory() as folder:
            if not name.endswith("_again"):
                cache = Path(folder) / "cache"
            flags = (f"--seed={seed}", f"--preset={preset}", f"--dataset={options.dataset}")
            yield from run_ours(Path(folder) / "run", cache, *flags)
        return
    with Process(name, options, batch_size=32, seed=seed) as process:
        for _ in range(options.epochs):
            process.train(DATASET_SIZES[options.dataset][0])
            accuracy = process.evaluate()
            yield time.perf_counter() - process.start, accuracy


def time_to_target(curves: list[list[dict[str, float]]], target: float) -> dict[str, Any]:
    """Seconds until the target for each seed, None for one that did not reach it."""
    seconds = [
        next((point["seconds"] for point in curve if point["test_accuracy"] >= target), None)
        for curve in curves
    ]
    reached = [value for value in seconds if value is not None]
    median = statistics.median(reached) if len(reached) == len(seconds) else None
    return {"median": median, "reached": len(reached), "per_seed": seconds}


def measure_growth(options: argparse.Namespace) -> dict[str, Any]:
    """Our time and memory as functions of the batch size, the training images and the epochs."""
    by_batch, by_images, by_epoch = [], [], []
    for batch in (32, 64, 128, 256, 512, 1024, 2048):
        with Process("ours_default", options, batch_size=batch) as process:
            process.warm_up(batch)
            count = max(options.images // batch, 4) * batch
            answer = process.train(count)
        rate, peak = count / answer["seconds"], answer["peak_bytes"]
        by_batch.append({"batch_size": batch, "images_per_second": rate, "peak_bytes": peak})
        print(by_batch[-1], flush=True)
    for share in (0.125, 0.25, 0.5, 1.0):
        with Process("ours_default", options, share=share) as process:
            process.warm_up(128)
            images = int(DATASET_SIZES[options.dataset][0] * share) // 128 * 128
            by_images.append({"images": images} | process.train(images))
            print(by_images[-1], flush=True)
            for epoch in range(2, 21) if share == 0.125 else ():
                by_epoch.append({"epoch": epoch, "peak_bytes": process.train(images)["peak_bytes"]})
    return {"batch_size": by_batch, "images": by_images, "epochs": by_epoch}


if __name__ == "__main__":
    main()
