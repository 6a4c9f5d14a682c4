"""A trained run's networks, ready to be asked: from its workdir alone, without training."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax import stages

from mnist_flax import checkpoint, devices, inference, model, seeds, workdir
from mnist_flax import config as config_lib
from mnist_flax.config import IMAGE_SHAPE, Config, UserError


@dataclasses.dataclass(frozen=True)
class Trained:
    """The networks of a run: one for each of its seeds."""

    config: Config
    step: int
    params: model.Params  # with several seeds, each leaf has a first axis for them

    @property
    def seeds(self) -> list[int]:
        """The seed of each network."""
        return list(range(self.config.seed, self.config.seed + self.config.num_seeds))

    @property
    def epochs(self) -> float:
        """How often it has seen the training images."""
        return round(self.step / self.config.steps_per_epoch, 2)

    def only(self, index: int) -> "Trained":
        """One of several networks.

        Raises:
          UserError: there is no such one.
        """
        count = self.config.num_seeds
        if not 0 <= index < count:
            raise UserError(f"--seed-index must be from 0 to {count - 1}, but is {index}")
        if count == 1:
            return self
        config = dataclasses.replace(self.config, seed=self.config.seed + index, num_seeds=1)
        return Trained(config, self.step, jax.tree.map(lambda leaf: leaf[index], self.params))

    def first_params(self) -> model.Params:
        """The parameters of the first network alone."""
        return self.only(0).params

    def predict(self, images: np.ndarray) -> np.ndarray:
        """The digit in each image, int32 [N]; several networks answer together.

        Args:
          images: [N, 28, 28] or [N, 28, 28, 1], white on black, uint8 or float from 0 to 1.

        Raises:
          UserError: the images are something else.
        """
        return self.probabilities(images).argmax(axis=-1).astype(np.int32)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """How probable each digit is, float64 [N, 10]; of several networks the mean.

        Args:
          images: as in `predict`.

        Raises:
          UserError: the images are something else.
        """
        return inference.probabilities(self.logits(as_images(images)))

    def logits(self, images: np.ndarray) -> np.ndarray:
        """What each network says of uint8 images [N, 28, 28, 1]: float32 [seeds, N, 10].

        By the program that a run evaluates by, and so to the same bits.
        """
        count = len(images)
        # Filled up, so that any few images use one of nine programs.
        full = 1 << max(count - 1, 0).bit_length() if count < inference.BATCH else count
        filled = np.concatenate([images, np.zeros((full - count, *images.shape[1:]), np.uint8)])
        logits = np.asarray(self._predict(filled))
        return logits.reshape((self.config.num_seeds, full, model.NUM_CLASSES))[:, :count]

    @functools.cached_property
    def _predict(self) -> Callable[[np.ndarray], jax.Array]:
        """With the parameters on the device, and compiled once for each number of images."""
        mesh = devices.device_mesh(self.config.num_seeds)
        shared = devices.replicated(mesh)
        params = jax.device_put(self.params, devices.by_seed(mesh, self.config.num_seeds))
        predict = seeds.over_seeds(inference.predict_logits, (0, None), self.config, mesh)

        @functools.cache
        def compiled(shape: tuple[int, ...]) -> stages.Compiled:
            images = jax.ShapeDtypeStruct(shape, np.uint8, sharding=shared)
            return seeds.compile_lowered(predict.lower(params, images), self.config)

        return lambda images: compiled(images.shape)(params, jax.device_put(images, shared))


def as_images(images: np.ndarray) -> np.ndarray:
    """Images as the data sets have them: uint8 [N, 28, 28, 1].

    Floats are rounded to the nearest of 256 levels, which those of `images / 255` are already.

    Raises:
      UserError: neither uint8 nor float from 0 to 1, or of another shape.
    """
    given = np.asarray(images)
    if given.ndim == 3:
        given = given[..., np.newaxis]
    if given.shape[1:] != IMAGE_SHAPE:
        raise UserError(
            f"images must be [N, 28, 28] or [N, 28, 28, 1], but are {list(np.shape(images))}"
        )
    if given.dtype == np.uint8:
        return given
    if not np.issubdtype(given.dtype, np.floating):
        raise UserError(f"images must be uint8 or float, but are {given.dtype}")
    if given.size and not (given.min() >= 0 and given.max() <= 1):
        raise UserError("float images must be from 0 to 1; divide by 255, or give them as uint8")
    return np.round(given * 255).astype(np.uint8)


def load_trained(folder: Path, which: str = "latest") -> Trained:
    """The networks in a workdir's checkpoint.

    Args:
      folder: the workdir.
      which: as in `checkpoint.load_params`.

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
    step, params = checkpoint.load_params(folder / workdir.CHECKPOINTS, which)
    expected = jax.eval_shape(
        lambda: model.init(jax.random.key(0), config.input_size, config.channels)
    )
    axis = (config.num_seeds,) if config.num_seeds > 1 else ()
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params)
    if shapes != jax.tree.map(lambda leaf: ((*axis, *leaf.shape), leaf.dtype), expected):
        raise UserError(f"checkpoint {step} in {folder} is damaged, or of another network")
    return Trained(config, step, params)
