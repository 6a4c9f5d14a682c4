"""The compiled programs of a run: each of `train`'s functions, for one config and its data."""

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from jax import stages

from mnist_flax import train
from mnist_flax.config import Config
from mnist_flax.data import Dataset
from mnist_flax.train import TrainState


@dataclasses.dataclass(frozen=True)
class Programs:
    """What the training loop calls. The data and the run's key are bound already."""

    like: TrainState  # shapes, dtypes and placement of the state
    create_state: Callable[[], TrainState]
    epoch_order: Callable[[int], jax.Array]
    train_steps: Callable[[TrainState, jax.Array, int], TrainState]  # donates the state
    evaluate: Callable[[TrainState], dict[str, float]]


def compile_programs(dataset: Dataset, config: Config) -> Programs:
    """Puts the data on the device and compiles what training needs."""
    key, zero = jax.random.key(config.seed), np.int32(0)
    training = jax.device_put(dataset.train)
    splits = {"test": jax.device_put(dataset.test)}
    if config.validation_fraction:
        splits["validation"] = jax.device_put(dataset.validation)

    # One at a time, for the compiler uses all cores; the next is traced meanwhile. Training
    # does not wait for the evaluation, which compiles beside the first steps.
    pool = ThreadPoolExecutor(max_workers=1)
    lowered_state = train.create_state.lower(key, config=config)
    create_state = pool.submit(_compile, lowered_state)
    lowered_order = train.epoch_order.lower(key, zero, config=config)
    epoch_order = pool.submit(_compile, lowered_order)
    like, order = _abstract(lowered_state), _abstract(lowered_order)
    lowered_steps = train.train_steps.lower(like, *training, order, key, zero, config=config)
    train_steps = pool.submit(_compile, lowered_steps)
    evaluators = {
        name: pool.submit(
            lambda split: _compile(train.evaluate.lower(like.params, *split, config=config)), split
        )
        for name, split in splits.items()
    }
    pool.shutdown(wait=False)

    def evaluate(state: TrainState) -> dict[str, float]:
        scores: dict[str, float] = {}
        for name, split in splits.items():
            sums = evaluators[name].result()(state.params, *split)
            count = float(sums["count"])
            scores[f"{name}_loss"] = float(sums["loss"]) / count
            scores[f"{name}_accuracy"] = float(sums["correct"]) / count
        return scores

    create_state, epoch_order, train_steps = (
        future.result() for future in (create_state, epoch_order, train_steps)
    )
    return Programs(
        like,
        lambda: create_state(key),
        lambda epoch: epoch_order(key, np.int32(epoch)),
        lambda state, order, count: train_steps(state, *training, order, key, np.int32(count)),
        evaluate,
    )


def _compile(lowered: stages.Lowered) -> stages.Compiled:
    # On CPU level 1 compiles in two thirds of the time of level 3, to programs as fast.
    on_cpu = jax.default_backend() == "cpu"
    return lowered.compile({"xla_backend_optimization_level": "1"} if on_cpu else None)


def _abstract(lowered: stages.Lowered):
    """The shapes, dtypes and placement of a program's result."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        lowered.out_info,
    )
