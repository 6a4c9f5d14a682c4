"""How accurate is a preset? Trains many seeds of it and stores their mean and spread.

python -m experiments.accuracy --preset default --seeds 10
"""

import statistics

from experiments.common.provenance import make_parser, provenance, store
from experiments.common.runs import load_result, train
from mnist_flax.core.config import PRESETS
from mnist_flax.engine.seed_stats import format_percent, per_seed, seed_statistics
from mnist_flax.engine.workdir import read_metrics


def main() -> None:
    """Trains and stores."""
    parser = make_parser(__doc__, seeds=10)
    parser.add_argument("--preset", choices=PRESETS, default="default")
    options = parser.parse_args()
    workdir = train(options, "--preset", options.preset, "--num-seeds", str(options.seeds))
    run = load_result(workdir)
    seconds = statistics.median(row["seconds"] for row in read_metrics(workdir))
    names = ("dataset", "parameters", "epochs", "test_examples", "environment", "config")
    result = {
        **provenance(),
        **{name: run[name] for name in names},
        "n": options.seeds,
        "seeds": list(range(options.seeds)),
        "test_accuracy": seed_statistics(per_seed(run["test_accuracy"])),
        "test_loss": seed_statistics(per_seed(run["test_loss"])),
        "seconds_per_epoch_and_seed": seconds / options.seeds,
    }
    path = store(f"accuracy_{options.preset}", result, options.output)
    print(f"{format_percent(run['test_accuracy'])}, n = {options.seeds}; see {path}")


if __name__ == "__main__":
    main()
