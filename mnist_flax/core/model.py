"""The network: its layers and its parameters."""

from typing import TypeAlias

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jaxtyping import Float, Key

from mnist_flax.core.config import Config
from mnist_flax.core.conv_pool import ConvPool, conv_pool_lax, default_conv_pool, jax_precision

# {layer: {"kernel": float32 array, "bias": float32 array}}
Params: TypeAlias = dict[str, dict[str, Array]]

NUM_CLASSES = 10
NUM_BLOCKS = 3
LAYERS = ("Conv_0", "Conv_1", "Conv_2", "Dense_0", "Dense_1", "Dense_2")
GLOROT = nn.initializers.glorot_uniform()


class CNN(nn.Module):
    """The Keras tutorial's network: 81,066 parameters for inputs of 22, 28 and 30 pixels.

    Three blocks of a valid 3x3 convolution to 64 channels (or another number), ReLU and 2x2
    max-pooling, the mean over the positions that are left, then dense layers of 64, 32 and 10.
    Of 22 and 28 pixels one position is left, of 30 there are 2x2.
    """

    channels: int = 64
    precision: str = "float32"  # of the arithmetic, as in `Config`
    conv_pool: ConvPool | None = None  # None: the fastest on this backend

    @nn.compact
    def __call__(self, images: Float[Array, "batch size size 1"]) -> Float[Array, "batch 10"]:
        """Maps images scaled to 0..1 to logits."""
        conv_pool = self.conv_pool or default_conv_pool(self.precision)
        x = images
        for index in range(NUM_BLOCKS):
            x = ConvBlock(self.channels, conv_pool, name=f"Conv_{index}")(x)
        x = x.mean(axis=(1, 2))
        for features in (64, 32):
            x = nn.relu(nn.Dense(features, kernel_init=GLOROT)(x))
        return nn.Dense(NUM_CLASSES, kernel_init=GLOROT)(x)


class ConvBlock(nn.Module):
    """A 3x3 convolution with pooling, then bias and ReLU.

    The tutorial pools last, with the same result: bias and ReLU are monotonic.
    """

    features: int
    conv_pool: ConvPool

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch (height-2)//2 (width-2)//2 features"]:
        """Applies the layer."""
        kernel = self.param("kernel", GLOROT, (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        return nn.relu(self.conv_pool(x, kernel) + bias[None, None, None])


def init(key: Key[Array, ""], config: Config) -> Params:
    """Initial parameters: Glorot-uniform kernels and zero biases, all float32."""
    size = config.input_size
    # Only the shapes matter here, and this function is traced the fastest.
    network = CNN(config.channels, conv_pool=conv_pool_lax)
    return network.init(key, jnp.zeros((1, size, size, 1)))["params"]  # pyright: ignore[reportReturnType]


def apply(
    params: Params,
    images: Float[Array, "batch size size 1"],
    precision: str = "float32",
    conv_pool: ConvPool | None = None,
) -> Float[Array, "batch 10"]:
    """The logits of images scaled to 0..1, by arithmetic of a `Config.precision`.

    Rows and columns that cannot influence the output are not computed. Without `conv_pool`, the
    fastest function on this backend is used.
    """
    size = visible_size(images.shape[1])
    channels = params["Conv_0"]["bias"].shape[-1]
    network = CNN(channels, precision, conv_pool)
    # By default JAX multiplies float32 matrices in TF32 or bfloat16 on accelerators.
    with jax.default_matmul_precision(jax_precision(precision)):
        return network.apply({"params": params}, images[:, :size, :size])  # pyright: ignore[reportReturnType]


def visible_size(size: int) -> int:
    """How many of `size` rows (or columns) can influence the logits.

    Each pooling drops an odd last row, and with it everything that only that row depends on: of
    28 rows the network sees the first 22.
    """
    for _ in range(NUM_BLOCKS):
        size = (size - 2) // 2
    for _ in range(NUM_BLOCKS):
        size = size * 2 + 2
    return size
