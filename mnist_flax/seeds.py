"""Many seeds in one program: a function of one network, mapped over the networks of a run."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import lax, stages
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mnist_flax.config import Config
from mnist_flax.determinism import COMPILER_OPTIONS

# On accelerators so many seeds are computed side by side. On CPU one after the other: a
# single one keeps the cores busy, and its patches the cache.
SEEDS_AT_ONCE = 64


def seed_mesh(num_seeds: int) -> Mesh:
    """As many of the devices as can share `num_seeds` equally; for one seed, the first."""
    devices = jax.devices()
    count = max(n for n in range(1, len(devices) + 1) if num_seeds % n == 0)
    return jax.make_mesh((count,), ("seed",), (AxisType.Auto,), devices=devices[:count])


def shared(mesh: Mesh) -> NamedSharding:
    """On every device: what all seeds use."""
    return NamedSharding(mesh, P())


def by_seed(config: Config, mesh: Mesh) -> NamedSharding:
    """Each seed's own on its device. With a single seed there is no axis to divide."""
    return NamedSharding(mesh, P("seed") if config.num_seeds > 1 else P())


def keys(config: Config) -> jax.Array:
    """The run's key; with several seeds, each one's."""
    if config.num_seeds == 1:
        return jax.random.key(config.seed)
    seeds = np.arange(config.seed, config.seed + config.num_seeds, dtype=np.uint32)
    return jax.vmap(jax.random.key)(seeds)


def over_seeds(
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
                    next(owned) if axis == 0 else common
                    for axis, common in zip(in_axes, arguments, strict=True)
                )
            )

        own = [x for axis, x in zip(in_axes, arguments, strict=True) if axis == 0]
        return lax.map(one, own, batch_size=None if on_cpu() else at_once)

    specs = tuple(P("seed") if axis == 0 else P() for axis in in_axes)
    mapped = jax.shard_map(each, mesh=mesh, in_specs=specs, out_specs=P("seed"), check_vma=False)
    return jax.jit(mapped, donate_argnums=donate)


def compile_lowered(lowered: stages.Lowered, config: Config) -> stages.Compiled:
    """Compiles a program, on CPU at LLVM's level 1: in two thirds of the time, and as fast."""
    level = {"xla_backend_optimization_level": "1"} if on_cpu() else {}
    return lowered.compile(level | (COMPILER_OPTIONS if config.deterministic else {}))


def on_cpu() -> bool:
    """Whether the programs run on CPU."""
    return jax.default_backend() == "cpu"
