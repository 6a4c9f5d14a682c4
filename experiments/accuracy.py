"""How accurate is a preset? Trains it once per seed and stores the mean and the spread.

python experiments/accuracy.py --preset default --seeds 3
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from mnist_flax.config import PRESETS

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Runs the experiment that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="default")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = [train(arguments.preset, seed, Path(folder)) for seed in range(arguments.seeds)]
    summaries = [summary for summary, _ in runs]
    accuracies = [summary["test_accuracy"] for summary in summaries]
    losses = [summary["test_loss"] for summary in summaries]
    result = {
        "command": shlex.join(["python", "experiments/accuracy.py", *sys.argv[1:]]),
        "commit": git("rev-parse", "HEAD")
        + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else ""),
        "dataset": summaries[0]["dataset"],
        "parameters": summaries[0]["parameters"],
        "epochs": summaries[0]["epochs"],
        "test_examples": summaries[0]["test_examples"],
        "n": len(summaries),
        "seeds": list(range(len(summaries))),
        "test_accuracy": spread(accuracies),
        "test_loss": spread(losses),
        "seconds_per_epoch": spread([statistics.median(seconds) for _, seconds in runs]),
        "total_seconds": spread([summary["seconds"]["total"] for summary in summaries]),
        "environment": summaries[0]["environment"]
        | {"platform": platform.platform(), "processor": processor(), "cores": os.cpu_count()},
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"accuracy_{arguments.preset}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{statistics.mean(accuracies):.2%}, n = {len(accuracies)}; see {path}")


def train(preset: str, seed: int, folder: Path) -> tuple[dict[str, Any], list[float]]:
    """The summary and each epoch's training seconds of one run on MNIST, in its own process."""
    workdir = folder / str(seed)
    arguments = f"--preset {preset} --seed {seed} --dataset mnist --workdir {workdir}"
    subprocess.run([sys.executable, "-m", "mnist_flax.run", *arguments.split()], check=True)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    seconds = [json.loads(line)["seconds"] for line in lines]
    return json.loads((workdir / "summary.json").read_text()), seconds


def spread(values: list[float]) -> dict[str, Any]:
    """Mean, standard deviation over seeds (n - 1), and each value."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "std": deviation, "per_seed": values}


def git(*arguments: str) -> str:
    """What git says of this checkout."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def processor() -> str:
    """The processor's name, where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    names = cpuinfo.read_text().split("model name")[1:] if cpuinfo.exists() else []
    return names[0].split("\n")[0].strip("\t :") if names else platform.processor()


if __name__ == "__main__":
    main()
