"""The compiled programs of a run: each of `train`'s functions, for one config and its data.

With several seeds, one program computes them all.
"""

import dataclasses
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil
from jax import lax, stages
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mnist_flax import train
from mnist_flax.config import Config, UserError
from mnist_flax.data import Dataset
from mnist_flax.train import TrainState

# On accelerators so many seeds are computed side by side. On CPU one after the other: a
# single one keeps the cores busy, and its patches the cache.
SEEDS_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class Programs:
    """What the training loop calls. The data and the run's key are bound already.

    With several seeds every leaf of the state has a first axis for them.
    """

    like: TrainState  # shapes, dtypes and placement of the state
    create_state: Callable[[], TrainState]
    epoch_order: Callable[[int], jax.Array]
    train_steps: Callable[[TrainState, jax.Array, int], TrainState]  # donates the state
    evaluate: Callable[[TrainState], dict[str, np.ndarray]]  # of each score float64 [num_seeds]


def compile_programs(dataset: Dataset, config: Config) -> Programs:
    """Puts the data on the devices and compiles what training needs.

    Raises:
      UserError: so many seeds do not fit into memory.
    """
    mesh = seed_mesh(config.num_seeds)
    key, zero = jax.device_put(_keys(config), NamedSharding(mesh, _spec(config))), np.int32(0)
    everywhere = NamedSharding(mesh, P())
    training = jax.device_put(dataset.train, everywhere)
    splits = {"test": jax.device_put(dataset.test, everywhere)}
    if config.validation_fraction:
        splits["validation"] = jax.device_put(dataset.validation, everywhere)
    over_seeds = functools.partial(_over_seeds, config=config, mesh=mesh)

    # One at a time, for the compiler uses all cores; the next is traced meanwhile. Training
    # does not wait for the evaluation, which compiles beside the first steps.
    pool = ThreadPoolExecutor(max_workers=1)
    lowered_state = over_seeds(train.create_state, (0,)).lower(key)
    create_state = pool.submit(_compile, lowered_state)
    lowered_order = over_seeds(train.epoch_order, (0, None)).lower(key, zero)
    epoch_order = pool.submit(_compile, lowered_order)
    like, order = (
        _abstract(lowered, NamedSharding(mesh, _spec(config)))
        for lowered in (lowered_state, lowered_order)
    )
    steps = over_seeds(train.train_steps, (0, None, None, 0, 0, None), donate=(0,))
    train_steps = pool.submit(_compile, steps.lower(like, *training, order, key, zero))
    scoring = over_seeds(train.evaluate, (0, None, None))
    evaluators = {
        name: pool.submit(lambda split: _compile(scoring.lower(like.params, *split)), split)
        for name, split in splits.items()
    }
    pool.shutdown(wait=False)

    def evaluate(state: TrainState) -> dict[str, np.ndarray]:
        scores: dict[str, np.ndarray] = {}
        for name, split in splits.items():
            sums = jax.device_get(evaluators[name].result()(state.params, *split))
            count = np.atleast_1d(sums["count"]).astype(np.float64)
            scores[f"{name}_loss"] = np.atleast_1d(sums["loss"]) / count
            scores[f"{name}_accuracy"] = np.atleast_1d(sums["correct"]) / count
        return scores

    create_state, epoch_order, train_steps = (
        future.result() for future in (create_state, epoch_order, train_steps)
    )
    _require_memory(train_steps, mesh, config)
    return Programs(
        like,
        lambda: create_state(key),
        lambda epoch: epoch_order(key, np.int32(epoch)),
        lambda state, order, count: train_steps(state, *training, order, key, np.int32(count)),
        evaluate,
    )


def seed_mesh(num_seeds: int) -> Mesh:
    """As many of the devices as can share `num_seeds` equally; for one seed, the first."""
    devices = jax.devices()
    count = max(n for n in range(1, len(devices) + 1) if num_seeds % n == 0)
    return jax.make_mesh((count,), ("seed",), (AxisType.Auto,), devices=devices[:count])


def _keys(config: Config) -> jax.Array:
    if config.num_seeds == 1:
        return jax.random.key(config.seed)
    seeds = np.arange(config.seed, config.seed + config.num_seeds, dtype=np.uint32)
    return jax.vmap(jax.random.key)(seeds)


def _spec(config: Config) -> P:
    """Where the states of the seeds are: divided over the devices."""
    return P("seed") if config.num_seeds > 1 else P()


def _over_seeds(
    function: Callable[..., Any],
    in_axes: tuple[int | None, ...],
    config: Config,
    mesh: Mesh,
    donate: tuple[int, ...] = (),
) -> stages.Wrapped:
    """The function of a single seed, jitted; with several seeds mapped over them.

    Args:
      function: takes arrays, and `config` by name.
      in_axes: as in `jax.vmap`: 0 for what each seed has its own of.
    """
    single = functools.partial(function, config=config)
    if config.num_seeds == 1:
        return jax.jit(single, donate_argnums=donate)
    at_once = min(SEEDS_AT_ONCE, config.num_seeds // mesh.size)

    def each(*arguments: Any) -> Any:
        def one(own: list[Any]) -> Any:
            owned = iter(own)
            return single(
                *(
                    next(owned) if axis == 0 else shared
                    for axis, shared in zip(in_axes, arguments, strict=True)
                )
            )

        own = [x for axis, x in zip(in_axes, arguments, strict=True) if axis == 0]
        return lax.map(one, own, batch_size=None if _on_cpu() else at_once)

    specs = tuple(P("seed") if axis == 0 else P() for axis in in_axes)
    mapped = jax.shard_map(each, mesh=mesh, in_specs=specs, out_specs=P("seed"), check_vma=False)
    return jax.jit(mapped, donate_argnums=donate)


def _compile(lowered: stages.Lowered) -> stages.Compiled:
    # On CPU level 1 compiles in two thirds of the time of level 3, to programs as fast.
    return lowered.compile({"xla_backend_optimization_level": "1"} if _on_cpu() else None)


def _abstract(lowered: stages.Lowered, sharding: NamedSharding) -> Any:
    """The shapes, dtypes and placement of a program's result."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        lowered.out_info,
    )


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _require_memory(train_steps: stages.Compiled, mesh: Mesh, config: Config) -> None:
    """Refuses what the compiler says will not fit, before any of it is allocated."""
    sizes = train_steps.memory_analysis()
    if sizes is None or config.num_seeds == 1:
        return
    # Not all of the output, for the donated state's memory is used again.
    output = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    needed = sizes.argument_size_in_bytes + sizes.temp_size_in_bytes + output
    if _on_cpu():
        # Virtual devices share the memory, and saving copies the state.
        needed = (needed + sizes.output_size_in_bytes) * mesh.size
        there = _free_memory()
    else:
        there = (mesh.devices.flat[0].memory_stats() or {}).get("bytes_limit", needed)
    if needed > there:
        fitting = int(config.num_seeds * there / needed)
        raise UserError(
            f"--num-seeds {config.num_seeds:,} needs {needed / 2**30:,.1f} GiB, but there are "
            f"{there / 2**30:,.1f} GiB; about {fitting:,} would fit"
        )


def _free_memory() -> int:
    """Bytes of main memory to be had, also inside a container with a limit."""
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    free = psutil.virtual_memory().available
    return free if text == "max" else min(free, int(text))
