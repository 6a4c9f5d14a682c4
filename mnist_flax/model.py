"""The network: its parameters, its layers, and how its layers are computed."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import summary
from jax import lax

Params = Any  # a pytree: {layer: {"kernel": float32, "bias": float32}}

NUM_CLASSES = 10
NUM_BLOCKS = 3


class CNN(nn.Module):
    """The Keras tutorial's network: 81,066 parameters for 28x28 and for 22x22 inputs.

    Three blocks of a valid 3x3 convolution to 64 channels, ReLU and 2x2 max-pooling,
    then dense layers of 64, 32 and 10.
    """

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps float32 images [batch, height, width, 1] to logits [batch, 10]."""
        x = images
        for _ in range(NUM_BLOCKS):
            x = nn.Conv(
                64,
                (3, 3),
                padding="VALID",
                kernel_init=nn.initializers.glorot_uniform(),
                conv_general_dilated=convolution(),
            )(x)
            x = nn.relu(x)
            x = MaxPool()(x)
        x = x.reshape((x.shape[0], -1))
        for features in (64, 32):
            x = nn.Dense(features, kernel_init=nn.initializers.glorot_uniform())(x)
            x = nn.relu(x)
        return nn.Dense(NUM_CLASSES, kernel_init=nn.initializers.glorot_uniform())(x)


class MaxPool(nn.Module):
    """2x2 max-pooling with stride 2; an odd last row or column is dropped, as in Keras."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, height, width, channels] to half the height and width, rounded down.

        The gradient of `reduce_window` is 25 times slower than that of these slices on
        CPU, and on GPU it has no deterministic implementation.
        """
        height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
        rows = jnp.maximum(x[:, 0:height:2], x[:, 1:height:2])
        return jnp.maximum(rows[:, :, 0:width:2], rows[:, :, 1:width:2])


def init(key: jax.Array, input_size: int) -> Params:
    """Fresh parameters: Glorot-uniform kernels and zero biases, all float32."""
    images = jnp.zeros((1, input_size, input_size, 1), jnp.float32)
    return CNN().init(key, images)["params"]


def apply(params: Params, images: jax.Array) -> jax.Array:
    """Logits [batch, 10] of float32 images [batch, size, size, 1] scaled to 0..1.

    Rows and columns that cannot reach the output are not computed; the logits are the
    same with and without them.
    """
    live = live_size(images.shape[1])
    return CNN().apply({"params": params}, images[:, :live, :live])  # pyright: ignore[reportReturnType]


def live_size(size: int) -> int:
    """How many of `size` rows (or columns) have any influence on the logits.

    Each pool drops an odd last row, and with it all that only that row has seen: of 28
    rows the network sees the first 22.
    """
    for _ in range(NUM_BLOCKS):
        size = (size - 2) // 2
    for _ in range(NUM_BLOCKS):
        size = size * 2 + 2
    return size


def layer_table(input_size: int) -> str:
    """A table of the layers with their output shapes and parameter counts."""
    images = jnp.zeros((1, input_size, input_size, 1), jnp.float32)
    table = summary.tabulate(
        CNN(),
        jax.random.key(0),
        console_kwargs={"width": 100, "force_terminal": False},
        column_kwargs={"no_wrap": True},
    )
    return "\n".join(line.rstrip() for line in table(images).strip().splitlines())


def convolution() -> Callable[..., jax.Array]:
    """The implementation of convolution that is fast on this backend."""
    return patches_convolution if jax.default_backend() == "cpu" else lax.conv_general_dilated


def patches_convolution(
    images: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **_
) -> jax.Array:
    """A valid convolution with stride 1 as one matrix product over patches.

    Stands in for `lax.conv_general_dilated` with images [batch, height, width, in] and
    kernel [rows, columns, in, out]. XLA's own gradients of a convolution are many times
    slower inside a loop on CPU.

    Raises:
      ValueError: for another padding or stride.
    """
    if padding != "VALID" or tuple(strides) != (1, 1):
        raise ValueError(f"only VALID with stride 1, not {padding!r} with {strides}")
    rows, columns, _, features = kernel.shape
    batch, height, width, _ = images.shape
    height, width = height - rows + 1, width - columns + 1
    patches = jnp.concatenate(
        [images[:, r : r + height, c : c + width] for r in range(rows) for c in range(columns)],
        axis=-1,
    )
    product = _matmul(patches.reshape((batch * height * width, -1)), kernel.reshape((-1, features)))
    return product.reshape((batch, height, width, features))


@jax.custom_vjp
def _matmul(x: jax.Array, w: jax.Array) -> jax.Array:
    return x @ w


def _matmul_forward(x: jax.Array, w: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return x @ w, (x, w)


def _matmul_backward(
    saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, w = saved
    # XLA on CPU multiplies by a transposed copy two to three times faster than by a
    # transposed view, which the barrier keeps it from turning the copy back into.
    return gradient @ w.T, lax.optimization_barrier(x.T) @ gradient


_matmul.defvjp(_matmul_forward, _matmul_backward)
