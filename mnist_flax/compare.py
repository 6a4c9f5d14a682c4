"""The command `python -m mnist_flax.compare A B ...`: is one better, or is it noise?"""

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
    """Compares trained runs, or sets of seeds, on the same test images.

    Example: mnist-flax compare runs/exp1 runs/exp2 --html comparison.html
    """

    a: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="A")]
    """Workdir of a run."""
    b: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="B")]
    """Workdir of another run."""
    more: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="[C ...]")] = ()
    """Workdirs of more runs. Each is compared with A."""
    html: Path | None = None
    """Also write a page with all results, curves and the images that changed."""
    json: bool = False
    """Print everything as JSON, with all images that changed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""

    def action(argv: Sequence[str]) -> int:
        options = parse_options(Options, cli.program_name("compare"), argv)
        cli.initialize_jax()
        from mnist_flax.evaluate import comparison

        folders = (options.a, options.b, *options.more)
        where = (options.data_dir, options.manual_dir, cli.print_status)
        group = comparison.compare_folders(folders, *where)
        if options.json:
            many = {"leaderboard": group.rows, "comparisons": group.comparisons}
            print(json.dumps(many if options.more else group.comparisons[0], indent=2))
        else:
            describe_all = comparison.describe_group
            print(describe_all(group) if options.more else describe(group.comparisons[0]))
        if options.html:
            _write_page(options.html, comparison.render_comparison(group))
        return 0

    return cli.run_command(action, argv)


def _write_page(path: Path, page: str) -> None:
    from mnist_flax.engine.files import write_text

    try:
        write_text(path, page)
    except OSError as error:
        raise UserError(f"cannot write to {path}: {error.strerror or error}") from error
    cli.print_status(f"wrote {path}")


def compare_runs(
    a: Path, b: Path, data_dir: Path | None = None, manual_dir: Path | None = None
) -> "RunComparison":
    """Compares two trained runs on the test images of their dataset.

    Raises a UserError as `evaluate.comparison.compare_folders` does.
    """
    from mnist_flax.evaluate.comparison import compare_folders

    return compare_folders((a, b), data_dir, manual_dir, cli.print_status).comparisons[0]


def describe(result: "RunComparison", max_images: int = 5) -> str:
    """The comparison as text, with the first `max_images` images that changed each way."""
    from mnist_flax.evaluate.comparison import format_interval

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
        f"  95% over seeds        {format_interval(over_seeds)}"
        + f"  ({seeds})" * bool(over_seeds),
        f"  95% over test images  {format_interval(over_images)}",
        f"  McNemar's exact test  p = {result['mcnemar_p']:.3g}"
        + "  (of the seeds' mean probabilities)" * bool(over_seeds),
    ]
    for name, images, other, prediction in (
        ("A", result["only_a_correct"], "B", "prediction_b"),
        ("B", result["only_b_correct"], "A", "prediction_a"),
    ):
        lines += ["", f"{len(images)} test images that only {name} classifies correctly"]
        lines += [
            f"  image {x['index']:>5}: label {x['label']}, {other} predicts {x[prediction]}"
            for x in images[:max_images]
        ]
        if len(images) > max_images:
            lines.append(f"  and {len(images) - max_images} more; --json lists them")
    return "\n".join([*lines, "", result["verdict"]])


if __name__ == "__main__":
    raise SystemExit(main())
