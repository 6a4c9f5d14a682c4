"""How much do the devices of a run communicate, and do more devices compute the same?

python -m experiments.multi_device

For 1, 2, 4 and 8 simulated CPU devices, each in new processes: the bytes of the collectives of
one training step, as the compiled program states them, beside the bytes of the gradient; and the
training loss of 20 steps compared with that of one device. Some are divided between two
processes. Simulated devices share the processor's cores, so this does not measure speed.
"""

import argparse
import dataclasses
import json
import math
import os
import re
import socket
import subprocess
import sys
from typing import Any

import jax
import numpy as np

from experiments.common.provenance import ROOT, make_parser, provenance, store
from mnist_flax.core import sharding
from mnist_flax.core.config import Config
from mnist_flax.data.dataset import load_dataset
from mnist_flax.engine import distributed
from mnist_flax.engine.environment import current_environment
from mnist_flax.run.compilation import compile_training

STEPS = 20
# Seeds, batch size, number of devices, and number of processes among which they are divided.
CASES = (
    *((seeds, 64, count, 1) for seeds in (1, 2, 8) for count in (1, 2, 4, 8)),
    *((seeds, 64, count, 2) for seeds, count in ((1, 2), (1, 4), (2, 4))),
    *((seeds, batch, count, 1) for seeds, batch in ((3, 90), (1, 512)) for count in (1, 2, 4, 8)),
)

# Patterns in the text of a compiled program.
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*?^}", re.MULTILINE | re.DOTALL)
COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|"
    r"collective-broadcast|ragged-all-to-all)(-start)?\("
)
CALLED = re.compile(r"\b(?:body|to_apply|calls|\w+_computations?)=(\{[^}]*\}|%?[\w.-]+)")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
SHAPE = re.compile(r"\b[a-z]+(\d+)\[([\d,]*)\]")


def collectives(program: str) -> list[dict[str, Any]]:
    """The collectives of one step in a program's text: bytes on one device, and how many times.

    The loop over the steps is the one whose length is unknown to the compiler. A collective in a
    loop inside or around it counts once per iteration of that loop. Raises a ValueError if one
    loop of unknown length contains another.
    """
    computations = list(COMPUTATION.finditer(program))
    lines = {match[2]: match[0].splitlines()[1:] for match in computations}
    (entry,) = [match[2] for match in computations if match[1]]

    def inside(name: str, times: int, in_steps: bool) -> list[dict[str, Any]]:
        result = []
        for line in lines[name]:
            if collective := COLLECTIVE.search(line):
                shapes, kind, start = collective.groups()
                sizes = [
                    int(bits) // 8 * math.prod(int(n) for n in axes.split(",") if n)
                    for bits, axes in SHAPE.findall(shapes)
                ]
                # An asynchronous start lists inputs and then results, except for all-reduce.
                size = sizes[1] if start and kind != "all-reduce" else sum(sizes)
                result.append({"kind": kind, "bytes": size, "times": times})
            trips = TRIPS.search(line) if " while(" in line else None
            is_unknown = " while(" in line and not trips
            if is_unknown and in_steps:
                raise ValueError(f"{name} has a loop of unknown length within the steps")
            for called in re.findall(r"[\w.-]+", " ".join(CALLED.findall(line))):
                total = times * int(trips[1] if trips else 1)
                result += inside(called, total, in_steps or is_unknown)
        return result

    return inside(entry, 1, in_steps=False)


def measure(seeds: int, batch_size: int) -> dict[str, Any]:
    """Trains on all devices: the communication, and the losses [seeds] of each step."""
    # At the default learning rate, rounding differences grow within the measured steps.
    config = Config(dataset="digits", batch_size=batch_size, num_seeds=seeds, learning_rate=1e-3)
    dataset = load_dataset("digits")
    # Noise, because in an empty region rounding decides which of equal outputs gets the gradient.
    images = np.random.default_rng(0).integers(0, 256, dataset.train[0].shape, np.uint8)
    dataset = dataclasses.replace(dataset, train=(images, dataset.train[1]))
    training = compile_training(dataset, config)
    state = training.create_state()
    losses, total = [], np.float32(0)
    program = training.train_program
    assert isinstance(program, jax.stages.Compiled)
    for step in range(STEPS):
        before = np.float32(0) if step % config.steps_per_epoch == 0 else total
        order = training.epoch_order(step // config.steps_per_epoch)
        state = training.train_steps(state, order, 1)
        total = np.atleast_1d(distributed.gather_to_host(state.epoch_loss))
        losses.append(((total - before) / batch_size).tolist())
    return {
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "mesh": dict(sharding.device_mesh(seeds).shape),
        "config": dataclasses.asdict(config),
        "gradient_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state.params)) // seeds,
        "collectives_per_step": collectives(program.as_text() or ""),
        "losses": losses,  # divided by `batch_size` also in the last step of an epoch
        "test_loss": training.evaluate(state)["test_loss"].tolist(),
    }


def simulate(seeds: int, batch_size: int, devices: int, num_processes: int = 1) -> dict[str, Any]:
    """`measure` on simulated devices in new processes, since their number is fixed at the start."""
    count = f"--xla_force_host_platform_device_count={devices // num_processes}"
    command = [sys.executable, "-m", "experiments.multi_device"]
    command += ["--measure", str(seeds), str(batch_size)]
    if num_processes > 1:
        command += ["--join", free_address(), str(num_processes)]
    processes = [
        subprocess.Popen(
            command + [str(index)] * (num_processes > 1),
            cwd=ROOT,
            env=os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {count}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(num_processes)
    ]
    outputs = [(*process.communicate(), process.returncode) for process in processes]
    for _, errors, code in outputs:
        if code:
            raise RuntimeError(f"{' '.join(command)} ended with code {code}: {errors[-2000:]}")
    return json.loads(outputs[0][0].splitlines()[-1])


def free_address() -> str:
    """An address on this machine where the processes can meet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def main() -> None:
    """Measures all cases and stores them."""
    parser = make_parser(__doc__)
    parser.add_argument("--measure", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--join", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.join:
        address, *numbers = options.join
        distributed.initialize(address, *map(int, numbers))
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return
    rows = [simulate(*case) for case in CASES]
    print("| seeds | batch | processes | devices | mesh | gradient | per step | loss differs by |")
    print("|---" * 8 + "|")
    for row in rows:
        single = next(x for x in rows if x["devices"] == 1 and x["config"] == row["config"])
        differences = np.abs(np.subtract(row["losses"], single["losses"]))
        row["largest_loss_difference"] = float(differences.max())
        total = sum(item["bytes"] * item["times"] for item in row["collectives_per_step"])
        print(
            "| {config[num_seeds]} | {config[batch_size]} | {processes} | {devices} "
            "| {mesh[seed]} x {mesh[data]} | {gradient_bytes:,} B | {total:,} B "
            "| {largest_loss_difference:.1e} |".format(total=total, **row)
        )
    result = {"environment": current_environment(), "steps": STEPS, "rows": rows}
    print(store("multi_device", provenance() | result, options.output))


if __name__ == "__main__":
    main()
