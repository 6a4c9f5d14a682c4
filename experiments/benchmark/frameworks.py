"""The same training in several frameworks, each in a separate process.

Each is written as its users would write it well: data in memory, compiled where the framework
offers that. The functions at the end run in these processes.
"""

import dataclasses
import importlib.metadata
import os
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from mnist_flax.core.config import PRESETS
from mnist_flax.data.dataset import Dataset, load_dataset

LEARNING_RATE, EPSILON = 1e-3, 1e-7  # the defaults of Keras, and so the tutorial's
PARAMETERS = 81_066


@dataclasses.dataclass(frozen=True)
class Task:
    """What every framework is to train."""

    dataset: Dataset
    held_out: float  # share of the training images that is not used
    cores: int
    size: int = 28  # pixels per side that the network sees, from the center
    batch_size: int = 128
    seed: int = 0

    def images(self, split: str) -> np.ndarray:
        """Float32 images 0..1, [count, size, size, 1]."""
        images = getattr(self.dataset, split)[0]
        first = (images.shape[1] - self.size) // 2
        crop = images[:, first : first + self.size, first : first + self.size]
        return np.ascontiguousarray(crop) / np.float32(255)

    def batches(self, count: int, epoch: int) -> np.ndarray:
        """Indices [steps, batch_size] of `count` images in a new order, in whole batches."""
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.dataset.train[0]))
        steps = count // self.batch_size
        return order[: steps * self.batch_size].reshape((steps, self.batch_size))


class Ours:
    """This project: the programs of its runner. The crop of `default` moves at random."""

    def __init__(self, task: Task, preset: str = "reference", precision: str = "float32"):
        import jax

        from mnist_flax.run.compilation import compile_training

        self.config = dataclasses.replace(
            PRESETS[preset],
            dataset=task.dataset.name,
            validation_fraction=task.held_out,
            input_size=task.size if preset == "reference" else PRESETS[preset].input_size,
            batch_size=task.batch_size,
            precision=precision,
            seed=task.seed,
        )
        self.training = compile_training(task.dataset, self.config)
        self.state = self.training.create_state()
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(self.state.params))

    def train(self, count: int) -> None:
        """Trains on `count` images and waits for the end."""
        remaining = count // self.config.batch_size
        while remaining:
            epoch, done = divmod(int(self.state.step), self.config.steps_per_epoch)
            steps = min(remaining, self.config.steps_per_epoch - done)
            order = self.training.epoch_order(epoch)
            self.state = self.training.train_steps(self.state, order, steps)
            remaining -= steps
        self.state.step.block_until_ready()

    def evaluate(self) -> float:
        """The accuracy on all test images."""
        return float(self.training.evaluate(self.state)["test_accuracy"][0])


class FlaxPlain:
    """Flax as its tutorials write it: `nn.Conv`, `nn.max_pool`, a Python loop over batches."""

    def __init__(self, task: Task):
        import jax
        import optax
        from flax import linen as nn
        from flax.training.train_state import TrainState

        class Network(nn.Module):
            @nn.compact
            def __call__(self, x):
                for _ in range(3):
                    x = nn.relu(nn.Conv(64, (3, 3), padding="VALID")(x))
                    x = nn.max_pool(x, (2, 2), strides=(2, 2))
                x = x.reshape((x.shape[0], -1))
                x = nn.relu(nn.Dense(64)(x))
                x = nn.relu(nn.Dense(32)(x))
                return nn.Dense(10)(x)

        network = Network()
        self.jax, self.task, self.epoch = jax, task, 0
        self.x, self.y = task.images("train"), task.dataset.train[1]
        self.test = jax.device_put((task.images("test"), task.dataset.test[1]))
        params = network.init(jax.random.key(task.seed), self.x[:1])["params"]
        adam = optax.adam(LEARNING_RATE, eps=EPSILON)
        self.state = TrainState.create(apply_fn=network.apply, params=params, tx=adam)
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(params))

        @jax.jit
        def step(state, images, labels):
            def loss(params):
                logits: Any = network.apply({"params": params}, images)
                return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

            return state.apply_gradients(grads=jax.grad(loss)(state.params))

        @jax.jit
        def count_correct(params, images, labels):
            logits: Any = network.apply({"params": params}, images)
            return (logits.argmax(-1) == labels).sum()

        self.step, self.count_correct = step, count_correct

    def train(self, count: int) -> None:  # noqa: D102
        for batch in self.task.batches(count, self.epoch):
            self.state = self.step(self.state, self.x[batch], self.y[batch])
        self.epoch += 1
        self.jax.block_until_ready(self.state)

    def evaluate(self) -> float:  # noqa: D102
        images, labels = self.test
        correct = [
            self.count_correct(self.state.params, images[i : i + 1000], labels[i : i + 1000])
            for i in range(0, len(images), 1000)
        ]
        return sum(map(int, correct)) / len(images)


