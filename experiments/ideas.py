"""Which ideas that the presets do not use would make them more accurate?

python -m experiments.ideas --preset best --epochs 10

Trains variants of a preset on 50,000 training images and evaluates them on the other 10,000; the
test images are not used. All variants have the same seeds, so the differences from the unchanged
preset are paired. The variants are built of the pure functions in `mnist_flax.core`.
"""

import argparse
import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from experiments.common.provenance import make_parser, provenance, store
from experiments.common.runs import short_digest
from mnist_flax.core import batches, inference, model, train
from mnist_flax.core.augment import augment, center_crop, to_float
from mnist_flax.core.config import PRESETS, Config
from mnist_flax.core.conv_pool import default_conv_pool
from mnist_flax.data.dataset import Dataset, load_dataset
from mnist_flax.engine.environment import (
    compiler_options,
    current_environment,
    pinned_settings,
)
from mnist_flax.engine.seed_stats import seed_statistics

HELD_OUT = 1 / 6
TEMPERATURE = 4.0  # by which the teacher's and the student's logits are divided
SAMPLE = 4096  # training images from which statistics are computed

Params = model.Params
Loss = Callable[..., Array]  # as `train.weighted_loss_sum`


@dataclasses.dataclass(frozen=True)
class Idea:
    """A change of a recipe."""

    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The config's fields that change."""
    make_loss: Callable[[Params | None], Loss] = lambda _: train.weighted_loss_sum
    """The loss, given the parameters of the teacher."""
    prepare: Callable[[Params, Array], Params] = lambda params, _: params
    """Changes the initial parameters, given float images [N, size, size, 1]."""
    finish: Callable[[Params, Array], Params] = lambda params, _: params
    """Changes the trained parameters, given float images [N, size, size, 1]."""
    teacher: dict[str, Any] | None = None
    """The config's fields that make a teacher, which is trained first."""


@jax.default_matmul_precision("float32")
def normalized_logits(params: Params, images: Array, weights: Array) -> tuple[Array, Params]:
    """The logits with batch normalization before each ReLU, and parameters that contain it.

    A network with those parameters has the same logits for these images, without normalization.
    """

    def average(values: Array) -> Array:
        by_image = values.reshape((len(values), -1, values.shape[-1])).mean(axis=1)
        return jnp.average(by_image, axis=0, weights=weights)

    x, folded = images, {}
    *layers, last = model.LAYERS
    for name in layers:
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        if name == "Dense_0":
            x = x.mean(axis=(1, 2))
        y = x @ kernel if name.startswith("Dense") else default_conv_pool()(x, kernel)
        mean = average(y)
        scale = lax.rsqrt(average((y - mean) ** 2) + 1e-3)
        layer = {"kernel": kernel * scale, "bias": bias - mean * scale}
        x, folded[name] = jax.nn.relu(y * scale + layer["bias"]), layer
    return x @ params[last]["kernel"] + params[last]["bias"], params | folded


