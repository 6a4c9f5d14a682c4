"""The devices of a run as one mesh: networks along `seed`, parts of each batch along `data`.

A function that is traced under a mesh is divided along `data`; without a mesh, or on a single
device, it is the same function undivided.
"""

import math
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

SEED, DATA = "seed", "data"

# On CPU a gradient is summed over micro-batches of at most this many images. Their patches stay
# in the cache, which is a tenth faster on two cores, and memory does not grow with the batch.
CPU_MICRO_BATCH = 64

Result = TypeVar("Result")
Params = TypeVar("Params")


def device_mesh(num_seeds: int) -> Mesh:
    """All devices, first divided among the seeds, which need no communication, then the batch."""
    # `jax.make_mesh` refuses several GPU nodes without NVLink between them, and shapes that do
    # not suit a TPU's torus. One small message per step needs no such care.
    devices = np.array(jax.devices())
    seeds = math.gcd(num_seeds, len(devices))
    return Mesh(devices.reshape((seeds, -1)), (SEED, DATA), axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, P())


def seed_sharding(mesh: Mesh, num_seeds: int) -> NamedSharding:
    """Each seed's part on its devices. With a single seed there is no axis to divide."""
    return NamedSharding(mesh, P(SEED) if num_seeds > 1 else P())


def data_axis_size() -> int:
    """The number of devices that share a batch in the mesh that is being traced for."""
    return dict(jax.sharding.get_abstract_mesh().shape).get(DATA, 1)


def shard_axis(x: Array, axis: int) -> Array:
    """Divides an axis among the devices along `data`, if it can be divided equally."""
    if data_axis_size() == 1 or x.shape[axis] % data_axis_size():
        return x
    return lax.with_sharding_constraint(x, P(*[None] * axis, DATA))


def psum_over_data(function: Callable[..., Result], shared: object, *divided: Array) -> Result:
    """Sums `function(shared, *parts)` over the devices, each with its part of `divided`.

    The devices communicate once, about the sum. By itself the compiler would make them
    communicate in each iteration of a loop inside `function`. The result and `shared`, which every
    device has, are pytrees; the first axis of each of `divided` is a multiple of `data_axis_size`.
    """
    if data_axis_size() == 1:
        return function(shared, *divided)
    return jax.shard_map(
        lambda *arguments: lax.psum(function(*arguments), DATA),
        in_specs=(P(), *[P(DATA)] * len(divided)),
        out_specs=P(),
        axis_names={DATA},
        check_vma=False,
    )(shared, *divided)


def accumulate_gradients(
    value_and_grad: Callable[..., tuple[Array, Params]], params: Params, *batch: Array
) -> tuple[Array, Params]:
    """The value and gradient of a sum over a batch, on all devices and in micro-batches.

    `value_and_grad` is that of a sum over the images, the first axis of each array in `batch`;
    images of zeros with zero weight must add nothing. Every device has the parameters.
    """
    devices = data_axis_size()
    per_device = math.ceil(len(batch[0]) / devices)
    count = math.ceil(per_device / CPU_MICRO_BATCH) if on_cpu() else 1
    size = math.ceil(per_device / count)

    def split(x: Array) -> Array:
        # Each device's part is padded by itself, so that no image moves to another device.
        parts = _pad(x, devices * per_device, 0).reshape((devices, per_device, *x.shape[1:]))
        return _pad(parts, count * size, 1).reshape((devices * count, size, *x.shape[1:]))

    def sum_on_device(params: Params, *micro_batches: Array) -> tuple[Array, Params]:
        if count == 1:
            return value_and_grad(params, *(x[0] for x in micro_batches))
        zeros = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, params))
        return lax.scan(
            lambda total, x: (jax.tree.map(jnp.add, total, value_and_grad(params, *x)), None),
            zeros,
            micro_batches,
        )[0]

    return psum_over_data(sum_on_device, params, *map(split, batch))


def _pad(x: Array, size: int, axis: int) -> Array:
    """Appends zeros to an axis up to a size."""
    return jnp.pad(x, [(0, size - x.shape[i] if i == axis else 0) for i in range(x.ndim)])


def on_cpu() -> bool:
    """Whether programs run on CPU."""
    return jax.default_backend() == "cpu"
