"""One implementation of the same training, in a process of its own, for benchmark.py.

Each is written as its own users would write it well: the data in memory, compiled where the
peer offers that. It reads one request a line from standard input and answers each with one
line of JSON: `train N` trains on N images, `evaluate` scores the test images.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mnist_flax.config import PRESETS
from mnist_flax.data import Dataset, load_dataset

LEARNING_RATE, EPSILON = 1e-3, 1e-7  # Keras's defaults, and so the tutorial's
PARAMETERS = 81_066


@dataclasses.dataclass(frozen=True)
class Task:
    """What every implementation is given."""

    dataset: Dataset
    held_out: float  # share of the training images that it leaves out
    size: int  # the network sees this many pixels a side, from the centre
    batch_size: int
    seed: int
    cores: int

    def images(self, split: str) -> np.ndarray:
        """Float32 images 0..1, [count, size, size, 1]."""
        images = getattr(self.dataset, split)[0]
        first = (images.shape[1] - self.size) // 2
        centre = images[:, first : first + self.size, first : first + self.size]
        return np.ascontiguousarray(centre) / np.float32(255)

    def batches(self, count: int, epoch: int) -> np.ndarray:
        """Indices [steps, batch_size] of `count` images in a new order, in whole batches."""
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.dataset.train[0]))
        steps = count // self.batch_size
        return order[: steps * self.batch_size].reshape((steps, self.batch_size))


class Peer(Protocol):
    """An implementation. What it compiles late, it compiles in the first `train`."""

    parameters: int

    def train(self, count: int) -> None:
        """Trains on `count` images and waits for the end."""
        ...

    def evaluate(self) -> float:
        """The share of all test images that it classifies correctly."""
        ...


class Ours:
    """This project: the programs that its runner calls, with a preset's recipe."""

    packages = ("jax", "jaxlib", "flax", "optax")

    def __init__(self, task: Task, preset: str = "reference"):
        from mnist_flax.programs import compile_programs

        config = dataclasses.replace(
            PRESETS[preset],
            dataset=task.dataset.name,
            validation_fraction=task.held_out,
            input_size=task.size,
            batch_size=task.batch_size,
            seed=task.seed,
        )
        self.steps_per_epoch, self.batch_size = config.steps_per_epoch, config.batch_size
        self.programs = compile_programs(task.dataset, config)
        self.state = self.programs.create_state()
        self.parameters = sum(leaf.size for leaf in _leaves(self.state.params))

    def train(self, count: int) -> None:  # noqa: D102
        steps = count // self.batch_size
        while steps:
            epoch, done = divmod(int(self.state.step), self.steps_per_epoch)
            now = min(steps, self.steps_per_epoch - done)
            order = self.programs.epoch_order(epoch)
            self.state = self.programs.train_steps(self.state, order, now)
            steps -= now
        self.state.step.block_until_ready()

    def evaluate(self) -> float:  # noqa: D102
        return float(self.programs.evaluate(self.state)["test_accuracy"][0])


class OursDefault(Ours):
    """This project with its default preset, whose window moves at random."""

    def __init__(self, task: Task):
        super().__init__(dataclasses.replace(task, size=PRESETS["default"].input_size), "default")


class FlaxPlain:
    """Flax as its tutorials write it: `nn.Conv`, `nn.max_pool`, a Python loop over batches."""

    packages = ("jax", "jaxlib", "flax", "optax")

    def __init__(self, task: Task):
        import jax
        import jax.numpy as jnp
        import optax
        from flax import linen as nn
        from flax.training.train_state import TrainState as FlaxState

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
        self.task, self.epoch = task, 0
        self.x, self.y = task.images("train"), task.dataset.train[1]
        self.test = jax.device_put((task.images("test"), task.dataset.test[1]))
        params = network.init(jax.random.key(task.seed), self.x[:1])["params"]
        adam = optax.adam(LEARNING_RATE, eps=EPSILON)
        self.state = FlaxState.create(apply_fn=network.apply, params=params, tx=adam)
        self.parameters = sum(leaf.size for leaf in _leaves(params))

        @jax.jit
        def step(state, images, labels):
            def loss(params):
                logits: Any = network.apply({"params": params}, images)
                return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

            return state.apply_gradients(grads=jax.grad(loss)(state.params))

        @jax.jit
        def hits(params, images, labels):
            logits: Any = network.apply({"params": params}, images)
            return jnp.sum(logits.argmax(-1) == labels)

        self.step, self.hits = step, hits

    def train(self, count: int) -> None:  # noqa: D102
        for batch in self.task.batches(count, self.epoch):
            self.state = self.step(self.state, self.x[batch], self.y[batch])
        self.epoch += 1
        _leaves(self.state.params)[0].block_until_ready()

    def evaluate(self) -> float:  # noqa: D102
        images, labels = self.test
        parts = range(0, len(images), 1000)
        hits = [
            self.hits(self.state.params, images[i : i + 1000], labels[i : i + 1000]) for i in parts
        ]
        return sum(int(number) for number in hits) / len(images)


