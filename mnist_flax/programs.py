"""The compiled programs of a run: each of `train`'s functions, for one config and its data."""

import dataclasses
import functools
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
    """Puts the data on the device and compiles all programs."""
    key, zero = jax.random.key(config.seed), np.int32(0)
    like = _abstract(functools.partial(train.create_state, config=config), key)
    order = _abstract(functools.partial(train.epoch_order, config=config), key, zero)
    training = jax.device_put(dataset.train)
    splits = {"test": jax.device_put(dataset.test)}
    if config.validation_fraction:
        splits["validation"] = jax.device_put(dataset.validation)

    # Each compiles while the next is traced; the one that takes longest comes first.
    with ThreadPoolExecutor() as pool:
        steps = pool.submit(
            _compile, train.train_steps.lower(like, *training, order, key, zero, config=config)
        )
        evaluators = {
            name: pool.submit(_compile, train.evaluate.lower(like.params, *split, config=config))
            for name, split in splits.items()
        }
        create_state = pool.submit(_compile, train.create_state.lower(key, config=config))
        epoch_order = pool.submit(_compile, train.epoch_order.lower(key, zero, config=config))

    def evaluate(state: TrainState) -> dict[str, float]:
        scores: dict[str, float] = {}
        for name, split in splits.items():
            sums = evaluators[name].result()(state.params, *split)
            count = float(sums["count"])
            scores[f"{name}_loss"] = float(sums["loss"]) / count
            scores[f"{name}_accuracy"] = float(sums["correct"]) / count
        return scores

    return Programs(
        like,
        lambda: create_state.result()(key),
        lambda epoch: epoch_order.result()(key, np.int32(epoch)),
        lambda state, order, count: steps.result()(state, *training, order, key, np.int32(count)),
        evaluate,
    )


def _compile(lowered: stages.Lowered) -> stages.Compiled:
    # On CPU level 1 compiles in two thirds of the time of level 3, to programs as fast.
    on_cpu = jax.default_backend() == "cpu"
    return lowered.compile({"xla_backend_optimization_level": 1} if on_cpu else None)


def _abstract(function: Callable, *arguments):
    """The shapes, dtypes and placement of a function's result, without computing it."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(function, *arguments),
    )
