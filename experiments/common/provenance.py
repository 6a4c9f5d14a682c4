"""How results are stored, and what each of them says about its origin."""

import argparse
import contextlib
import os
import platform
import shlex
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

from mnist_flax.core.config import DATASET_SIZES
from mnist_flax.engine.files import write_json

RESULTS = Path(__file__).parents[1] / "results"
ROOT = RESULTS.parents[1]
RUNS = ROOT / "runs"  # git ignores it
WRITTEN = (":!experiments/results", ":!mnist_flax/pretrained")  # by experiments


def make_parser(
    description: str | None, seeds: int | None = None, only_mnist: bool = False
) -> argparse.ArgumentParser:
    """A parser with the option of all experiments, and with `seeds` those of `common.runs`."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {_main_module()}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the result")
    if seeds is not None:
        parser.add_argument("--seeds", type=at_least_2, default=seeds, help="how many, from 0")
        parser.add_argument("--runs", type=Path, default=RUNS, help="folder for the workdirs")
        datasets = ["mnist"] if only_mnist else DATASET_SIZES
        parser.add_argument("--dataset", choices=datasets, default="mnist")
    return parser


def store(name: str, result: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Writes a result as `<folder>/<name>.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    write_json(path, result)
    return path


def provenance() -> dict[str, Any]:
    """The command of this process, the commit, the date and the machine."""
    changed = _git("status", "--porcelain", "--untracked-files=no", ".", *WRITTEN)
    cpuinfo, has_affinity = Path("/proc/cpuinfo"), hasattr(os, "sched_getaffinity")
    names = cpuinfo.read_text().split("model name")[1:] if cpuinfo.exists() else []
    return {
        "command": shlex.join(["python", "-m", _main_module(), *sys.argv[1:]]),
        "commit": (_git("rev-parse", "HEAD") or "unknown") + ("-dirty" if changed else ""),
        "date": date.today().isoformat(),
        "machine": {
            "platform": platform.platform(),
            "processor": names[0].split("\n")[0].strip("\t :") if names else platform.processor(),
            "cores": len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count(),
        },
    }


def at_least_2(text: str) -> int:
    """A number of seeds on a command line."""
    if int(text) < 2:
        raise argparse.ArgumentTypeError("at least 2, for a spread")
    return int(text)


def _main_module() -> str:
    """The module that `python -m` has started."""
    spec = sys.modules["__main__"].__spec__
    return spec.name.removesuffix(".__main__") if spec else Path(sys.argv[0]).stem


def _git(*arguments: str) -> str:
    """Empty where there is no repository, or no git."""
    command = ["git", "-C", str(ROOT), *arguments]
    with contextlib.suppress(FileNotFoundError):
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return ""
