"""How accurate is a preset? Trains many seeds of it and stores their mean and spread.

python -m experiments.accuracy --preset default --seeds 10
"""

import statistics

from experiments.common.provenance import make_parser, provenance, store
from experiments.common.runs import load_result, train_seeds
from mnist_flax.core.config import PRESETS
from mnist_flax.engine.seed_stats import format_percent, per_seed, seed_statistics
from mnist_flax.engine.workdir import read_metrics


def main() -> None:
    """Trains and stores."""
    parser = make_parser(__doc__, seeds=10)
    parser.add_argument("--preset", choices=PRESETS, default="default")
    options = parser.parse_args()
    workdirs = train_seeds(options, options.seeds, "--preset", options.preset)
    runs = [load_result(workdir) for workdir in workdirs]
    seconds = [
        row["seconds"] / run["config"]["num_seeds"]
        for run, workdir in zip(runs, workdirs, strict=True)
        for row in read_metrics(workdir)
    ]
    names = ("dataset", "parameters", "epochs", "test_examples", "environment")
    values = {
        name: seed_statistics(value for run in runs for value in per_seed(run[name]))
        for name in ("test_accuracy", "test_loss")
    }
    result = {
        **provenance(),
        **{name: runs[0][name] for name in names},
        "config": runs[0]["config"] | {"num_seeds": options.seeds},
        "n": options.seeds,
        "seeds": list(range(options.seeds)),
        **values,
        "seconds_per_epoch_and_seed": statistics.median(seconds),
    }
    path = store(f"accuracy_{options.preset}", result, options.output)
    print(f"{format_percent(values['test_accuracy'])}, n = {options.seeds}; see {path}")


if __name__ == "__main__":
    main()
