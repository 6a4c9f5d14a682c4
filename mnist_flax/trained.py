"""A trained run's networks, ready to be asked: from its workdir alone, without training."""

import dataclasses
import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mnist_flax import checkpoint, model, workdir
from mnist_flax import config as config_lib
from mnist_flax.augment import to_unit, window
from mnist_flax.config import Config, UserError

BATCH = 200


@dataclasses.dataclass(frozen=True)
class Trained:
    """The networks of a run: one for each of its seeds."""

    config: Config
    step: int
    params: model.Params  # each leaf with a first axis for the seeds

    def logits(self, images: np.ndarray) -> np.ndarray:
        """What each network says of uint8 images [N, 28, 28, 1]: float32 [seeds, N, 10]."""
        batches = math.ceil(len(images) / BATCH)
        filled = np.pad(images, ((0, batches * BATCH - len(images)), (0, 0), (0, 0), (0, 0)))
        batched = filled.reshape((batches, BATCH, *images.shape[1:]))
        logits = np.asarray(_logits(self.params, batched, self.config))
        return logits.reshape((len(logits), -1, model.NUM_CLASSES))[:, : len(images)]


def load_trained(folder: Path) -> Trained:
    """The networks in a workdir's latest checkpoint.

    Raises:
      UserError: there is no run, no checkpoint, or one that cannot be read.
    """
    stored = workdir.read_json(folder / workdir.CONFIG)
    if stored is None:
        raise UserError(f"{folder} holds no run: it has no {workdir.CONFIG}")
    try:
        config = config_lib.from_dict(stored)
    except UserError as error:
        raise UserError(f"{folder / workdir.CONFIG} is {error}") from error
    step, params = checkpoint.load_params(folder / workdir.CHECKPOINTS)
    if config.num_seeds == 1:
        params = jax.tree.map(lambda leaf: leaf[None], params)
    expected = jax.eval_shape(
        lambda: model.init(jax.random.key(0), config.input_size, config.channels)
    )
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params)
    if shapes != jax.tree.map(lambda x: ((config.num_seeds, *x.shape), x.dtype), expected):
        raise UserError(f"checkpoint {step} in {folder} is damaged, or of another network")
    return Trained(config, step, params)


@functools.partial(jax.jit, static_argnames="config")
def _logits(params: model.Params, batches: jax.Array, config: Config) -> jax.Array:
    def of_batch(params: model.Params, images: jax.Array) -> jax.Array:
        return model.apply(params, to_unit(window(images, config)), config.precision)

    def of_seed(params: model.Params) -> jax.Array:
        return lax.map(functools.partial(of_batch, params), batches)

    return lax.map(of_seed, params)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """The mean over the seeds of what logits [seeds, N, 10] make probable: [N, 10]."""
    return np.asarray(jax.nn.softmax(jnp.asarray(logits), axis=-1).mean(axis=0))
