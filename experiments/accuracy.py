"""How accurate is a preset? Trains many seeds of it and stores their mean and spread.

python experiments/accuracy.py --preset default --seeds 10
"""

import json
import statistics

import training
from provenance import provenance, store

from mnist_flax.config import PRESETS
from mnist_flax.spread import percent, spread


def main() -> None:
    """Runs the experiment that the command line asks for."""
    parser = training.arguments(__doc__, seeds=10)
    parser.add_argument("--preset", choices=PRESETS, default="default")
    options = parser.parse_args()
    workdir = training.Runs(options).train(
        "--preset", options.preset, "--num-seeds", str(options.seeds)
    )
    summary = training.summary(workdir)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    seconds = statistics.median(json.loads(line)["seconds"] for line in lines)
    names = ("dataset", "parameters", "epochs", "test_examples", "environment", "config")
    result = {
        **provenance(),
        **{name: summary[name] for name in names},
        "n": options.seeds,
        "seeds": list(range(options.seeds)),
        "test_accuracy": _spread(summary["test_accuracy"]),
        "test_loss": _spread(summary["test_loss"]),
        "seconds_per_epoch_and_seed": seconds / options.seeds,
    }
    path = store(f"accuracy_{options.preset}", result, options.output)
    print(f"{percent(summary['test_accuracy'])}, n = {options.seeds}; see {path}")


def _spread(figure):
    return spread([figure]) if isinstance(figure, float) else figure


if __name__ == "__main__":
    main()
