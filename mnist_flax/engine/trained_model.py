"""Trained networks, loaded from the workdir of a run or from the package, to make predictions."""

import dataclasses
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors.numpy import load_file

from mnist_flax.core import inference, model, sharding
from mnist_flax.core.config import IMAGE_SHAPE, Config, UserError
from mnist_flax.engine import cli, multi_seed, workdir
from mnist_flax.engine.environment import pinned_settings
from mnist_flax.engine.options import RunOptions
from mnist_flax.engine.seed_stats import format_percent

PRETRAINED = Path(__file__).parents[1] / "pretrained"


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """The networks of a run, one for each of its seeds."""

    config: Config
    step: int
    params: model.Params
    """With several seeds, each leaf has a leading axis for them."""

    @property
    def seeds(self) -> list[int]:
        """The seed of each network."""
        return list(range(self.config.seed, self.config.seed + self.config.num_seeds))

    @property
    def epochs(self) -> float:
        """How many passes over the training images it was trained for."""
        return round(self.step / self.config.steps_per_epoch, 2)

    @property
    def num_parameters(self) -> int:
        """The parameters of each network."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params)) // self.config.num_seeds

    @property
    def reads_digits(self) -> bool:
        """Whether it was trained on digits, so that pictures of digits can be converted for it."""
        return self.config.dataset not in ("fashion_mnist", "kmnist")

    def select_seed(self, index: int) -> "TrainedModel":
        """One of several networks; raises a UserError if there is none with that index."""
        count = self.config.num_seeds
        if not 0 <= index < count:
            raise UserError(f"--seed-index must be from 0 to {count - 1}, but is {index}")
        if count == 1:
            return self
        config = dataclasses.replace(self.config, seed=self.config.seed + index, num_seeds=1)
        return TrainedModel(config, self.step, jax.tree.map(lambda leaf: leaf[index], self.params))

    def first_params(self) -> model.Params:
        """The parameters of the first network."""
        return self.select_seed(0).params

    def predict(self, images: np.ndarray) -> np.ndarray:
        """The most probable digit of each image, int32 [N].

        Images are [N, 28, 28] or [N, 28, 28, 1], white on black, uint8 or float from 0 to 1. Raises
        a UserError if they have another shape, type or range.
        """
        return self.probabilities(images).argmax(axis=-1).astype(np.int32)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """The probability of each digit, float64 [N, 10]; images and errors as in `predict`.

        Several networks give the mean of their probabilities.
        """
        return inference.probabilities(self.logits(validate_images(images)))

    def logits(self, images: np.ndarray) -> np.ndarray:
        """The logits of each network for uint8 images [N, 28, 28, 1]: float32 [seeds, N, 10].

        Those of a whole split have the same bits as in the run, which evaluates with the same
        program; those of few images may have other last bits.
        """
        count = len(images)
        # Padded to a power of two or one whole batch, so that few images share nine programs.
        size = max(count, min(1 << max(count - 1, 0).bit_length(), inference.BATCH))
        padded = np.concatenate([images, np.zeros((size - count, *images.shape[1:]), np.uint8)])
        logits = np.asarray(self._predict(padded))
        return logits.reshape((self.config.num_seeds, size, model.NUM_CLASSES))[:, :count]

    @functools.cached_property
    def _predict(self) -> Callable[[np.ndarray], jax.Array]:
        """The prediction with parameters on the devices, compiled once for each batch size."""
        mesh = sharding.device_mesh(self.config.num_seeds)
        replicated = sharding.replicated(mesh)
        params = jax.device_put(self.params, sharding.seed_sharding(mesh, self.config.num_seeds))
        function = functools.partial(inference.predict_logits, config=self.config)
        predict = multi_seed.map_over_seeds(function, 1, self.config, mesh)

        @functools.cache
        @pinned_settings()
        def compile_for(shape: tuple[int, ...]) -> Callable[..., Any]:
            images = jax.ShapeDtypeStruct(shape, np.uint8, sharding=replicated)
            return multi_seed.make_compiler(self.config)(predict, predict.lower(params, images))

        return lambda images: compile_for(images.shape)(params, jax.device_put(images, replicated))


def validate_images(images: np.ndarray) -> np.ndarray:
    """Images in the format of the datasets: uint8 [N, 28, 28, 1].

    Floats are rounded to the nearest of 256 levels, which is exact for `images / 255`. Raises a
    UserError if they have another shape, or are neither uint8 nor float from 0 to 1.
    """
    array = np.asarray(images)
    if array.ndim == 3:
        array = array[..., np.newaxis]
    if array.shape[1:] != IMAGE_SHAPE:
        raise UserError(
            f"images must be [N, 28, 28] or [N, 28, 28, 1], but are {list(np.shape(images))}"
        )
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise UserError(f"images must be uint8 or float, but are {array.dtype}")
    if array.size and not (array.min() >= 0 and array.max() <= 1):
        raise UserError("float images must be from 0 to 1; divide by 255, or pass them as uint8")
    return np.round(array * 255).astype(np.uint8)


def load_trained(
    folder: str | os.PathLike[str] | None,
    which: str | int = "latest",
    seed_index: int | None = None,
) -> TrainedModel:
    """The networks in a checkpoint of a workdir; arguments and errors as in `mnist_flax.load`."""
    if folder is None:
        if which != "latest" or seed_index is not None:
            raise UserError("--checkpoint and --seed-index need --workdir")
        return load_pretrained()
    folder = Path(folder).expanduser().absolute()
    config = workdir.read_config(folder)
    if config is None:
        raise UserError(f"{folder} holds no run: it has no {workdir.CONFIG}")
    from mnist_flax.engine import checkpoint  # Orbax, which the pretrained network does not need

    step, params = checkpoint.load_params(folder / workdir.CHECKPOINTS, str(which))
    expected = jax.eval_shape(lambda: model.init(jax.random.key(0), config))
    axis = (config.num_seeds,) if config.num_seeds > 1 else ()
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params)
    if shapes != jax.tree.map(lambda leaf: ((*axis, *leaf.shape), leaf.dtype), expected):
        raise UserError(f"checkpoint {step} in {folder} is damaged, or of another network")
    trained = TrainedModel(config, step, params)
    return trained if seed_index is None else trained.select_seed(seed_index)


def load_selected(options: RunOptions) -> TrainedModel:
    """The networks that the options of a command choose; says so if it is the pretrained one."""
    trained = load_trained(options.workdir, options.checkpoint, options.seed_index)
    if options.workdir is None:
        accuracy = format_percent(read_pretrained_card()["test_accuracy"])
        cli.print_status(
            f"using the pretrained network ({accuracy} of MNIST's test images); "
            "use --workdir for a run of your own"
        )
    return trained


def load_pretrained() -> TrainedModel:
    """The network in the package; `pretrained/README.md` says what it is."""
    tensors = load_file(PRETRAINED / "mnist.safetensors")
    params = traverse_util.unflatten_dict(jax.tree.map(jnp.asarray, tensors), sep=".")
    card = read_pretrained_card()
    return TrainedModel(Config(**card["config"]), card["steps"], params)


def read_pretrained_card() -> dict[str, Any]:
    """The origin, config and accuracy of the network in the package."""
    return json.loads((PRETRAINED / "mnist.json").read_text(encoding="utf-8"))
