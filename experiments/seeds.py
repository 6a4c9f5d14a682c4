"""Many seeds of one config on arrays of one's own, without a workdir."""

import jax

from mnist_flax.config import Config
from mnist_flax.data import Dataset
from mnist_flax.programs import compile_programs


def train_seeds(dataset: Dataset, config: Config) -> dict[str, list[float]]:
    """Trains `config.num_seeds` networks in one program; each one's final scores."""
    programs = compile_programs(dataset, config)
    state = programs.create_state()
    for epoch in range(config.epochs):
        order = programs.epoch_order(epoch)
        state = jax.block_until_ready(programs.train_steps(state, order, config.steps_per_epoch))
        print(f"epoch {epoch + 1} of {config.epochs}", flush=True)
    return {name: values.tolist() for name, values in programs.evaluate(state).items()}