def normalized_loss(
    params: Params, images: Array, labels: Array, weights: Array, **_: Any
) -> Array:
    """The loss with batch normalization."""
    logits, _ = normalized_logits(params, to_float(images), weights)
    return jnp.sum(weights * optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def smoothed_loss(params: Params, images: Array, labels: Array, weights: Array, **_: Any) -> Array:
    """The loss with 5 % of each label's probability divided among all digits."""
    targets = optax.smooth_labels(jax.nn.one_hot(labels, model.NUM_CLASSES), 0.05)
    return jnp.sum(
        weights * optax.softmax_cross_entropy(model.apply(params, to_float(images)), targets)
    )


def make_distillation_loss(teacher: Params | None) -> Loss:
    """The cross-entropy to the teacher's probabilities for the same augmented images.

    Hinton, Vinyals and Dean, https://arxiv.org/abs/1503.02531, without the labels.
    """
    assert teacher is not None

    def loss(params: Params, images: Array, labels: Array, weights: Array, **_: Any) -> Array:
        inputs = to_float(images)
        targets = jax.nn.softmax(model.apply(teacher, inputs) / TEMPERATURE)
        logits = model.apply(params, inputs) / TEMPERATURE
        return TEMPERATURE**2 * jnp.sum(weights * optax.softmax_cross_entropy(logits, targets))

    return loss


@jax.default_matmul_precision("float32")
def whiten(params: Params, images: Array) -> Params:
    """Filters of the first layer whose responses are uncorrelated, and their negatives.

    As in https://github.com/KellerJordan/cifar10-airbench; 18 of the filters, scaled as the others.
    """
    side = images.shape[1] - 2
    views = [images[:, r : r + side, c : c + side, 0] for r in range(3) for c in range(3)]
    patches = jnp.stack(views, axis=-1).reshape((-1, 9))
    variances, vectors = jnp.linalg.eigh(patches.T @ patches / len(patches))
    filters = vectors / jnp.sqrt(variances + 1e-2)
    kernel = params["Conv_0"]["kernel"].reshape((9, -1))
    filters = jnp.concatenate([filters, -filters], axis=1)[:, : kernel.shape[1]]
    filters *= jnp.sqrt((kernel**2).mean() / (filters**2).mean())
    kernel = kernel.at[:, : filters.shape[1]].set(filters).reshape(params["Conv_0"]["kernel"].shape)
    return params | {"Conv_0": {"kernel": kernel, "bias": params["Conv_0"]["bias"]}}


IDEAS = {
    "unchanged": Idea(),
    "batch normalization, folded": Idea(
        make_loss=lambda _: normalized_loss,
        finish=lambda params, images: normalized_logits(params, images, jnp.ones(len(images)))[1],
    ),
    "whitened first layer": Idea(prepare=whiten),
    "label smoothing": Idea(make_loss=lambda _: smoothed_loss),
    "distillation from a wider network": Idea(
        make_loss=make_distillation_loss, teacher={"channels": 128}
    ),
    "the 22x22 crop as input": Idea({"input_size": 22}),
    "96 channels": Idea({"channels": 96}),
    "constant learning rate": Idea({"schedule": "constant", "learning_rate": 3e-3}),
    "half of the steps averaged": Idea({"ema_fraction": 0.5}),
    "shifts by 2 pixels": Idea({"shift_pixels": 2}),
    "rotation by 20 degrees": Idea({"rotation_degrees": 20.0}),
    "elastic distortion of 0.8 pixels": Idea({"elastic_pixels": 0.8}),
}


@pinned_settings()
def train_network(
    config: Config, dataset: Dataset, idea: Idea, teacher: Params | None = None
) -> Params:
    """The parameters of the network that a changed recipe trains."""
    key = jax.random.key(config.seed)
    images, labels = map(jnp.asarray, dataset.train)
    loss = idea.make_loss(teacher)

    @functools.partial(jax.jit, donate_argnums=0, compiler_options=compiler_options(False))
    def train_epoch(
        state: train.TrainState, order: Array, images: Array, labels: Array
    ) -> train.TrainState:
        def body(step: Array, state: train.TrainState) -> train.TrainState:
            batch = batches.gather_batch(images, labels, order[step])
            return train.train_step(state, batch, key, config, loss)[0]

        return lax.fori_loop(0, config.steps_per_epoch, body, state)

    state = train.create_state(key, config)
    cropped = to_float(center_crop(images[:SAMPLE], config))
    params = idea.prepare(state.params, cropped)
    raw_params = jax.tree.map(jnp.copy, params) if config.ema_fraction else None
    state = state.replace(params=params, raw_params=raw_params)
    for epoch in range(config.epochs):
        order = batches.epoch_order(key, jnp.int32(epoch), config)
        state = train_epoch(state, order, images, labels)
    return idea.finish(state.params, to_float(augment(key, images[:SAMPLE], config)))


def measure(options: argparse.Namespace, name: str, seed: int, dataset: Dataset) -> dict[str, Any]:
    """The accuracy and the loss on the held-out images.

    They are kept under the idea's name and configs: delete the file after any other change of it.
    """
    idea, fields = IDEAS[name], {"validation_fraction": HELD_OUT, "seed": seed}
    changes = {"dataset": options.dataset, "epochs": options.epochs, **fields}
    recipe = dataclasses.replace(PRESETS[options.preset], **changes)
    config = dataclasses.replace(recipe, **idea.config)
    teacher_config = dataclasses.replace(recipe, **(idea.teacher or {}))
    file = f"{short_digest(config)} {short_digest(teacher_config)} {name}.json"
    path = options.runs / "ideas" / file
    if path.exists():
        return json.loads(path.read_text())
    teacher = None
    if idea.teacher:
        teacher = train_network(teacher_config, dataset, Idea())
    params = train_network(config, dataset, idea, teacher)
    images, labels = dataset.validation
    logits = np.asarray(inference.predict_logits(params, jnp.asarray(images), config=config))
    scores = inference.loss_and_accuracy(logits[np.newaxis], labels)
    result = {key: float(value[0]) for key, value in scores.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result))
    return result


def main() -> None:
    """Trains and stores."""
    parser = make_parser(__doc__, seeds=5)
    parser.add_argument("--preset", choices=PRESETS, default="best")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--only", nargs="+", choices=IDEAS, default=list(IDEAS), metavar="IDEA")
    options = parser.parse_args()
    dataset = load_dataset(options.dataset, validation_fraction=HELD_OUT)
    rows: dict[str, Any] = {}
    for name in dict.fromkeys(["unchanged", *options.only]):
        scores = [measure(options, name, seed, dataset) for seed in range(options.seeds)]
        values = {key: [score[key] for score in scores] for key in ("accuracy", "loss")}
        row = rows[name] = {key: seed_statistics(value) for key, value in values.items()}
        for key, value in values.items():
            pairs = zip(value, rows["unchanged"][key]["per_seed"], strict=True)
            row[f"{key}_difference"] = seed_statistics(a - b for a, b in pairs)
        change = row["accuracy_difference"]
        low, high = (100 * end for end in change["interval95"] or (np.nan, np.nan))
        accuracy = f"{row['accuracy']['mean']:.2%} | {100 * change['mean']:+.2f}"
        print(f"| {name} | {accuracy} [{low:+.2f}, {high:+.2f}] | {row['loss']['mean']:.4f} |")
    result = {"preset": options.preset, "epochs": options.epochs, "n": options.seeds}
    result |= {"environment": current_environment(), "ideas": rows}
    store(f"ideas_{options.preset}", provenance() | result, options.output)


if __name__ == "__main__":
    main()
