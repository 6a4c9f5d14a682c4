"""Faults that runs meet in practice, provoked many times: is anything lost, wrong or silent?

    python -m experiments.faults

prints and stores a table of how often each fault was tried, survived and lost; `--only` tries one
of them. It takes 40 to 80 minutes on two cores; the tests do the same with few tries. It needs
`pip install -e ".[test]"`, MNIST's files in MNIST_FLAX_MANUAL_DIR and, to fill a disk, Linux with
user namespaces. A fault that cannot be tried without these is reported.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from experiments.common.provenance import ROOT, make_parser, provenance, store
from experiments.faults import (
    datasets,
    fuzz_commands,
    kills,
    network,
    power_cuts,
    settings,
    storage,
    system_calls,
)
from experiments.faults.fault import Fault
from mnist_flax.engine.environment import current_environment

MODULES = (kills, power_cuts, storage, system_calls, settings, datasets, network, fuzz_commands)
FAULTS: list[Fault] = [fault for module in MODULES for fault in module.FAULTS]


def attempt(fault: Fault, tries: int, seed: int) -> dict[str, Any]:
    """Tries a fault; returns a row of the table, with details where the fault stores some."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = list(fault.attempt(Path(folder), tries, seed))
        details = Path(folder) / "details.json"
        stored = {"details": json.loads(details.read_text())} if details.exists() else {}
    lost = [outcome for outcome in outcomes if outcome]
    return {
        "fault": fault.name,
        "tries": len(outcomes),
        "survived": len(outcomes) - len(lost),
        "lost": lost,
        "seconds": round(time.monotonic() - start, 1),
        **stored,
    }


def table(rows: Iterable[dict[str, Any]]) -> list[str]:
    """The rows as the lines of a table in Markdown."""
    template = "| {fault} | {tries:,} | {survived:,} | {} |"
    lines = [template.format(len(row["lost"]), **row) for row in rows]
    return ["| fault | tries | survived | lost |", "|---|---|---|---|", *lines]


def update(rows: Iterable[dict[str, Any]], folder: Path) -> Path:
    """Stores rows beside the stored ones of other faults; untried ones replace nothing."""
    path = folder / "faults.json"
    stored = json.loads(path.read_text())["faults"] if path.exists() else []
    by_name = {row["fault"]: row for row in (*stored, *rows) if row["tries"]}
    ordered = [by_name[fault.name] for fault in FAULTS if fault.name in by_name]
    return store("faults", {"table": table(ordered), "faults": ordered}, folder)


def _attempt_in_process(fault: Fault, seed: int) -> dict[str, Any]:
    """`attempt` in a new process, so that faults cannot disturb each other."""
    command = [sys.executable, "-m", "experiments.faults", "--row"]
    command += ["--only", fault.name, "--seed", str(seed)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if ended.returncode:
        lost = f"the experiment ended with code {ended.returncode}: {ended.stderr[-2000:]}"
        row = {"fault": fault.name, "tries": 1, "survived": 0, "lost": [lost], "seconds": 0.0}
    else:
        row = json.loads(ended.stdout.splitlines()[-1])
    result = f"{row['survived']:,} of {row['tries']:,}" if row["tries"] else "cannot be tried here"
    print(f"{row['fault']}: {result}", *row["lost"], sep="\n  ", flush=True)
    return row


def main() -> None:
    """Tries all faults, or one of them."""
    parser = make_parser(__doc__)
    parser.add_argument("--only", choices=[fault.name for fault in FAULTS], help="one fault")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and inputs")
    parser.add_argument("--jobs", type=int, default=2, help="faults tried at the same time")
    parser.add_argument("--row", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    chosen = [fault for fault in FAULTS if options.only in (None, fault.name)]
    if options.row:
        print(json.dumps(attempt(chosen[0], chosen[0].tries, options.seed)))
        return
    with ThreadPoolExecutor(options.jobs) as pool:
        rows = list(pool.map(lambda fault: _attempt_in_process(fault, options.seed), chosen))
    print(*table(rows), sep="\n")
    origin = provenance() | {"environment": current_environment(), "seed": options.seed}
    print(update([row | origin for row in rows], options.output))
    sys.exit(any(row["lost"] for row in rows))


if __name__ == "__main__":
    main()
