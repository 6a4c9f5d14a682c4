"""The devices of a run as one mesh: whole networks along `seed`, parts of a batch along `data`.

A function that is traced under a mesh is divided along `data`; without one, or
on a single device, it is the same function undivided.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

SEED, DATA = "seed", "data"


def device_mesh(num_seeds: int) -> Mesh:
    """All devices; first they share the seeds, which need not talk, and then each batch."""
    # Not by `jax.make_mesh`, which refuses several GPU nodes without NVLink between them, and
    # shapes that do not suit a TPU's torus. One small message a step needs no such care.
    devices = np.array(jax.devices())
    seeds = math.gcd(num_seeds, len(devices))
    return Mesh(devices.reshape((seeds, -1)), (SEED, DATA), axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
    """On every device: what all of them use."""
    return NamedSharding(mesh, P())


def by_seed(mesh: Mesh, num_seeds: int) -> NamedSharding:
    """Each seed's own on its devices. With a single seed there is no axis to divide."""
    return NamedSharding(mesh, P(SEED) if num_seeds > 1 else P())


def data_parts() -> int:
    """Among how many devices the mesh that is being traced for divides a batch."""
    return dict(jax.sharding.get_abstract_mesh().shape).get(DATA, 1)


def divide(x: jax.Array, axis: int) -> jax.Array:
    """Leaves each device its part of an axis, as far as that can be divided equally."""
    if data_parts() == 1 or x.shape[axis] % data_parts():
        return x
    return lax.with_sharding_constraint(x, P(*[None] * axis, DATA))


def summed_over_parts(function: Callable[..., Any], shared: Any, *divided: jax.Array) -> Any:
    """The sum, over all devices' parts of `divided`, of what `function` makes of them.

    The devices talk once, about the sum. Left to itself the compiler would have them talk in
    each turn of a loop inside `function`.

    Args:
      shared: a pytree that each device has, the first argument.
      divided: arrays whose first axis `data_parts` divides.
    """
    if data_parts() == 1:
        return function(shared, *divided)
    return jax.shard_map(
        lambda *arguments: lax.psum(function(*arguments), DATA),
        in_specs=(P(), *[P(DATA)] * len(divided)),
        out_specs=P(),
        axis_names={DATA},
        check_vma=False,
    )(shared, *divided)


def on_cpu() -> bool:
    """Whether the programs run on CPU."""
    return jax.default_backend() == "cpu"
