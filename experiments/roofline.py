"""How close is training to the limits of this machine, and how soon is it accurate?

python -m experiments.roofline --seeds 30 --precision tf32

For CPU, GPU and TPU alike, and with any config: the flags are those of `mnist_flax.run`. Trains
many seeds for 1, 2, ... epochs, without the time to compile, until the mean test accuracy reaches
99 %. Compares the arithmetic and the memory traffic of a step with a large matrix product and a
large copy on the same device, 64 networks in one program with one after the other, and the bits of
two trainings.
"""

import dataclasses
import functools
import json
import statistics
import time
import timeit
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from experiments.common.provenance import make_parser, provenance, store
from experiments.common.runs import plan
from mnist_flax.core import model, sharding
from mnist_flax.core.config import Config
from mnist_flax.core.conv_pool import jax_precision
from mnist_flax.core.train import TrainState, create_state, train_step
from mnist_flax.data.dataset import Dataset, load_dataset
from mnist_flax.engine.checkpoint import tree_sha256
from mnist_flax.engine.environment import current_environment
from mnist_flax.engine.seed_stats import seed_statistics
from mnist_flax.run.compilation import CompiledTraining, compile_training

TARGET = 0.99
MANY = 64


def main() -> None:
    """Runs all measurements and stores them."""
    parser = make_parser(__doc__, seeds=30)
    parser.allow_abbrev = False  # `--seed` is one of the other flags
    parser.add_argument("--name", help="of the result, without `roofline_`")
    options, flags = parser.parse_known_args()
    config = dataclasses.replace(plan(options, *flags).config, num_seeds=1)
    fraction = config.validation_fraction
    dataset = load_dataset(options.dataset, validation_fraction=fraction)
    result = provenance() | {"environment": current_environment(), "trainings": []}
    result["config"] = dataclasses.asdict(config)
    for epochs in range(1, config.epochs + 1):
        row = time_training(dataclasses.replace(config, epochs=epochs), dataset, options.seeds)
        result["trainings"].append(row)
        accuracy, seconds = row["test_accuracy"], row["seconds"]
        print(f"{epochs} epochs: {accuracy['mean']:.2%} in {seconds['median']:.3f} s", flush=True)
        if accuracy["mean"] >= TARGET:
            break
    fastest = max(row["images_per_second"] for row in result["trainings"])
    result["machine_limits"] = compare_with_limits(config, fastest)
    if not sharding.on_cpu():  # which takes them one after the other
        result["many_seeds"] = time_many_seeds(config, dataset, MANY, fastest)
    result["same_bits_again"] = {
        name: digest(again, dataset) == digest(again, dataset)
        for name, again in (
            ("default", config),
            ("deterministic", dataclasses.replace(config, deterministic=True)),
        )
    }
    others = ("machine_limits", "many_seeds", "same_bits_again")
    print(json.dumps({name: result[name] for name in others if name in result}, indent=2))
    name = options.name or f"{jax.default_backend()}_{config.precision}"
    store(f"roofline_{name}", result, options.output)


def time_training(config: Config, dataset: Dataset, seeds: int) -> dict[str, Any]:
    """Trains networks one after the other; the time to compile is not in their seconds."""
    start = time.perf_counter()
    training = compile_training(dataset, config)
    training.evaluate(train(training))
    first_seconds = time.perf_counter() - start
    seconds, accuracies = [], []
    for seed in range(seeds):
        one = dataclasses.replace(training, key=jax.random.key(seed))
        start = time.perf_counter()
        state = train(one)
        seconds.append(time.perf_counter() - start)
        accuracies.append(float(one.evaluate(state)["test_accuracy"][0]))
    return {
        "epochs": config.epochs,
        "first_run_seconds": first_seconds,  # includes compilation
        "seconds": {"median": statistics.median(seconds), "per_seed": seconds},
        "images_per_second": config.train_examples * config.epochs / statistics.median(seconds),
        "test_accuracy": seed_statistics(accuracies),
        "n": seeds,
    }


def train(training: CompiledTraining) -> TrainState:
    """The state after all epochs. The host waits for the device only at the end."""
    config, state = training.config, training.create_state()
    for epoch in range(config.epochs):
        state = training.train_steps(state, training.epoch_order(epoch), config.steps_per_epoch)
    return jax.block_until_ready(state)


