"""How accurate is a preset? Trains many seeds of it and stores their mean and spread.

python experiments/accuracy.py --preset default --seeds 10

Run in a `--workdir`, it goes on where it was stopped.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from provenance import provenance, store

from mnist_flax.config import PRESETS
from mnist_flax.spread import percent, spread


def main() -> None:
    """Runs the experiment that the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="default")
    parser.add_argument("--seeds", type=int, default=10, help="how many, from 0")
    parser.add_argument("--workdir", type=Path, help="of the run; default: a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        workdir = options.workdir or Path(temporary) / "run"
        arguments = ["--preset", options.preset, "--num-seeds", str(options.seeds)]
        arguments += ["--dataset", "mnist", "--workdir", str(workdir)]
        subprocess.run([sys.executable, "-m", "mnist_flax.run", *arguments], check=True)
        summary = json.loads((workdir / "summary.json").read_text())
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
    seconds = statistics.median(json.loads(line)["seconds"] for line in lines)
    names = ("dataset", "parameters", "epochs", "test_examples", "environment")
    result = {
        **provenance(),
        **{name: summary[name] for name in names},
        "n": options.seeds,
        "seeds": list(range(options.seeds)),
        "test_accuracy": _spread(summary["test_accuracy"]),
        "test_loss": _spread(summary["test_loss"]),
        "seconds_per_epoch_and_seed": seconds / options.seeds,
    }
    path = store(f"accuracy_{options.preset}", result)
    print(f"{percent(summary['test_accuracy'])}, n = {options.seeds}; see {path}")


def _spread(figure):
    return spread([figure]) if isinstance(figure, float) else figure


if __name__ == "__main__":
    main()
