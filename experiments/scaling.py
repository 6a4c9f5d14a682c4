"""What do the devices of a run have to tell each other, and do more of them compute the same?

python experiments/scaling.py

For 1, 2, 4 and 8 simulated CPU devices, each in a process of its own: the bytes of each training
step's collectives, as they stand in the compiled program, next to the bytes of the gradient; and
the training loss of 20 steps next to one device's. Simulated devices share the processor's
cores, so this says nothing of speed.
"""

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from provenance import RESULTS, provenance, store

COUNTS, STEPS = (1, 2, 4, 8), 20
COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|"
    r"collective-broadcast|ragged-all-to-all)(?:-start)?\("
)
SHAPE = re.compile(r"\b[a-z]+(\d+)\[([\d,]*)\]")


def collectives(program: str) -> list[dict[str, Any]]:
    """Each collective in a compiled program's text, with the bytes of its result on a device."""
    found = []
    for shapes, kind in COLLECTIVE.findall(program):
        sizes = [
            int(bits) // 8 * int(np.prod([int(n) for n in axes.split(",") if n]))
            for bits, axes in SHAPE.findall(shapes)
        ]
        found.append({"kind": kind, "bytes": sum(sizes)})
    return found


def measure(num_seeds: int, batch_size: int) -> dict[str, Any]:
    """A training on all devices of this process: what it communicates, and its losses [seeds]."""
    import jax

    from mnist_flax import devices
    from mnist_flax.config import Config
    from mnist_flax.data import load_dataset
    from mnist_flax.programs import compile_programs

    config = Config(dataset="digits", batch_size=batch_size, num_seeds=num_seeds, shift=1)
    programs = compile_programs(load_dataset("digits"), config)
    state = programs.create_state()
    losses = []
    for step in range(STEPS):
        first = step % config.steps_per_epoch == 0
        before = 0.0 if first else np.atleast_1d(state.epoch_loss)
        order = programs.epoch_order(step // config.steps_per_epoch)
        state = programs.train_steps(state, order, 1)
        losses.append(((np.atleast_1d(state.epoch_loss) - before) / batch_size).tolist())
    parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params)) // num_seeds
    return {
        "devices": jax.device_count(),
        "mesh": dict(devices.device_mesh(num_seeds).shape),
        "config": dataclasses.asdict(config),
        "gradient_bytes": parameters,
        "collectives_per_step": collectives(programs.train_program.as_text() or ""),
        "losses": losses,  # over `batch_size`, also of an epoch's last step
        "test_loss": programs.evaluate(state)["test_loss"].tolist(),
    }


def simulated(count: int, num_seeds: int, batch_size: int) -> dict[str, Any]:
    """`measure` on so many simulated devices, whose number is fixed when a process starts."""
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}
    command = [sys.executable, __file__, "--measure", str(num_seeds), str(batch_size)]
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(output.stdout.splitlines()[-1])


def main() -> None:
    """Measures all counts of devices, and stores them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the result")
    parser.add_argument("--measure", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return
    rows = [
        simulated(count, seeds, batch)
        for seeds, batch in ((1, 64), (2, 64), (8, 64), (3, 90), (1, 512))
        for count in COUNTS
    ]
    print("| seeds | batch | devices | mesh | gradient | told per step | loss differs by |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        alone = next(r for r in rows if r["devices"] == 1 and r["config"] == row["config"])
        row["largest_loss_difference"] = float(
            np.abs(np.subtract(row["losses"], alone["losses"])).max()
        )
        told = sum(collective["bytes"] for collective in row["collectives_per_step"])
        print(
            f"| {row['config']['num_seeds']} | {row['config']['batch_size']} | {row['devices']} | "
            f"{row['mesh']['seed']} x {row['mesh']['data']} | {row['gradient_bytes']:,} B | "
            f"{told:,} B | {row['largest_loss_difference']:.1e} |"
        )
    print(store("scaling", provenance() | {"steps": STEPS, "rows": rows}, options.output))


if __name__ == "__main__":
    main()
