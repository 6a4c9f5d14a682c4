"""The network: its parameters and its layers."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import summary

from mnist_flax.convolution import PooledConvolution, pooled_convolution

Params = Any  # a pytree: {layer: {"kernel": float32, "bias": float32}}

NUM_CLASSES = 10
NUM_BLOCKS = 3
GLOROT = nn.initializers.glorot_uniform()


class CNN(nn.Module):
    """The Keras tutorial's network: 81,066 parameters for 28x28 and for 22x22 inputs.

    Three blocks of a valid 3x3 convolution to 64 channels (or more, or fewer), ReLU and 2x2
    max-pooling, then dense layers of 64, 32 and 10.
    """

    channels: int = 64
    dtype: Any = jnp.float32  # of the arithmetic; the parameters are float32 in any case
    convolution: PooledConvolution | None = None  # where None, the fast one on this backend

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps float32 images [batch, height, width, 1] to float32 logits [batch, 10]."""
        x = images.astype(self.dtype)
        for index in range(NUM_BLOCKS):
            x = Block(self.channels, self.dtype, self.convolution, name=f"Conv_{index}")(x)
        x = x.reshape((x.shape[0], -1))
        for features in (64, 32):
            x = nn.relu(nn.Dense(features, dtype=self.dtype, kernel_init=GLOROT)(x))
        return nn.Dense(NUM_CLASSES, dtype=self.dtype, kernel_init=GLOROT)(x).astype(jnp.float32)


class Block(nn.Module):
    """A valid 3x3 convolution, 2x2 max-pooling, bias and ReLU.

    The tutorial pools last, which gives the same: bias and ReLU change no order.
    """

    features: int
    dtype: Any
    convolution: PooledConvolution | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, height, width, in] to [batch, (height - 2) // 2, ..., features]."""
        kernel = self.param("kernel", GLOROT, (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        convolve = self.convolution or pooled_convolution()
        pooled = convolve(x, kernel.astype(self.dtype))
        return nn.relu(pooled + bias.astype(self.dtype)[None, None, None])


def init(key: jax.Array, input_size: int, channels: int = 64) -> Params:
    """Fresh parameters: Glorot-uniform kernels and zero biases, all float32."""
    images = jnp.zeros((1, input_size, input_size, 1), jnp.float32)
    return CNN(channels).init(key, images)["params"]


def apply(
    params: Params,
    images: jax.Array,
    precision: str = "float32",
    convolution: PooledConvolution | None = None,
) -> jax.Array:
    """Logits [batch, 10] of float32 images [batch, size, size, 1] scaled to 0..1.

    Rows and columns that cannot reach the output are not computed; the logits are the
    same with and without them.

    Args:
      precision: of the arithmetic, as in `Config.precision`.
      convolution: from `convolution`; where None, the fast one on this backend.
    """
    live = live_size(images.shape[1])
    channels = params["Conv_0"]["bias"].shape[-1]
    dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
    network = CNN(channels, dtype, convolution)
    # Left to itself, JAX multiplies float32 matrices in TF32 or bfloat16 where it can.
    with jax.default_matmul_precision("tensorfloat32" if precision == "tf32" else "float32"):
        return network.apply({"params": params}, images[:, :live, :live])  # pyright: ignore[reportReturnType]


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


def layer_table(input_size: int, channels: int = 64) -> str:
    """A table of the layers with their output shapes and parameter counts."""
    images = jnp.zeros((1, input_size, input_size, 1), jnp.float32)
    table = summary.tabulate(
        CNN(channels),
        jax.random.key(0),
        console_kwargs={"width": 100, "force_terminal": False},
        column_kwargs={"no_wrap": True},
    )
    return "\n".join(line.rstrip() for line in table(images).strip().splitlines())