class Keras:
    """Keras, the reference's own library, on the backend that KERAS_BACKEND names."""

    packages = ("keras",)

    def __init__(self, task: Task):
        import keras  # pyright: ignore[reportMissingImports]
        from keras import layers  # pyright: ignore[reportMissingImports]

        keras.utils.set_random_seed(task.seed)
        stack: list[Any] = [keras.Input((task.size, task.size, 1))]
        for _ in range(3):
            stack += [layers.Conv2D(64, 3, activation="relu"), layers.MaxPooling2D(2)]
        stack += [layers.Flatten(), layers.Dense(64, activation="relu")]
        stack += [layers.Dense(32, activation="relu"), layers.Dense(10, activation="softmax")]
        self.model = keras.Sequential(stack)
        self.model.compile(optimizer="adam", loss="sparse_categorical_crossentropy")
        self.parameters = self.model.count_params()
        self.task, self.epoch = task, 0
        self.x, self.y = task.images("train"), task.dataset.train[1]
        self.test = task.images("test"), task.dataset.test[1]

    def train(self, count: int) -> None:  # noqa: D102
        batch_size = self.task.batch_size
        whole = count // batch_size * batch_size
        # fit shuffles what it is given; the full set goes in as it is.
        x, y = (self.x, self.y) if whole == len(self.x) else (self.x[:whole], self.y[:whole])
        self.model.fit(x, y, batch_size=batch_size, epochs=1, verbose=0)  # pyright: ignore

    def evaluate(self) -> float:  # noqa: D102
        images, labels = self.test
        predicted = self.model.predict(images, batch_size=1000, verbose=0)  # pyright: ignore
        return float(np.mean(predicted.argmax(-1) == labels))


class KerasTensorFlow(Keras):
    """Keras on TensorFlow: the reference's own stack."""

    packages = ("keras", "tensorflow|tensorflow-cpu")

    def __init__(self, task: Task):
        os.environ |= {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
        super().__init__(task)


class KerasJax(Keras):
    """Keras on JAX."""

    packages = ("keras", "jax", "jaxlib")

    def __init__(self, task: Task):
        os.environ["KERAS_BACKEND"] = "jax"
        super().__init__(task)


class Torch:
    """PyTorch, eager, in the memory format that `channels_last` asks for."""

    packages = ("torch",)

    def __init__(self, task: Task, channels_last: bool = False, compiled: bool = False):
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
        self.model = model.to(memory_format=layout)
        self.forward = torch.compile(self.model) if compiled else self.model
        self.loss = nn.functional.cross_entropy
        self.adam = torch.optim.Adam(model.parameters(), LEARNING_RATE, eps=EPSILON, fused=True)
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.torch, self.task, self.epoch = torch, task, 0
        # One channel: both layouts are the same bytes.
        self.x = torch.from_numpy(task.images("train")).permute(0, 3, 1, 2)
        self.y = torch.from_numpy(task.dataset.train[1]).long()
        self.test = torch.from_numpy(task.images("test")).permute(0, 3, 1, 2)

    def train(self, count: int) -> None:  # noqa: D102
        for batch in self.torch.from_numpy(self.task.batches(count, self.epoch)):
            self.adam.zero_grad(set_to_none=True)
            self.loss(self.forward(self.x[batch]), self.y[batch]).backward()
            self.adam.step()
        self.epoch += 1

    def evaluate(self) -> float:  # noqa: D102
        with self.torch.inference_mode():
            logits = [self.model(part) for part in self.test.split(1000)]
        predicted = self.torch.cat(logits).argmax(-1).numpy()
        return float(np.mean(predicted == self.task.dataset.test[1]))


class TorchChannelsLast(Torch):
    """PyTorch, eager, channels last."""

    def __init__(self, task: Task):
        super().__init__(task, channels_last=True)


class TorchCompiled(Torch):
    """PyTorch with `torch.compile`."""

    def __init__(self, task: Task):
        super().__init__(task, compiled=True)


PEERS: dict[str, type] = {
    "ours": Ours,
    "ours_default": OursDefault,
    "keras_tensorflow": KerasTensorFlow,
    "torch": Torch,
    "torch_channels_last": TorchChannelsLast,
    "torch_compiled": TorchCompiled,
    "keras_jax": KerasJax,
    "flax_plain": FlaxPlain,
}


def versions(name: str) -> dict[str, str]:
    """The versions of a peer's packages.

    Raises:
      PackageNotFoundError: it is not installed.
    """
    found = {}
    for alternatives in PEERS[name].packages:
        for package in alternatives.split("|"):
            try:
                found[package] = importlib.metadata.version(package)
                break
            except importlib.metadata.PackageNotFoundError:
                if package == alternatives.split("|")[-1]:
                    raise
    return found


def main() -> None:
    """Serves one implementation until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=PEERS)
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--size", type=int, default=28)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--share", type=float, default=1.0, help="of the training images")
    arguments = parser.parse_args()
    began = time.perf_counter()
    held_out = 1 - arguments.share
    dataset = load_dataset(
        arguments.dataset, arguments.data_dir, validation_fraction=held_out, log=lambda _: None
    )
    task = Task(
        dataset,
        held_out,
        arguments.size,
        arguments.batch_size,
        arguments.seed,
        arguments.cores,
    )
    peer: Peer = PEERS[arguments.name](task)
    _answer(seconds=time.perf_counter() - began, parameters=peer.parameters)
    for request in sys.stdin:
        what, *numbers = request.split()
        began = time.perf_counter()
        if what == "train":
            peer.train(int(numbers[0]))
            _answer(seconds=time.perf_counter() - began)
        else:
            accuracy = peer.evaluate()
            _answer(seconds=time.perf_counter() - began, test_accuracy=accuracy)


def _answer(**values: float) -> None:
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(json.dumps(values | {"peak_bytes": peak}), flush=True)


def _leaves(tree: Any) -> list[Any]:
    import jax

    return jax.tree.leaves(tree)


if __name__ == "__main__":
    main()
