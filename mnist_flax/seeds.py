"""Many seeds in one program: a function of one network, mapped over the networks of a run."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import lax, stages
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mnist_flax import devices
from mnist_flax.config import Config
from mnist_flax.determinism import COMPILER_OPTIONS

# On accelerators so many seeds are computed side by side. On CPU one after the other: a
# single one keeps the cores busy, and its patches the cache.
SEEDS_AT_ONCE = 64


def keys(config: Config, sharding: NamedSharding) -> jax.Array:
    """The run's key; with several seeds, each one's."""

    def make() -> jax.Array:
        if config.num_seeds == 1:
            return jax.random.key(config.seed)
        seeds = np.arange(config.seed, config.seed + config.num_seeds, dtype=np.uint32)
        return jax.vmap(jax.random.key)(seeds)

    return jax.jit(make, out_shardings=sharding)()


def over_seeds(
    function: Callable[..., Any],
    in_axes: tuple[int | None, ...],
    config: Config,
    mesh: Mesh,
    donate: tuple[int, ...] = (),
) -> stages.Wrapped:
    """The function of a single seed, jitted; with several seeds mapped over them.

    Args:
      function: takes arrays, and `config` by name. Its result is placed `by_seed`.
      in_axes: as in `jax.vmap`: 0 for what each seed has its own of.
    """
    single = functools.partial(function, config=config)
    jit = functools.partial(
        jax.jit, donate_argnums=donate, out_shardings=devices.by_seed(mesh, config.num_seeds)
    )
    if config.num_seeds == 1:

        def alone(*arguments: Any) -> Any:
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # as `shard_map` does below
                return single(*arguments)

        return jit(alone)
    at_once = min(SEEDS_AT_ONCE, config.num_seeds // mesh.shape[devices.SEED])

    def each(*arguments: Any) -> Any:
        def one(own: list[Any]) -> Any:
            owned = iter(own)
            return single(
                *(
                    next(owned) if axis == 0 else common
                    for axis, common in zip(in_axes, arguments, strict=True)
                )
            )

        own = [x for axis, x in zip(in_axes, arguments, strict=True) if axis == 0]
        return lax.map(one, own, batch_size=None if devices.on_cpu() else at_once)

    specs = tuple(P(devices.SEED) if axis == 0 else P() for axis in in_axes)
    mapped = jax.shard_map(
        each,
        mesh=mesh,
        in_specs=specs,
        out_specs=P(devices.SEED),
        axis_names={devices.SEED},
        check_vma=False,
    )
    return jit(mapped)


def compile_lowered(lowered: stages.Lowered, config: Config) -> stages.Compiled:
    """Compiles a program, on CPU at LLVM's level 1: in two thirds of the time, and as fast."""
    level = {"xla_backend_optimization_level": "1"} if devices.on_cpu() else {}
    return lowered.compile(level | (COMPILER_OPTIONS if config.deterministic else {}))
