"""Where a result comes from, as far as the files of its run say so."""

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from mnist_flax.core.config import Config
from mnist_flax.engine import workdir
from mnist_flax.engine.environment import Environment, describe_machine
from mnist_flax.engine.recipe import describe_recipe, training_command
from mnist_flax.evaluate.pages import dataset_title

# Orbax's file in each checkpoint.
METADATA = "_CHECKPOINT_METADATA"

VERSIONS = ("mnist-flax", "jax", "flax", "optax", "orbax-checkpoint", "numpy", "python")


def saved_at(folder: Path, step: int | None = None) -> datetime | None:
    """When a checkpoint of a run was saved, by default its latest; None if nothing says so."""
    checkpoints = folder / workdir.CHECKPOINTS
    paths = (
        checkpoints.glob(f"*/{METADATA}") if step is None else [checkpoints / f"{step}" / METADATA]
    )
    times = [time for path in paths if (time := _read_time(path))]
    return max(times, default=None)


def _read_time(path: Path) -> datetime | None:
    try:
        nanoseconds = json.loads(path.read_text(encoding="utf-8"))["commit_timestamp_nsecs"]
        return datetime.fromtimestamp(nanoseconds // 10**9, UTC)
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None


def provenance(
    config: Config, environment: Environment | None, saved: datetime | None
) -> dict[str, str]:
    """What is known, in words. The command is one that trains the same, not what was typed."""
    known = environment or {}
    versions = [f"{name} {known[name]}" for name in VERSIONS if name in known]
    rows = {
        "Command": training_command(config),
        "Recipe": describe_recipe(config),
        "Data": f"{dataset_title(config.dataset)}, {config.train_examples:,} training images",
        "Saved": saved.strftime("%Y-%m-%d %H:%M UTC") if saved else "",
        "Machine": describe_machine(known),
        "Versions": ", ".join(versions),
        "Report by": code_version() or "",
    }
    return {name: value for name, value in rows.items() if value}


def code_version() -> str | None:
    """The commit of this code, if it lies in a checkout; None elsewhere."""
    folder = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=5)
        return result.stdout.strip()

    try:
        # An environment may lie inside another project's checkout, which does not track it.
        git("ls-files", "--error-unmatch", str(Path(__file__)))
        changed = git("status", "--porcelain", "--untracked-files=no", str(folder))
        return f"commit {git('rev-parse', '--short=12', 'HEAD')}" + ", changed since" * bool(
            changed
        )
    except (OSError, subprocess.SubprocessError):
        return None
