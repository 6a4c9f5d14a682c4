"""What happens to real runs, made to happen many times: is anything lost, wrong or silent?

    python experiments/faults.py

prints a table of each fault, how often it was tried, survived and lost, and stores it; `--only`
tries one of them again. It takes 30 to 41 minutes on two cores; tests do the same in small. It
needs what they need, `pip install -e ".[test]"`; MNIST's files in MNIST_FLAX_MANUAL_DIR; and, to
fill a disk, Linux with namespaces for users. A fault that cannot be tried without these is told.
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

import bad_data
import bad_disk
import bad_network
import fuzz
import interruptions
from provenance import RESULTS, provenance, store
from trials import Fault

from mnist_flax import determinism

FAULTS: tuple[Fault, ...] = (
    *interruptions.FAULTS,
    *bad_disk.FAULTS,
    *bad_data.FAULTS,
    *bad_network.FAULTS,
    *fuzz.FAULTS,
)


def attempt(fault: Fault, tries: int, seed: int) -> dict[str, Any]:
    """One row of the table."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = list(fault.attempt(Path(folder), tries, seed))
        details = Path(folder) / "details.json"
        known = {"details": json.loads(details.read_text())} if details.exists() else {}
    lost = [outcome for outcome in outcomes if outcome]
    return {
        "fault": fault.name,
        "tries": len(outcomes),
        "survived": len(outcomes) - len(lost),
        "lost": lost,
        "seconds": round(time.monotonic() - began, 1),
        **known,
    }


def table(rows: Iterable[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = ["| fault | tries | survived | lost |", "|---|---|---|---|"]
    for row in rows:
        lines.append(
            f"| {row['fault']} | {row['tries']:,} | {row['survived']:,} | {len(row['lost'])} |"
        )
    return "\n".join(lines)


def keep(rows: Iterable[dict[str, Any]], folder: Path) -> Path:
    """Stores rows of faults that were tried beside those of others that were stored before."""
    path = folder / "faults.json"
    known = json.loads(path.read_text())["faults"] if path.exists() else []
    named = {row["fault"]: row for row in (*known, *rows) if row["tries"]}
    kept = [named[fault.name] for fault in FAULTS if fault.name in named]
    return store("faults", {"table": table(kept).splitlines(), "faults": kept}, folder)


def _in_a_process(fault: Fault, seed: int) -> dict[str, Any]:
    """`attempt` in a process of its own, so that one cannot disturb another."""
    command = [sys.executable, __file__, "--only", fault.name, "--seed", str(seed), "--row"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        lost = f"the experiment itself ended with code {ended.returncode}: {ended.stderr[-2000:]}"
        row = {"fault": fault.name, "tries": 1, "survived": 0, "lost": [lost], "seconds": 0.0}
    else:
        row = json.loads(ended.stdout.splitlines()[-1])
    found = f"{row['survived']:,} of {row['tries']:,}" if row["tries"] else "cannot be tried here"
    print(f"{row['fault']}: {found}", *row["lost"], sep="\n  ")
    sys.stdout.flush()
    return row


def main() -> None:
    """Tries all faults, or one of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=[fault.name for fault in FAULTS], help="one fault alone")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and inputs")
    parser.add_argument("--jobs", type=int, default=2, help="faults tried side by side")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the result")
    parser.add_argument("--row", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    chosen = [fault for fault in FAULTS if options.only in (None, fault.name)]
    if options.row:
        print(json.dumps(attempt(chosen[0], chosen[0].tries, options.seed)))
        return
    with ThreadPoolExecutor(options.jobs) as pool:
        rows = list(pool.map(lambda fault: _in_a_process(fault, options.seed), chosen))
    print(table(rows))
    origin = provenance() | {"environment": determinism.environment(), "seed": options.seed}
    print(keep([row | origin for row in rows], options.output))
    sys.exit(any(row["lost"] for row in rows))


if __name__ == "__main__":
    main()
