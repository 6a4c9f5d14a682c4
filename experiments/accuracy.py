"""How accurate is a preset? Trains many seeds of it and stores their mean and spread.

python -m experiments.accuracy --preset default --seeds 10
python -m experiments.accuracy --preset large --seeds 20

The networks of a preset with several, such as `large`, predict by their mean probability: twenty
seeds are then five results. `--first-seed 8 --seeds 12` trains seeds 8 to 19 and adds them to the
stored result of seeds 0 to 7, which another machine may have trained.
"""

import argparse
import dataclasses
import statistics
from typing import Any

import numpy as np

from experiments.common.provenance import make_parser, provenance, store
from experiments.common.runs import load_result, plan, train_seeds
from mnist_flax.core.config import PRESETS
from mnist_flax.core.inference import probabilities
from mnist_flax.data.dataset import load_dataset
from mnist_flax.engine.files import read_json
from mnist_flax.engine.seed_stats import format_percent, seed_statistics
from mnist_flax.engine.trained_model import load_trained
from mnist_flax.engine.workdir import read_metrics
from mnist_flax.evaluate.metrics import ensemble_accuracy


def main() -> None:
    """Trains and stores."""
    parser = make_parser(__doc__, seeds=10)
    parser.add_argument("--preset", choices=PRESETS, default="default")
    parser.add_argument("--first-seed", type=int, default=0, help="those before it are stored")
    options = parser.parse_args()
    networks = PRESETS[options.preset].num_seeds
    if options.seeds % networks or options.first_seed % networks:
        parser.error(f"{options.preset} takes --seeds and --first-seed in multiples of {networks}")
    stored = read_stored(options) if options.first_seed else None
    if options.first_seed and not stored:
        parser.error(f"no result of the {options.first_seed} seeds before with the same config")
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    workdirs = train_seeds(options, seeds, "--preset", options.preset)
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
    scores = {
        name: [*(stored[name]["per_seed"] if stored else []), *(row[name] for row in results)]
        for name in results[0]
    }
    result = {
        **provenance(),
        **{name: runs[0][name] for name in names},
        "parameters": networks * runs[0]["parameters"],
        "config": runs[0]["config"] | {"seed": 0, "num_seeds": seeds.stop},
        "n": seeds.stop // networks,
        "seeds": list(range(seeds.stop)),
        **{name: seed_statistics(values) for name, values in scores.items()},
        "seconds_per_epoch_and_seed": statistics.median(seconds),
    }
    if stored:
        origin = {name: stored[name] for name in (*provenance(), "environment", "seeds")}
        result["earlier"] = [*stored.get("earlier", []), origin]
    path = store(f"accuracy_{options.preset}", result, options.output)
    print(f"{format_percent(result['test_accuracy'])}, n = {result['n']}; see {path}")


def read_stored(options: argparse.Namespace) -> dict[str, Any] | None:
    """The stored result of the seeds before the first one; None if there is none like that."""
    config = dataclasses.asdict(plan(options, "--preset", options.preset).config)
    stored = read_json(options.output / f"accuracy_{options.preset}.json", dict[str, Any])
    wanted = config | {"num_seeds": options.first_seed}
    return stored if stored and stored["config"] == wanted else None


def score(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The accuracy and the loss in nats of networks together: logits [networks, N, 10]."""
    chosen = probabilities(logits)[np.arange(len(labels)), labels]
    return {
        "test_accuracy": ensemble_accuracy(logits, labels),
        "test_loss": float(-np.log(chosen).mean()),
    }


if __name__ == "__main__":
    main()
