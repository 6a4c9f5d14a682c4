"""Which ideas that the package does not have would make its networks more accurate?

python -m experiments.ideas

Trains variants of a preset on 50,000 training images and evaluates them on the other 10,000. Every
variant has the seeds of the unchanged recipe, so that the differences are paired. Each is built of
the pure functions of `mnist_flax.core`.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from experiments.common.provenance import make_parser, provenance, store
from mnist_flax.core import batches, inference, model, train
from mnist_flax.core.augment import augment, center_crop, to_float
from mnist_flax.core.config import PRESETS, Config
from mnist_flax.core.conv_pool import default_conv_pool
from mnist_flax.data.dataset import Dataset, load_dataset
from mnist_flax.engine.environment import describe_environment, pinned_settings
from mnist_flax.engine.seed_stats import SeedStatistics, seed_statistics

Params = model.Params
TEMPERATURE = 4.0  # of the teacher's and the student's logits


@dataclasses.dataclass(frozen=True)
class Idea:
    """A change of a recipe."""

    changes: dict[str, Any] = dataclasses.field(default_factory=dict)  # of the config
    loss_sum: Callable[..., Array] = train.weighted_loss_sum
    prepare: Callable[[Params, Array], Params] = lambda params, _: params
    """The initial parameters, from those of the recipe and uint8 images [N, 28, 28, 1]."""
    finish: Callable[[Params, Array], Params] = lambda params, _: params
    """The network's parameters, from the trained ones and cropped images from 0 to 1."""
    teacher: bool = False
    """Whether the loss gets a deeper network's parameters as its first argument."""


def normalized_logits(params: Params, images: Array) -> tuple[Array, Params]:
    """The logits with batch normalization before each ReLU, and parameters that hold it.

    The network with those parameters gives these logits for these images without normalization.
    """
    x, folded, last = images, {}, list(params)[-1]
    for name, layer in params.items():
        if name == "Dense_0":
            x = x.reshape((len(x), -1))
        convolve = default_conv_pool() if name.startswith("Conv") else jnp.matmul
        y, axes = convolve(x, layer["kernel"]), tuple(range(x.ndim - 1))
        if name == last:
            return y + layer["bias"][None], folded | {name: layer}
        mean, scale = y.mean(axes), 1 / jnp.sqrt(y.var(axes) + jnp.float32(1e-3))
        bias = layer["bias"] - mean * scale
        folded[name] = {"kernel": layer["kernel"] * scale, "bias": bias}
        x = jax.nn.relu(y * scale.reshape((1,) * len(axes) + (-1,)) + bias.reshape((1,) * len(axes) + (-1,)))
    raise AssertionError
