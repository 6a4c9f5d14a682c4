"""How accurate is a preset? Trains many seeds of it and stores their mean and spread.

python -m experiments.accuracy --preset default --seeds 10
python -m experiments.accuracy --preset large --seeds 20

The networks of a preset with several, such as `large`, predict by their mean probability: twenty
seeds are then five results.
"""

import statistics

import numpy as np

from experiments.common.provenance import make_parser, provenance, store
from experiments.common.runs import load_result, train_seeds
from mnist_flax.core.config import PRESETS
from mnist_flax.core.inference import probabilities
from mnist_flax.data.dataset import load_dataset
from mnist_flax.engine.seed_stats import format_percent, seed_statistics
from mnist_flax.engine.trained_model import load_trained
from mnist_flax.engine.workdir import read_metrics
from mnist_flax.evaluate.metrics import ensemble_accuracy


def main() -> None:
    """Trains and stores."""
    parser = make_parser(__doc__, seeds=10)
    parser.add_argument("--preset", choices=PRESETS, default="default")
    options = parser.parse_args()
    networks = PRESETS[options.preset].num_seeds
    if options.seeds % networks:
        parser.error(f"{options.preset} has {networks} networks: --seeds must be a multiple")
    workdirs = train_seeds(options, options.seeds, "--preset", options.preset)
    runs = [load_result(workdir) for workdir in workdirs]
    seconds = [
        row["seconds"] / run["config"]["num_seeds"]
        for run, workdir in zip(runs, workdirs, strict=True)
        for row in read_metrics(workdir)
    ]
    images, labels = load_dataset(options.dataset).test
    logits = np.concatenate([load_trained(workdir).logits(images) for workdir in workdirs])
    results = [score(group, labels) for group in np.split(logits, options.seeds // networks)]
    names = ("dataset", "epochs", "test_examples", "environment")
    result = {
        **provenance(),
        **{name: runs[0][name] for name in names},
        "parameters": networks * runs[0]["parameters"],
        "config": runs[0]["config"] | {"num_seeds": options.seeds},
        "n": len(results),
        "seeds": list(range(options.seeds)),
        **{name: seed_statistics(row[name] for row in results) for name in results[0]},
        "seconds_per_epoch_and_seed": statistics.median(seconds),
    }
    path = store(f"accuracy_{options.preset}", result, options.output)
    print(f"{format_percent(result['test_accuracy'])}, n = {len(results)}; see {path}")


def score(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The accuracy and the loss in nats of networks together: logits [networks, N, 10]."""
    chosen = probabilities(logits)[np.arange(len(labels)), labels]
    return {
        "test_accuracy": ensemble_accuracy(logits, labels),
        "test_loss": float(-np.log(chosen).mean()),
    }


if __name__ == "__main__":
    main()
