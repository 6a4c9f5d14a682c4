"""Trains the network that comes with the package, and writes it with its model card.

python -m experiments.pretrained

It is the preset `best` with seed 0, whatever its accuracy: no seed is chosen.
"""

import hashlib
from pathlib import Path
from typing import Any

import jinja2

from experiments.common.provenance import RUNS, make_parser, provenance, store
from experiments.common.runs import load_result, train
from mnist_flax.engine.seed_stats import wilson_interval
from mnist_flax.engine.trained_model import PRETRAINED, load_trained
from mnist_flax.export.formats import to_safetensors

TEMPLATE = Path(__file__).with_suffix(".md.jinja")


def main() -> None:
    """Trains and writes."""
    parser = make_parser(__doc__)
    parser.set_defaults(output=PRETRAINED, dataset="mnist", runs=RUNS)
    options = parser.parse_args()
    workdir = train(options, "--preset", "best")
    card = make_card(workdir, options.output)
    store("mnist", card, options.output)
    template = jinja2.Template(
        TEMPLATE.read_text(), undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    (options.output / "README.md").write_text(template.render(card))
    print(f"test accuracy {card['test_accuracy']:.2%}; see {options.output}")


def make_card(workdir: Path, folder: Path) -> dict[str, Any]:
    """Writes the parameters of a run as `mnist.safetensors`; returns what the card says."""
    folder.mkdir(parents=True, exist_ok=True)
    content = to_safetensors(load_trained(workdir))
    (folder / "mnist.safetensors").write_bytes(content)
    run = load_result(workdir)
    examples = run["test_examples"]
    names = ("dataset", "parameters", "test_examples", "test_accuracy", "test_loss", "epochs")
    return {
        **provenance(),
        **{name: run[name] for name in (*names, "steps", "params_sha256", "environment", "config")},
        "test_accuracy_ci95": wilson_interval(round(run["test_accuracy"] * examples), examples),
        "safetensors_bytes": len(content),
        "safetensors_sha256": hashlib.sha256(content).hexdigest(),
        "license": "Apache-2.0",
    }


if __name__ == "__main__":
    main()
