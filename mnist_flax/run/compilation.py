"""The compiled programs of a run: the functions of `core.train` for one config and its data.

With several seeds, one program computes all of them.
"""

import dataclasses
import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil
from jax import Array, stages

from mnist_flax.core import batches, inference, model, sharding, train
from mnist_flax.core.config import Config, UserError
from mnist_flax.core.train import TrainState
from mnist_flax.data.dataset import Dataset
from mnist_flax.engine import distributed, multi_seed
from mnist_flax.engine.environment import pinned_settings


@dataclasses.dataclass(frozen=True)
class CompiledTraining:
    """What the training loop calls: programs with the data and the run's key on the devices.

    With several seeds every leaf of a state has a leading axis for them.
    """

    config: Config
    abstract_state: TrainState
    """Shapes, dtypes and placement of the state."""
    train_program: Callable[..., Any]
    programs: dict[str, Future[Callable[..., Any]]]
    """`create_state`, `epoch_order`, and a prediction for each held-out split."""
    key: Array
    train_data: tuple[Array, Array]
    held_out: dict[str, tuple[Array, np.ndarray]]
    """The images and labels of the splits `test` and, if there is one, `validation`."""

    def create_state(self) -> TrainState:
        """The state before the first step."""
        return self.programs["create_state"].result()(self.key)

    def epoch_order(self, epoch: int) -> Array:
        """The order of the images in an epoch, counted from 0."""
        return self.programs["epoch_order"].result()(self.key, np.int32(epoch))

    def train_steps(self, state: TrainState, order: Array, count: int) -> TrainState:
        """Takes `count` steps; donates the state."""
        return self.train_program(state, order, self.key, *self.train_data, np.int32(count))

    def predict(self, state: TrainState) -> dict[str, np.ndarray]:
        """The logits of each held-out split, float32 [seeds, N, 10]."""
        logits = {}
        for split, (images, labels) in self.held_out.items():
            array = self.programs[split].result()(state.params, images)
            shape = (self.config.num_seeds, len(labels), model.NUM_CLASSES)
            logits[split] = distributed.gather_to_host(array).reshape(shape)
        return logits

    def evaluate(self, state: TrainState) -> dict[str, np.ndarray]:
        """The loss and accuracy of each held-out split, float64 [seeds]: `test_loss`, ..."""
        return {
            f"{split}_{name}": values
            for split, logits in self.predict(state).items()
            for name, values in inference.loss_and_accuracy(logits, self.held_out[split][1]).items()
        }


@pinned_settings()
def compile_training(dataset: Dataset, config: Config) -> CompiledTraining:
    """Puts the data on the devices and compiles what training needs.

    Raises a UserError if the seeds do not fit into memory.
    """
    mesh = sharding.device_mesh(config.num_seeds)
    put = functools.partial(distributed.put_global, sharding=sharding.replicated(mesh))
    key = multi_seed.make_keys(config, sharding.seed_sharding(mesh, config.num_seeds))
    images, labels = map(put, dataset.train)
    held_out = {"test": (put(dataset.test[0]), dataset.test[1])}
    if config.validation_fraction:
        held_out["validation"] = (put(dataset.validation[0]), dataset.validation[1])

    map_over_seeds = functools.partial(multi_seed.map_over_seeds, config=config, mesh=mesh)
    create = map_over_seeds(functools.partial(train.create_state, config=config), 1)
    order = map_over_seeds(functools.partial(batches.epoch_order, config=config), 1)
    steps = map_over_seeds(functools.partial(train.train_steps, config=config), 3, donate=(0,))
    predict = map_over_seeds(functools.partial(inference.predict_logits, config=config), 1)

    # One program at a time, because the compiler uses all cores; others are traced meanwhile.
    compiler = ThreadPoolExecutor(max_workers=1)
    compile_lowered = multi_seed.make_compiler(config)
    lowered_state = create.lower(key)
    programs = {"create_state": compiler.submit(compile_lowered, create, lowered_state)}
    lowered_order = order.lower(key, np.int32(0))
    programs["epoch_order"] = compiler.submit(compile_lowered, order, lowered_order)
    abstract_state, abstract_order = lowered_state.out_info, lowered_order.out_info
    lowered_steps = steps.lower(abstract_state, abstract_order, key, images, labels, np.int32(0))
    compilation = compiler.submit(compile_lowered, steps, lowered_steps)

    @pinned_settings()
    def compile_prediction(images: Array) -> Callable[..., Any]:
        return compile_lowered(predict, predict.lower(abstract_state.params, images))

    # Training does not wait for these, which are traced and compiled beside its first steps.
    for split, (x, _) in held_out.items():
        programs[split] = compiler.submit(compile_prediction, x)
    train_program, data = compilation.result(), (images, labels)
    if isinstance(train_program, stages.Compiled):
        _require_memory(train_program, config)
    return CompiledTraining(config, abstract_state, train_program, programs, key, data, held_out)


def _require_memory(train_steps: stages.Compiled, config: Config) -> None:
    """Refuses what does not fit according to the compiler, before any of it is allocated."""
    sizes = train_steps.memory_analysis()
    if sizes is None or config.num_seeds == 1:
        return
    # The donated state's memory is reused for the output.
    output = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    needed = sizes.argument_size_in_bytes + sizes.temp_size_in_bytes + output
    if sharding.on_cpu():
        # Virtual devices share the memory, and saving copies the state.
        needed = (needed + sizes.output_size_in_bytes) * jax.local_device_count()
        available = _free_memory()
    else:
        available = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", needed)
    # The smallest of all processes, in MiB, which an int32 can hold.
    available = -distributed.allreduce_max(-int(available) // 2**20) * 2**20
    if needed > available:
        fitting = int(config.num_seeds * available / needed)
        raise UserError(
            f"--num-seeds {config.num_seeds:,} needs {needed / 2**30:,.1f} GiB, but only "
            f"{available / 2**30:,.1f} GiB are available; about {fitting:,} would fit"
        )


def _free_memory() -> int:
    """Available main memory in bytes; in a container, what its limit leaves to this process."""
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    free = psutil.virtual_memory().available
    used = psutil.Process().memory_info().rss
    return free if text == "max" else min(free, int(text) - used)
