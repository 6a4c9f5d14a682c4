"""The command `python -m mnist_flax.compare A B`: is B better than A, or is it noise?

Both are asked about the same test images. Two kinds of chance are told apart: which seeds
were drawn, and which test images. A difference counts only where neither explains it.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from mnist_flax import command
from mnist_flax.command import OptionalPath, path_from_environment
from mnist_flax.config import UserError

PROG = command.called("compare")
LEVEL = 0.95
RESAMPLES = 9_999


@dataclasses.dataclass(frozen=True)
class Options:
    """Compares two trained runs, or sets of seeds, on the same test images."""

    a: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="A")]
    """Workdir of a run."""

    b: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="B")]
    """Workdir of another."""

    json: bool = False
    """Print everything as JSON, with all images that changed."""

    data_dir: OptionalPath = None
    """TFDS's data folder. Default: TFDS_DATA_DIR, else TFDS's own."""

    manual_dir: OptionalPath = dataclasses.field(
        default_factory=lambda: path_from_environment("MNIST_FLAX_MANUAL_DIR")
    )
    """Read-only folder with the four original .gz files. Default: MNIST_FLAX_MANUAL_DIR."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""

    def action(argv: Sequence[str]) -> int:
        options = command.parse(Options, PROG, argv)
        command.keep_compiled_programs()
        result = compare_runs(options.a, options.b, options.data_dir, options.manual_dir)
        print(json.dumps(result, indent=2) if options.json else describe(result))
        return 0

    return command.run_command(action, argv)


def compare_runs(
    a: Path, b: Path, data_dir: Path | None = None, manual_dir: Path | None = None
) -> dict[str, Any]:
    """`compare` for the test images of two workdirs, with what each of them is.

    Where they share seeds, two or more, only those are compared, in pairs.

    Raises:
      UserError: one holds no trained run, or they are not of the same data set.
    """
    import numpy as np

    from mnist_flax.data import load_dataset
    from mnist_flax.trained import load_trained

    runs = [load_trained(folder.absolute()) for folder in (a, b)]
    names = [run.config.dataset for run in runs]
    if names[0] != names[1]:
        raise UserError(f"{a} is of {names[0]}, {b} of {names[1]}: nothing to compare")
    images, labels = load_dataset(names[0], data_dir, manual_dir, log=command.say).test
    seeds = [run.seeds for run in runs]
    shared = sorted(set(seeds[0]) & set(seeds[1]))
    paired = len(shared) > 1
    if paired:
        seeds = [shared, shared]
    logits = [
        run.logits(images)[np.array(used) - run.config.seed]
        for run, used in zip(runs, seeds, strict=True)
    ]
    return {
        "a": {"workdir": str(a), "step": runs[0].step, "seeds": seeds[0]},
        "b": {"workdir": str(b), "step": runs[1].step, "seeds": seeds[1]},
        **compare(logits[0], logits[1], labels, paired),
    }


