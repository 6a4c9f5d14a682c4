"""Many seeds in one program: a function of one network, mapped over the networks of a run."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, stages
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mnist_flax.core import sharding
from mnist_flax.core.config import Config
from mnist_flax.engine.environment import compiler_options

# On accelerators this many seeds are computed side by side. On CPU it is one after the other: a
# single one keeps the cores busy and its patches in the cache.
SEEDS_AT_ONCE = 64


def make_keys(config: Config, placement: NamedSharding) -> jax.Array:
    """The key of the run; with several seeds, one key for each.

    They are what `jax.random.key` makes of a seed by default, whatever JAX's settings are here.
    """
    seeds = np.uint32(config.seed) + np.arange(config.num_seeds, dtype=np.uint32)
    data = np.stack([np.zeros_like(seeds), seeds], axis=-1)

    def make() -> jax.Array:
        keys = jax.random.wrap_key_data(jnp.asarray(data), impl="threefry2x32")
        return keys[0] if config.num_seeds == 1 else keys

    return jax.jit(make, out_shardings=placement)()


def map_over_seeds(
    function: Callable[..., Any],
    num_mapped: int,
    config: Config,
    mesh: Mesh,
    donate: tuple[int, ...] = (),
) -> stages.Wrapped:
    """A function of one network, jitted, and mapped over the seeds if there are several.

    It takes and returns pytrees of arrays. Each seed has its own of the first `num_mapped`
    arguments, which have a leading axis for the seeds; the others are shared by all seeds. The
    result is placed by `seed_sharding`, and may reuse the memory of the arguments in `donate`.
    """
    placement = sharding.seed_sharding(mesh, config.num_seeds)
    if config.num_seeds == 1:

        def single(*arguments: Any) -> Any:
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # `shard_map` does it below
                return function(*arguments)

        return jax.jit(single, donate_argnums=donate, out_shardings=placement)

    def mapped(per_seed: tuple[object, ...], shared: tuple[object, ...]) -> Any:
        at_once = min(SEEDS_AT_ONCE, config.num_seeds // mesh.shape[sharding.SEED])
        return lax.map(
            lambda of_one_seed: function(*of_one_seed, *shared),
            per_seed,
            batch_size=None if sharding.on_cpu() else at_once,
        )

    def on_each_device(*arguments: Any) -> Any:
        return jax.shard_map(
            mapped,
            mesh=mesh,
            in_specs=(P(sharding.SEED), P()),
            out_specs=P(sharding.SEED),
            axis_names={sharding.SEED},
            check_vma=False,
        )(arguments[:num_mapped], arguments[num_mapped:])

    return jax.jit(on_each_device, donate_argnums=donate, out_shardings=placement)


def make_compiler(
    config: Config,
) -> Callable[[stages.Wrapped, stages.Lowered], Callable[..., Any]]:
    """How a function that has been lowered is compiled, in any thread.

    Where jit is disabled it stays the function itself, which a debugger can follow.
    """
    if jax.config.values["jax_disable_jit"]:
        return lambda function, _: function
    options = compiler_options(config.deterministic)
    return lambda _, lowered: lowered.compile(options)
