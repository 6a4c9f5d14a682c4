"""How accurate is a preset? Trains it once per seed and stores the mean and the spread.

python experiments/accuracy.py --preset default --seeds 3
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from provenance import RESULTS, provenance, spread

from mnist_flax.config import PRESETS


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
        **provenance(),
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
        "environment": summaries[0]["environment"],
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


if __name__ == "__main__":
    main()