def compare(a: Any, b: Any, labels: Any, paired: bool) -> dict[str, Any]:
    """How the accuracy of B differs from that of A, and whether that is noise.

    - over seeds: the 95 % interval of the mean difference by Student's t, of the differences
      of the same seeds where `paired`, else Welch's; None for two single seeds;
    - over test images: the bootstrap's 95 % percentile interval of the same difference;
    - McNemar's exact test (https://doi.org/10.1007/BF02295996): the binomial test of the
      images that only one of the two gets right, each judged by its seeds' mean probability.

    Args:
      a: logits, float32 [seeds, N, 10].
      b: logits, float32 [seeds, N, 10]; where `paired`, of the same seeds.
      labels: int32 [N].
      paired: whether seed i of A and seed i of B share their randomness.
    """
    import numpy as np
    from scipy import stats

    from mnist_flax.inference import probabilities
    from mnist_flax.spread import figure

    right = [(logits.argmax(axis=-1) == labels).astype(np.float64) for logits in (a, b)]
    accuracy = [hits.mean(axis=1) for hits in right]
    over_images = stats.bootstrap(
        (right[1].mean(axis=0) - right[0].mean(axis=0),),
        np.mean,
        n_resamples=RESAMPLES,
        batch=100,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    answers = [probabilities(logits).argmax(axis=-1) for logits in (a, b)]
    only_a = np.flatnonzero((answers[0] == labels) & (answers[1] != labels))
    only_b = np.flatnonzero((answers[0] != labels) & (answers[1] == labels))
    changed = len(only_a) + len(only_b)
    result = {
        "test_examples": len(labels),
        "accuracy_a": figure(accuracy[0]),
        "accuracy_b": figure(accuracy[1]),
        "difference": float(accuracy[1].mean() - accuracy[0].mean()),
        "paired": paired,
        "interval95_over_seeds": _over_seeds(accuracy[0], accuracy[1], paired),
        "interval95_over_images": [float(end) for end in over_images],
        "mcnemar_p": float(stats.binomtest(len(only_b), changed).pvalue) if changed else 1.0,
        "only_a_right": _images(only_a, labels, answers),
        "only_b_right": _images(only_b, labels, answers),
    }
    return result | {"verdict": _verdict(result)}


def describe(result: dict[str, Any], listed: int = 5) -> str:
    """The comparison for people, with the first `listed` images each way."""
    from mnist_flax.spread import percent

    lines = []
    for side in ("a", "b"):
        seeds = len(result[side]["seeds"])
        accuracy = percent(result[f"accuracy_{side}"])
        lines.append(
            f"{side.upper()}  {accuracy}  {seeds} seed{'s' * (seeds > 1)}  "
            f"{result[side]['workdir']} (step {result[side]['step']:,})"
        )
    kind = "paired by seed" if result["paired"] else "independent seeds"
    over_seeds = result["interval95_over_seeds"]
    ensembles = "  (of the seeds' mean probabilities)" if over_seeds else ""
    lines += [
        "",
        f"B - A  {100 * result['difference']:+.3f} points",
        f"  95% over seeds        {_interval(over_seeds)}" + (f"  ({kind})" if over_seeds else ""),
        f"  95% over test images  {_interval(result['interval95_over_images'])}",
        f"  McNemar's exact test  p = {result['mcnemar_p']:.3g}{ensembles}",
    ]
    for name, other in (("a", "b"), ("b", "a")):
        images = result[f"only_{name}_right"]
        lines += ["", f"{len(images)} test images that only {name.upper()} gets right"]
        lines += [
            f"  image {image['index']:>5} is a {image['label']}, "
            f"{other.upper()} says {image[f'answer_{other}']}"
            for image in images[:listed]
        ]
        if len(images) > listed:
            lines.append(f"  and {len(images) - listed} more; --json lists them")
    return "\n".join([*lines, "", result["verdict"]])


def _over_seeds(a: Any, b: Any, paired: bool) -> list[float] | None:
    from scipy import stats

    if len(a) == len(b) == 1:
        return None
    if paired and len(set(b - a)) == 1:  # no spread at all, which Student's t cannot take
        return [float(b[0] - a[0])] * 2
    # A single seed shows no spread of its own; it is taken to have that of the others.
    alone = 1 in (len(a), len(b))
    test = stats.ttest_rel(b, a) if paired else stats.ttest_ind(b, a, equal_var=alone)
    return [float(end) for end in test.confidence_interval(LEVEL)]


def _images(indices: Any, labels: Any, answers: list[Any]) -> list[dict[str, int]]:
    return [
        {
            "index": int(index),
            "label": int(labels[index]),
            "answer_a": int(answers[0][index]),
            "answer_b": int(answers[1][index]),
        }
        for index in indices
    ]


def _interval(ends: Sequence[float] | None) -> str:
    if ends is None:
        return "unknown: it takes more than one seed"
    return f"{100 * ends[0]:+.3f} to {100 * ends[1]:+.3f} points"


def _verdict(result: dict[str, Any]) -> str:
    points = f"{100 * abs(result['difference']):.2f} points"
    better, worse = ("B", "A") if result["difference"] > 0 else ("A", "B")
    seeds, images = result["interval95_over_seeds"], result["interval95_over_images"]
    if not (result["difference"] or result["only_a_right"] or result["only_b_right"]):
        return "No difference at all."
    if seeds is None:
        if result["mcnemar_p"] >= 1 - LEVEL:
            return "Within noise: chance alone makes such a difference between two networks."
        return (
            f"This {better} is better than this {worse} by {points}, more than chance explains. "
            "Whether another seed would be too, only more seeds can tell."
        )
    blamed = [
        what
        for what, (low, high) in (("seeds", seeds), ("test images", images))
        if low <= 0 <= high
    ]
    if blamed:
        return f"Within noise: other {' or other '.join(blamed)} could turn it round."
    return f"{better} is better by {points}: neither seeds nor test images explain it."


if __name__ == "__main__":
    sys.exit(main())
