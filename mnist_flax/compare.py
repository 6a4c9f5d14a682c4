"""The command `python -m mnist_flax.compare A B`: is B better than A, or is it noise?"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from mnist_flax.core.config import UserError
from mnist_flax.engine import cli
from mnist_flax.engine.options import DataOptions, parse_options
from mnist_flax.engine.seed_stats import format_percent

if TYPE_CHECKING:
    from mnist_flax.evaluate.significance import RunComparison


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(DataOptions):
    """Compares two trained runs, or sets of seeds, on the same test images.

    Example: mnist-flax compare runs/exp1 runs/exp2
    """

    a: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="A")]
    """Workdir of a run."""
    b: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="B")]
    """Workdir of another run."""
    json: bool = False
    """Print everything as JSON, with all images that changed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""

    def action(argv: Sequence[str]) -> int:
        options = parse_options(Options, cli.program_name("compare"), argv)
        cli.initialize_jax()
        result = compare_runs(options.a, options.b, options.data_dir, options.manual_dir)
        print(json.dumps(result, indent=2) if options.json else describe(result))
        return 0

    return cli.run_command(action, argv)


def compare_runs(
    a: Path, b: Path, data_dir: Path | None = None, manual_dir: Path | None = None
) -> "RunComparison":
    """Compares two trained runs on the test images of their dataset.

    If they share two seeds or more, only those are compared, in pairs. Raises a UserError if one
    holds no trained run, or they are of different datasets.
    """
    import numpy as np

    from mnist_flax.data.dataset import load_dataset
    from mnist_flax.engine.trained_model import load_trained
    from mnist_flax.evaluate.significance import compare_logits

    run_a, run_b = load_trained(a), load_trained(b)
    dataset, other = run_a.config.dataset, run_b.config.dataset
    if dataset != other:
        raise UserError(f"{a} is a run on {dataset}, {b} on {other}: they cannot be compared")
    images, labels = load_dataset(dataset, data_dir, manual_dir, log=cli.print_status).test
    shared = sorted(set(run_a.seeds) & set(run_b.seeds))
    paired = len(shared) > 1
    seeds_a, seeds_b = (shared, shared) if paired else (run_a.seeds, run_b.seeds)
    logits_a = run_a.logits(images)[np.array(seeds_a) - run_a.config.seed]
    logits_b = run_b.logits(images)[np.array(seeds_b) - run_b.config.seed]
    return {
        "a": {"workdir": str(a), "step": run_a.step, "seeds": seeds_a},
        "b": {"workdir": str(b), "step": run_b.step, "seeds": seeds_b},
        **compare_logits(logits_a, logits_b, labels, paired),
    }


def describe(result: "RunComparison", max_images: int = 5) -> str:
    """The comparison as text, with the first `max_images` images that changed each way."""
    runs = (("A", result["a"], result["accuracy_a"]), ("B", result["b"], result["accuracy_b"]))
    lines = [
        f"{name}  {format_percent(accuracy)}  {len(run['seeds'])} "
        f"seed{'s' * (len(run['seeds']) > 1)}  {run['workdir']} (step {run['step']:,})"
        for name, run, accuracy in runs
    ]
    over_seeds, over_images = result["interval95_over_seeds"], result["interval95_over_images"]
    seeds = "paired by seed" if result["paired"] else "independent seeds"
    lines += [
        "",
        f"B - A  {100 * result['difference']:+.3f} points",
        f"  95% over seeds        {_format_interval(over_seeds)}"
        + f"  ({seeds})" * bool(over_seeds),
        f"  95% over test images  {_format_interval(over_images)}",
        f"  McNemar's exact test  p = {result['mcnemar_p']:.3g}"
        + "  (of the seeds' mean probabilities)" * bool(over_seeds),
    ]
    for name, images, other, prediction in (
        ("A", result["only_a_correct"], "B", "prediction_b"),
        ("B", result["only_b_correct"], "A", "prediction_a"),
    ):
        lines += ["", f"{len(images)} test images that only {name} classifies correctly"]
        lines += [
            f"  image {x['index']:>5} is a {x['label']}, {other} predicts {x[prediction]}"
            for x in images[:max_images]
        ]
        if len(images) > max_images:
            lines.append(f"  and {len(images) - max_images} more; --json lists them")
    return "\n".join([*lines, "", result["verdict"]])


def _format_interval(interval: Sequence[float] | None) -> str:
    if interval is None:
        return "unknown: it takes more than one seed"
    return f"{100 * interval[0]:+.3f} to {100 * interval[1]:+.3f} points"


if __name__ == "__main__":
    raise SystemExit(main())