class Keras:
    """Keras, which the tutorial uses, on one of its backends."""

    def __init__(self, task: Task, backend: str, policy: str = "float32"):
        os.environ |= {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        import keras  # pyright: ignore[reportMissingImports]
        from keras import layers  # pyright: ignore[reportMissingImports]

        keras.utils.set_random_seed(task.seed)
        keras.mixed_precision.set_global_policy(policy)
        stack: list[Any] = [keras.Input((task.size, task.size, 1))]
        for _ in range(3):
            stack += [layers.Conv2D(64, 3, activation="relu"), layers.MaxPooling2D(2)]
        stack += [layers.Flatten(), layers.Dense(64, activation="relu")]
        stack += [layers.Dense(32, activation="relu"), layers.Dense(10, activation="softmax")]
        self.model = keras.Sequential(stack)
        self.model.compile(optimizer="adam", loss="sparse_categorical_crossentropy")
        self.parameters = self.model.count_params()
        self.task, self.test = task, task.images("test")
        self.x, self.y = task.images("train"), task.dataset.train[1]

    def train(self, count: int) -> None:  # noqa: D102
        batch_size = self.task.batch_size
        whole = count // batch_size * batch_size
        x, y = self.x[:whole], self.y[:whole]  # `fit` shuffles them
        self.model.fit(x, y, batch_size=batch_size, epochs=1, verbose=0)  # pyright: ignore

    def evaluate(self) -> float:  # noqa: D102
        predicted = self.model.predict(self.test, batch_size=1000, verbose=0)  # pyright: ignore
        return float(np.mean(predicted.argmax(-1) == self.task.dataset.test[1]))


class Torch:
    """PyTorch: eager or by `torch.compile`, in either memory format, float32 or mixed precision."""

    def __init__(
        self,
        task: Task,
        channels_last: bool = False,
        compiled: bool = False,
        bfloat16: bool = False,
    ):
        import torch  # pyright: ignore[reportMissingImports]
        from torch import nn  # pyright: ignore[reportMissingImports]

        torch.manual_seed(task.seed)
        torch.set_num_threads(task.cores)
        stack: list[nn.Module] = []
        for channels in (1, 64, 64):
            stack += [nn.Conv2d(channels, 64, 3), nn.ReLU(), nn.MaxPool2d(2)]
        stack += [nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU()]
        model = nn.Sequential(*stack, nn.Linear(32, 10))
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = model.to(self.device, memory_format=layout)
        self.forward = torch.compile(self.model) if compiled else self.model
        self.loss = nn.functional.cross_entropy
        self.precision = partial(torch.autocast, self.device, torch.bfloat16, enabled=bfloat16)
        self.adam = torch.optim.Adam(model.parameters(), LEARNING_RATE, eps=EPSILON, fused=True)
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.torch, self.task, self.epoch = torch, task, 0
        # With one channel both layouts are the same bytes.
        self.x, self.test = (
            torch.from_numpy(task.images(split)).permute(0, 3, 1, 2).to(self.device)
            for split in ("train", "test")
        )
        self.y = torch.from_numpy(task.dataset.train[1]).long().to(self.device)

    def train(self, count: int) -> None:  # noqa: D102
        batches = self.torch.from_numpy(self.task.batches(count, self.epoch)).to(self.device)
        for batch in batches:
            self.adam.zero_grad(set_to_none=True)
            with self.precision():
                loss = self.loss(self.forward(self.x[batch]), self.y[batch])
            loss.backward()
            self.adam.step()
        self.epoch += 1
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def evaluate(self) -> float:  # noqa: D102
        with self.torch.inference_mode():
            logits = [self.model(part) for part in self.test.split(1000)]
        predicted = self.torch.cat(logits).argmax(-1).cpu().numpy()
        return float(np.mean(predicted == self.task.dataset.test[1]))


# A network and its optimizer. What is compiled late is compiled in the first `train`.
Trainer = Ours | FlaxPlain | Keras | Torch


class Framework(NamedTuple):
    """How to make a trainer, and the modules that this needs."""

    make: Callable[[Task], Trainer]
    modules: tuple[str, ...]


FLAX = ("jax", "jaxlib", "flax", "optax")
FRAMEWORKS = {
    "ours": Framework(Ours, FLAX),
    "ours_default": Framework(partial(Ours, preset="default"), FLAX),
    "keras_tensorflow": Framework(partial(Keras, backend="tensorflow"), ("keras", "tensorflow")),
    "torch": Framework(Torch, ("torch",)),
    "torch_channels_last": Framework(partial(Torch, channels_last=True), ("torch",)),
    "torch_compiled": Framework(partial(Torch, compiled=True), ("torch",)),
    "keras_jax": Framework(partial(Keras, backend="jax"), ("keras", "jax", "jaxlib")),
    "flax_plain": Framework(FlaxPlain, FLAX),
    "ours_bfloat16": Framework(partial(Ours, precision="bfloat16"), FLAX),
    "torch_bfloat16": Framework(partial(Torch, channels_last=True, bfloat16=True), ("torch",)),
    "torch_compiled_bfloat16": Framework(
        partial(Torch, channels_last=True, compiled=True, bfloat16=True), ("torch",)
    ),
    "keras_tensorflow_bfloat16": Framework(
        partial(Keras, backend="tensorflow", policy="mixed_bfloat16"), ("keras", "tensorflow")
    ),
}


def versions(name: str) -> dict[str, str]:
    """The versions of a framework's packages; a PackageNotFoundError if one is missing."""
    distributions = importlib.metadata.packages_distributions()
    modules = FRAMEWORKS[name].modules
    packages = [package for module in modules for package in distributions.get(module, [module])]
    return {package: importlib.metadata.version(package) for package in packages}


# The one of this process.
_TRAINERS: list[Trainer] = []


def prepare(
    name: str, dataset: str, cores: int, share: float = 1.0, **settings: int
) -> dict[str, float]:
    """Makes the trainer of this process, for a share of the training images."""
    start, held_out = time.perf_counter(), 1 - share
    data = load_dataset(dataset, validation_fraction=held_out, log=lambda _: None)
    _TRAINERS.append(FRAMEWORKS[name].make(Task(data, held_out, cores, **settings)))
    return {"parameters": _TRAINERS[0].parameters, "seconds": time.perf_counter() - start}


def call(method: str, *arguments: int) -> tuple[Any, dict[str, float]]:
    """Calls a method of the trainer; returns its result, and the seconds and peak memory."""
    start = time.perf_counter()
    result = getattr(_TRAINERS[0], method)(*arguments)
    seconds, unit = time.perf_counter() - start, 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return result, {"seconds": seconds, "peak_bytes": peak}
