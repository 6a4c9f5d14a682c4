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
from jax import stages
from jax.sharding import NamedSharding

from mnist_flax import devices, inference, processes, seeds, train
from mnist_flax.config import Config, UserError
from mnist_flax.data import Dataset
from mnist_flax.train import TrainState


@dataclasses.dataclass(frozen=True)
class Programs:
    """What the training loop calls. The data and the run's key are bound already.

    With several seeds every leaf of the state has a first axis for them.
    """

    like: TrainState  # shapes, dtypes and placement of the state
    create_state: Callable[[], TrainState]
    epoch_order: Callable[[int], jax.Array]
    train_steps: Callable[[TrainState, jax.Array, int], TrainState]  # donates the state
    train_program: stages.Compiled  # that `train_steps` calls, to be looked into
    predict: Callable[[TrainState], dict[str, np.ndarray]]  # of each split [num_seeds, N, 10]
    evaluate: Callable[[TrainState], dict[str, np.ndarray]]  # of each score float64 [num_seeds]


def compile_programs(dataset: Dataset, config: Config) -> Programs:
    """Puts the data on the devices and compiles what training needs.

    Raises:
      UserError: so many seeds do not fit into memory.
    """
    mesh = devices.device_mesh(config.num_seeds)
    placed = devices.by_seed(mesh, config.num_seeds)
    everywhere = functools.partial(processes.place, sharding=devices.replicated(mesh))
    key, zero = seeds.keys(config, placed), np.int32(0)
    training = tuple(map(everywhere, dataset.train))
    splits = {"test": dataset.test}
    if config.validation_fraction:
        splits["validation"] = dataset.validation
    images = {name: everywhere(split[0]) for name, split in splits.items()}
    over_seeds = functools.partial(seeds.over_seeds, config=config, mesh=mesh)
    compiled = functools.partial(seeds.compile_lowered, config=config)

    # One at a time, for the compiler uses all cores; the next is traced meanwhile. Training
    # does not wait for the evaluation, which compiles beside the first steps.
    pool = ThreadPoolExecutor(max_workers=1)
    lowered_state = over_seeds(train.create_state, (0,)).lower(key)
    create_state = pool.submit(compiled, lowered_state)
    lowered_order = over_seeds(train.epoch_order, (0, None)).lower(key, zero)
    epoch_order = pool.submit(compiled, lowered_order)
    like, order = (_abstract(lowered, placed) for lowered in (lowered_state, lowered_order))
    steps = over_seeds(train.train_steps, (0, None, None, 0, 0, None), donate=(0,))
    train_steps = pool.submit(compiled, steps.lower(like, *training, order, key, zero))
    prediction = over_seeds(inference.predict_logits, (0, None))
    predictors = {
        name: pool.submit(lambda x: compiled(prediction.lower(like.params, x)), x)
        for name, x in images.items()
    }
    pool.shutdown(wait=False)

    def predict(state: TrainState) -> dict[str, np.ndarray]:
        found = {
            name: processes.to_host(predictor.result()(state.params, images[name]))
            for name, predictor in predictors.items()
        }
        return {
            name: logits.reshape((config.num_seeds, -1, logits.shape[-1]))
            for name, logits in found.items()
        }

    def evaluate(state: TrainState) -> dict[str, np.ndarray]:
        return {
            f"{name}_{score}": values
            for name, logits in predict(state).items()
            for score, values in inference.scores(logits, splits[name][1]).items()
        }

    create_state, epoch_order, train_steps = (
        future.result() for future in (create_state, epoch_order, train_steps)
    )
    _require_memory(train_steps, config)
    return Programs(
        like,
        lambda: create_state(key),
        lambda epoch: epoch_order(key, np.int32(epoch)),
        lambda state, order, count: train_steps(state, *training, order, key, np.int32(count)),
        train_steps,
        predict,
        evaluate,
    )


def _abstract(lowered: stages.Lowered, sharding: NamedSharding) -> Any:
    """The shapes, dtypes and placement of a program's result."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        lowered.out_info,
    )


def _require_memory(train_steps: stages.Compiled, config: Config) -> None:
    """Refuses what the compiler says will not fit, before any of it is allocated."""
    sizes = train_steps.memory_analysis()
    if sizes is None or config.num_seeds == 1:
        return
    # Not all of the output, for the donated state's memory is used again.
    output = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    needed = sizes.argument_size_in_bytes + sizes.temp_size_in_bytes + output
    if devices.on_cpu():
        # Virtual devices share the memory, and saving copies the state.
        needed = (needed + sizes.output_size_in_bytes) * jax.local_device_count()
        there = _free_memory()
    else:
        there = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", needed)
    there = -processes.largest_of(-int(there) // 2**20) * 2**20  # of the process that has least
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