def time_many_seeds(
    config: Config, dataset: Dataset, seeds: int, images_per_second: float
) -> dict[str, Any]:
    """Training many networks in one program, against one after the other."""
    config = dataclasses.replace(config, epochs=1, num_seeds=seeds)
    training = compile_training(dataset, config)
    train(training)
    start = time.perf_counter()
    train(training)
    rate = config.train_examples * seeds / (time.perf_counter() - start)
    return {
        "seeds": seeds,
        "images_per_second": rate,
        "times_as_fast_as_one_after_the_other": rate / images_per_second,
    }


def digest(config: Config, dataset: Dataset) -> str:
    """A hash of the parameters after an epoch, by newly compiled programs."""
    return tree_sha256(train(compile_training(dataset, dataclasses.replace(config, epochs=1))))


def compare_with_limits(config: Config, images_per_second: float) -> dict[str, Any]:
    """The arithmetic and memory traffic of a step as shares of the device's measured best."""
    on_cpu = sharding.on_cpu()
    # At most one micro-batch: XLA counts the body of a loop only once.
    batch = min(config.batch_size, sharding.CPU_MICRO_BATCH) if on_cpu else config.batch_size
    costs = step_costs(dataclasses.replace(config, batch_size=batch))
    flops, traffic = (costs[name] / batch for name in ("flops", "bytes accessed"))
    plain = plain_flops(config)
    # Operations of a large matrix product.
    side = 2048 if on_cpu else 8192
    dtype = jnp.bfloat16 if config.precision == "bfloat16" else jnp.float32
    matrix = jax.random.normal(jax.random.key(0), (side, side), dtype)
    with jax.default_matmul_precision(jax_precision(config.precision)):
        product = 2 * side**3 / best_seconds(jax.jit(lambda a: a @ a), matrix)
    # Bytes, read and written, of updates of a large array in place.
    array, repeats = jnp.zeros(2**24 if on_cpu else 2**28, jnp.float32), 8
    update = jax.jit(lambda a: lax.fori_loop(0, repeats, lambda _, a: a + 1, a))
    copy = 2 * array.nbytes * repeats / best_seconds(update, array)
    return {
        "images_per_second": images_per_second,
        "plain_flops_per_image": plain,
        "compiled_flops_per_image": flops,
        "compiled_bytes_per_image": traffic,
        "flops_per_second_of_a_large_product": product,
        "bytes_per_second_of_a_large_copy": copy,
        "plain_arithmetic_share_of_limit": plain * images_per_second / product,
        "compiled_arithmetic_share_of_limit": flops * images_per_second / product,
        # Caches serve much of it, so this may exceed 1.
        "compiled_traffic_share_of_limit": traffic * images_per_second / copy,
    }


def step_costs(config: Config) -> dict[str, float]:
    """XLA's counts for one step: `flops` and `bytes accessed`."""
    key = jax.random.key(0)
    state = jax.eval_shape(functools.partial(create_state, config=config), key)
    batch = {
        "images": jax.ShapeDtypeStruct((config.batch_size, 28, 28, 1), jnp.uint8),
        "labels": jax.ShapeDtypeStruct((config.batch_size,), jnp.int32),
        "weights": jax.ShapeDtypeStruct((config.batch_size,), jnp.float32),
    }
    step = jax.jit(train_step, static_argnames="config")
    costs: Any = step.lower(state, batch, key, config=config).compile().cost_analysis()
    return costs


def plain_flops(config: Config) -> int:
    """Multiplications and additions for an image, forward and backward, by direct convolution.

    Only outputs that are used count. The backward pass costs as much again for the kernels, and
    for the inputs, except those of the first layer.
    """
    side, channels, total = model.visible_size(config.input_size), 1, 0
    for block in range(model.NUM_BLOCKS):
        products = (side - 2) ** 2 * 9 * channels * config.channels
        total += 2 * products * (2 if block == 0 else 3)
        side, channels = (side - 2) // 2, config.channels
    for inputs, outputs in ((channels, 64), (64, 32), (32, 10)):
        total += 2 * inputs * outputs * 3
    return total


def best_seconds(function: Callable[[jax.Array], jax.Array], argument: jax.Array) -> float:
    """The shortest of ten calls after a first one."""
    seconds = timeit.repeat(lambda: jax.block_until_ready(function(argument)), repeat=11, number=1)
    return min(seconds[1:])


if __name__ == "__main__":
    main()
