"""Where a figure comes from: what every stored result says of itself."""

import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def provenance() -> dict[str, Any]:
    """The command that is running, the commit and the machine."""
    other_than_results = (":/", ":(top,exclude)experiments/results")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", *other_than_results)
    script = Path(sys.argv[0]).name
    return {
        "command": shlex.join(["python", f"experiments/{script}", *sys.argv[1:]]),
        "commit": git("rev-parse", "HEAD") + ("-dirty" if changed else ""),
        "date": date.today().isoformat(),
        "machine": {
            "platform": platform.platform(),
            "processor": processor(),
            "cores": len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count(),
        },
    }


def store(name: str, result: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Writes a result as `<folder>/<name>.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    return path


def git(*arguments: str) -> str:
    """What git says of this checkout."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def processor() -> str:
    """The processor's name, where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    names = cpuinfo.read_text().split("model name")[1:] if cpuinfo.exists() else []
    return names[0].split("\n")[0].strip("\t :") if names else platform.processor()
