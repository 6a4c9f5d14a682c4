"""What do the devices of a run have to tell each other, and do more of them compute the same?

python experiments/scaling.py

For 1, 2, 4 and 8 simulated CPU devices, each in a process of its own: the bytes of each training
step's collectives, as they stand in the compiled program, next to the bytes of the gradient; and
the training loss of 20 steps next to one device's. Some of them also divided between two
processes. Simulated devices share the processor's cores, so this says nothing of speed.
"""

import argparse
import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from provenance import RESULTS, provenance, store

STEPS = 20

# Networks, batch size, devices in all, and among how many processes they are divided.
CASES = (
    *((seeds, 64, count, 1) for seeds in (1, 2, 8) for count in (1, 2, 4, 8)),
    *((seeds, 64, count, 2) for seeds, count in ((1, 2), (1, 4), (2, 4))),
    *((seeds, batch, count, 1) for seeds, batch in ((3, 90), (1, 512)) for count in (1, 2, 4, 8)),
)
# What stands in a compiled program's text.
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*?^}", re.MULTILINE | re.DOTALL)
COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|"
    r"collective-broadcast|ragged-all-to-all)(-start)?\("
)
CALLED = re.compile(r"\b(?:body|to_apply|calls|\w+_computations?)=(\{[^}]*\}|%?[\w.-]+)")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
SHAPE = re.compile(r"\b[a-z]+(\d+)\[([\d,]*)\]")


def collectives(program: str) -> list[dict[str, Any]]:
    """Each collective of a step in a compiled program's text, with its bytes and how many times.

    The bytes are those of its result on one device. The loop over the steps is the one whose
    length is not compiled in; a collective in a loop within that one, or around it, comes as
    many times in each step.

    Raises:
      ValueError: there are two such loops within each other.
    """
    computations = list(COMPUTATION.finditer(program))
    lines = {found[2]: found[0].splitlines()[1:] for found in computations}
    (entry,) = [found[2] for found in computations if found[1]]

    def inside(name: str, times: int, in_steps: bool) -> list[dict[str, Any]]:
        found = []
        for line in lines[name]:
            if collective := COLLECTIVE.search(line):
                found.append(_described(*collective.groups()) | {"times": times})
            trips, loop = TRIPS.search(line), " while(" in line
            if loop and not trips and in_steps:
                raise ValueError(f"{name} has a loop of unknown length within the steps")
            for names in CALLED.findall(line):
                for called in re.findall(r"[\w.-]+", names):
                    found += inside(
                        called,
                        times * int(trips[1]) if loop and trips else times,
                        in_steps or (loop and not trips),
                    )
        return found

    return inside(entry, 1, in_steps=False)


def _described(shapes: str, kind: str, start: str | None) -> dict[str, Any]:
    sizes = [
        int(bits) // 8 * int(np.prod([int(n) for n in axes.split(",") if n]))
        for bits, axes in SHAPE.findall(shapes)
    ]
    # Where they only begin, all but all-reduce give what goes in and then what comes out.
    return {"kind": kind, "bytes": sizes[1] if start and kind != "all-reduce" else sum(sizes)}


def measure(num_seeds: int, batch_size: int) -> dict[str, Any]:
    """A training on all devices: what it communicates, and its losses [seeds] of each step."""
    import jax

    from mnist_flax import determinism, devices, processes
    from mnist_flax.config import Config
    from mnist_flax.data import load_dataset
    from mnist_flax.programs import compile_programs

    config = Config(dataset="digits", batch_size=batch_size, num_seeds=num_seeds, shift=1)
    programs = compile_programs(load_dataset("digits"), config)
    state = programs.create_state()
    losses, so_far = [], np.float32(0)
    for step in range(STEPS):
        before = np.float32(0) if step % config.steps_per_epoch == 0 else so_far
        order = programs.epoch_order(step // config.steps_per_epoch)
        state = programs.train_steps(state, order, 1)
        so_far = np.atleast_1d(processes.to_host(state.epoch_loss))
        losses.append(((so_far - before) / batch_size).tolist())
    parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params)) // num_seeds
    return {
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "environment": determinism.environment(),
        "mesh": dict(devices.device_mesh(num_seeds).shape),
        "config": dataclasses.asdict(config),
        "gradient_bytes": parameters,
        "collectives_per_step": collectives(programs.train_program.as_text() or ""),
        "losses": losses,  # over `batch_size`, also of an epoch's last step
        "test_loss": programs.evaluate(state)["test_loss"].tolist(),
    }


def simulated(
    num_seeds: int, batch_size: int, count: int, num_processes: int = 1
) -> dict[str, Any]:
    """`measure` on `count` simulated devices; how many a process has is fixed when it starts."""
    share = count // num_processes
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={share}"}
    command = [sys.executable, __file__, "--measure", str(num_seeds), str(batch_size)]
    if num_processes > 1:
        command += ["--join", free_address(), str(num_processes)]
    started = [
        subprocess.Popen(
            command + [str(number)] * (num_processes > 1),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(num_processes)
    ]
    ended = [(*process.communicate(), process.returncode) for process in started]
    for _, errors, code in ended:
        if code:
            raise RuntimeError(f"{' '.join(command)} ended with code {code}: {errors[-2000:]}")
    return json.loads(ended[0][0].splitlines()[-1])


def free_address() -> str:
    """Where on this machine processes may meet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def main() -> None:
    """Measures all counts of devices, and stores them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the result")
    parser.add_argument("--measure", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--join", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        if options.join:
            from mnist_flax import processes

            address, *numbers = options.join
            processes.initialize(address, *map(int, numbers))
        print(json.dumps(measure(*options.measure)))
        return
    rows = [simulated(*case) for case in CASES]
    print("| seeds | batch | processes | devices | mesh | gradient | a step | loss differs by |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        alone = next(r for r in rows if r["devices"] == 1 and r["config"] == row["config"])
        row["largest_loss_difference"] = float(
            np.abs(np.subtract(row["losses"], alone["losses"])).max()
        )
        told = sum(found["bytes"] * found["times"] for found in row["collectives_per_step"])
        print(
            f"| {row['config']['num_seeds']} | {row['config']['batch_size']} | "
            f"{row['processes']} | {row['devices']} | "
            f"{row['mesh']['seed']} x {row['mesh']['data']} | {row['gradient_bytes']:,} B | "
            f"{told:,} B | {row['largest_loss_difference']:.1e} |"
        )
    # The first one's, which is of one device; the number of devices stands in each row.
    environments = [row.pop("environment") for row in rows]
    result = {"environment": environments[0], "steps": STEPS, "rows": rows}
    print(store("scaling", provenance() | result, options.output))


if __name__ == "__main__":
    main()
