"""How near is the training to what this machine can do, and how soon is it accurate?

python experiments/limits.py --seeds 30 --precision tf32

For CPU, GPU and TPU alike. Compares the arithmetic and the memory traffic of a step with a
large matrix product and a large copy on the same device; then trains for 1, 2, ... epochs with
many seeds, compiling apart, until the mean test accuracy reaches 99 %.
"""

import argparse
import dataclasses
import functools
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from provenance import RESULTS, provenance, store

from mnist_flax import determinism, devices, inference, model, train
from mnist_flax.config import PRESETS, Config
from mnist_flax.data import load_dataset
from mnist_flax.spread import spread

TARGET = 0.99


def main() -> None:
    """Runs all measurements and stores them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--precision", default="float32", choices=("float32", "tf32", "bfloat16"))
    parser.add_argument("--batch-size", type=int, default=PRESETS["default"].batch_size)
    parser.add_argument("--epochs", type=int, default=5, help="the longest budget")
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    config = dataclasses.replace(
        PRESETS["default"],
        dataset=options.dataset,
        precision=options.precision,
        batch_size=options.batch_size,
    )
    dataset = load_dataset(options.dataset)
    arrays = jax.device_put((dataset.train, dataset.test))
    result = provenance() | {
        "environment": determinism.environment(),
        "precision": options.precision,
        "batch_size": options.batch_size,
        "dataset": options.dataset,
        "budgets": [],
    }
    for epochs in range(1, options.epochs + 1):
        budget = train_seeds(dataclasses.replace(config, epochs=epochs), arrays, options.seeds)
        result["budgets"].append(budget)
        accuracy, seconds = budget["test_accuracy"], budget["seconds"]
        print(f"{epochs} epochs: {accuracy['mean']:.2%} in {seconds['median']:.3f} s", flush=True)
        if accuracy["mean"] >= TARGET:
            break
    fastest = max(budget["images_per_second"] for budget in result["budgets"])
    result["machine_limits"] = compare(config, fastest)
    print(json.dumps(result["machine_limits"], indent=2))
    store(f"limits_{jax.default_backend()}_{options.precision}", result, options.output)


def train_seeds(config: Config, arrays: Any, seeds: int) -> dict[str, Any]:
    """Trains `seeds` networks one after the other; nothing is compiled while the clock runs."""
    (images, labels), (images_test, labels_test) = arrays
    step_count = jnp.int32(config.steps_per_epoch)

    def run(key: jax.Array) -> train.TrainState:
        # Not once does the host wait for the device before the end.
        state = train.create_state(key, config=config)
        for epoch in range(config.epochs):
            order = train.epoch_order(key, jnp.int32(epoch), config)
            state = train.train_steps(state, images, labels, order, key, step_count, config=config)
        return jax.block_until_ready(state)

    def score(state: train.TrainState) -> float:
        logits = inference.predict_logits(state.params, images_test, config=config)
        return float(
            inference.scores(np.asarray(logits)[None], np.asarray(labels_test))["accuracy"][0]
        )

    began = time.perf_counter()
    score(run(jax.random.key(0)))
    first_seconds = time.perf_counter() - began
    seconds, accuracies = [], []
    for seed in range(seeds):
        key = jax.random.key(seed)
        began = time.perf_counter()
        state = run(key)
        seconds.append(time.perf_counter() - began)
        accuracies.append(score(state))
    return {
        "epochs": config.epochs,
        "first_run_seconds": first_seconds,  # compiling included
        "seconds": {"median": statistics.median(seconds), "per_seed": seconds},
        "images_per_second": config.train_examples * config.epochs / statistics.median(seconds),
        "test_accuracy": spread(accuracies),
        "n": seeds,
    }


def compare(config: Config, images_per_second: float) -> dict[str, Any]:
    """The step's arithmetic and memory traffic against the device's measured best."""
    on_cpu = devices.on_cpu()
    # A batch that is not divided, so that no loop hides what is counted.
    batch = min(config.batch_size, train.CPU_MICRO_BATCH) if on_cpu else config.batch_size
    counted = step_costs(dataclasses.replace(config, batch_size=batch))
    plain = plain_flops(config.input_size)
    size = 2048 if on_cpu else 8192
    product = best_product(size, config.precision)
    copy = best_copy(2**26 if on_cpu else 2**30)
    per_image = {name: value / batch for name, value in counted.items()}
    return {
        "images_per_second": images_per_second,
        "plain_flops_per_image": plain,
        "compiled_flops_per_image": per_image["flops"],
        "compiled_bytes_per_image": per_image["bytes accessed"],
        "flops_per_second_of_a_large_product": product,
        "bytes_per_second_of_a_large_copy": copy,
        "plain_arithmetic_of_best": plain * images_per_second / product,
        "compiled_arithmetic_of_best": per_image["flops"] * images_per_second / product,
        # Caches serve much of it, so this may pass 1.
        "compiled_traffic_of_best": per_image["bytes accessed"] * images_per_second / copy,
    }


def step_costs(config: Config) -> dict[str, float]:
    """XLA's own count for one step: `flops` and `bytes accessed`."""
    key = jax.random.key(0)
    state = jax.eval_shape(functools.partial(train.create_state, config=config), key)
    batch = {
        "images": jax.ShapeDtypeStruct((config.batch_size, 28, 28, 1), jnp.uint8),
        "labels": jax.ShapeDtypeStruct((config.batch_size,), jnp.int32),
        "weights": jax.ShapeDtypeStruct((config.batch_size,), jnp.float32),
    }
    step = jax.jit(train.train_step, static_argnames="config")
    costs: Any = step.lower(state, batch, key, config=config).compile().cost_analysis()
    return {name: costs[name] for name in ("flops", "bytes accessed")}


def plain_flops(size: int) -> int:
    """Multiplications and additions of an image forwards and backwards, without tricks.

    Only outputs that something reads count. Backwards costs as much again for the kernels,
    and for the inputs, except those of the first layer, which are the image.
    """
    side, channels, total = model.live_size(size), 1, 0
    for block in range(model.NUM_BLOCKS):
        products = (side - 2) ** 2 * 9 * channels * 64
        total += 2 * products * (2 if block == 0 else 3)
        side, channels = (side - 2) // 2, 64
    for inputs, outputs in ((64, 64), (64, 32), (32, 10)):
        total += 2 * inputs * outputs * 3
    return total


def best_product(size: int, precision: str) -> float:
    """Operations per second of a large matrix product."""
    dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    with jax.default_matmul_precision("tensorfloat32" if precision == "tf32" else "float32"):
        seconds = best_seconds(jax.jit(lambda a: a @ a), a)
    return 2 * size**3 / seconds


def best_copy(size: int) -> float:
    """Bytes per second, read and written, of changes in place to a large array."""
    times = 8
    a = jnp.zeros(size // 4, jnp.float32)
    change = jax.jit(lambda a: lax.fori_loop(0, times, lambda _, a: a + 1, a))
    return 2 * size * times / best_seconds(change, a)


def best_seconds(function: Callable, argument: jax.Array) -> float:
    """The shortest of several calls."""
    jax.block_until_ready(function(argument))
    best = math.inf
    for _ in range(10):
        began = time.perf_counter()
        jax.block_until_ready(function(argument))
        best = min(best, time.perf_counter() - began)
    return best


if __name__ == "__main__":
    main()
