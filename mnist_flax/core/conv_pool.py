"""The convolution and pooling of a block, in the fastest way for each backend.

Both ways take float arrays [batch, height, width, in] and a kernel [3, 3, in, out] and return
[batch, (height - 2) // 2, (width - 2) // 2, out]: a valid convolution with stride 1 followed by
2x2 max-pooling. A last odd row or column is dropped, as in Keras. Bias and ReLU are monotonic, so
the caller applies them to the pooled quarter.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float, Int8

# Winograd's F(tile, 3): `tile` outputs of a 3-tap filter from `tile + 2` products instead of
# 3 * tile, as `outputs @ ((taps @ filter) * (inputs @ data))`. Lavin and Gray, "Fast
# Algorithms for Convolutional Neural Networks", https://arxiv.org/abs/1509.09308.
# fmt: off
WINOGRAD = {
    2: {
        "inputs": [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
        "taps": [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
        "outputs": [[1, 1, 1, 0], [0, 1, -1, -1]],
    },
    4: {
        "inputs": [
            [4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1],
        ],
        "taps": [
            [1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1],
        ],
        "outputs": [
            [1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1],
        ],
    },
}
# fmt: on

LAYOUT = ("NHWC", "HWIO", "NHWC")  # of images, kernels and outputs

Images = Float[Array, "batch height width in"]
Kernel = Float[Array, "3 3 in out"]
Pooled = Float[Array, "batch (height-2)//2 (width-2)//2 out"]

ConvPool = Callable[[Images, Kernel], Pooled]


def default_conv_pool(precision: str = "float32") -> ConvPool:
    """The fastest function on this backend."""
    if jax.default_backend() == "tpu":
        return conv_pool_lax
    return functools.partial(conv_pool_matmul, precision=precision)


def jax_precision(precision: str) -> str:
    """What JAX calls a `Config.precision`."""
    return "tensorfloat32" if precision == "tf32" else precision


def conv_pool_lax(x: Images, kernel: Kernel) -> Pooled:
    """XLA's own convolution, and four strided views of its output.

    On GPU the gradient of `reduce_window` has no deterministic implementation.
    """
    height, width = _pooled_extent(x)
    x = x[:, : height + 2, : width + 2]
    y = lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=LAYOUT)
    y = y.reshape((x.shape[0], height // 2, 2, width // 2, 2, kernel.shape[-1]))
    return max4(*(y[:, :, row, :, column] for row in range(2) for column in range(2)))


def conv_pool_matmul(x: Images, kernel: Kernel, precision: str = "float32") -> Pooled:
    """The convolution as matrix products over patches, which are added up in float32.

    XLA's own gradients of a convolution are many times slower inside a loop on CPU. On GPU, where
    the convolutions are cuDNN's, those of many seeds would be computed one after the other. With
    few input channels memory is the limit; with more, Winograd's algorithm along the rows halves
    the arithmetic.
    """
    return (_im2col if x.shape[-1] < 8 else _winograd)(x, kernel, precision)


def _im2col(x: Images, kernel: Kernel, precision: str) -> Pooled:
    """One product for each of the four positions in a pooling window."""
    height, width = _pooled_extent(x)

    def patches(row: int, column: int) -> Array:
        views = [
            x[:, row + r : row + r + height - 1 : 2, column + c : column + c + width - 1 : 2]
            for r in range(3)
            for c in range(3)
        ]
        return jnp.concatenate(views, axis=-1)

    taps = kernel.reshape((-1, kernel.shape[-1]))
    views = (patches(row, column) for row in range(2) for column in range(2))
    return max4(*(_product(view, taps, precision) for view in views))


def _winograd(x: Images, kernel: Kernel, precision: str) -> Pooled:
    """Winograd's algorithm along the rows, patches along the columns.

    In float32, exact to about 3e-6 of the largest output. Where the exact output is 0 (an empty
    region while the biases are still 0), rounding decides whether a ReLU passes a gradient.
    """
    height, width = _pooled_extent(x)
    tile = 4 if height % 4 == 0 else 2
    matrices = WINOGRAD[tile]

    rows = [x[:, row : row + height - tile + 1 : tile] for row in range(tile + 2)]
    # Without the barrier XLA computes the sums again for each of the three columns.
    data = lax.optimization_barrier(jnp.stack([_weighted_sum(w, rows) for w in matrices["inputs"]]))
    patches = jnp.concatenate([data[..., c : c + width, :] for c in range(3)], axis=-1)
    taps = jnp.matmul(jnp.float32(matrices["taps"]), kernel.reshape((3, -1)), precision="float32")
    taps = taps.reshape((tile + 2, patches.shape[-1], -1))
    products = _product(patches, taps, precision)

    products = products.reshape((*products.shape[:-2], width // 2, 2, products.shape[-1]))
    terms = [products[k] for k in range(tile + 2)]
    outputs = [_weighted_sum(w, terms) for w in matrices["outputs"]]
    pooled = [
        max4(*(row[:, :, :, column] for row in pair for column in range(2)))
        for pair in zip(outputs[::2], outputs[1::2], strict=True)
    ]
    return jnp.stack(pooled, axis=2).reshape((x.shape[0], height // 2, width // 2, -1))


def _pooled_extent(x: Images) -> tuple[int, int]:
    """How many rows and columns of the convolution's output are pooled."""
    return (x.shape[1] - 2) // 2 * 2, (x.shape[2] - 2) // 2 * 2


def _weighted_sum(weights: Sequence[float], arrays: Sequence[Array]) -> Array:
    terms = [
        array if weight == 1 else array * np.float32(weight)
        for weight, array in zip(weights, arrays, strict=True)
        if weight
    ]
    return sum(terms[1:], terms[0])


@jax.custom_vjp
def max4(a: Array, b: Array, c: Array, d: Array) -> Array:
    """The elementwise maximum. Its gradient goes to the first of equal values, as in Keras.

    The backward pass reads one byte for each output instead of all four inputs.
    """
    return jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))


def _max4_forward(a: Array, b: Array, c: Array, d: Array) -> tuple[Array, Int8[Array, "..."]]:
    maximum = max4(a, b, c, d)
    which = jnp.where(a == maximum, 0, jnp.where(b == maximum, 1, jnp.where(c == maximum, 2, 3)))
    return maximum, which.astype(jnp.int8)


def _max4_backward(which: Int8[Array, "..."], gradient: Array) -> tuple[Array, ...]:
    return tuple(jnp.where(which == i, gradient, jnp.zeros_like(gradient)) for i in range(4))


max4.defvjp(_max4_forward, _max4_backward)


def _product(patches: Array, taps: Array, precision: str) -> Array:
    """Patches [..., n] times taps [n, out], or [k, ..., n] times [k, n, out] for each k."""
    flat = _matmul(patches.reshape((*taps.shape[:-2], -1, taps.shape[-2])), taps, precision)
    return flat.reshape((*patches.shape[:-1], taps.shape[-1]))  # pyright: ignore[reportAttributeAccessIssue]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _matmul(x: Array, w: Array, precision: str) -> Array:
    """The product in float32 of float32 factors, rounded as a `Config.precision` says."""
    return _matmul_forward(x, w, precision)[0]


def _matmul_forward(x: Array, w: Array, precision: str) -> tuple[Array, tuple[Array, Array]]:
    dtype = _dtype(precision)
    # The barriers make XLA round a factor once, not wherever it is used.
    x, w = lax.optimization_barrier(x.astype(dtype)), w.astype(dtype)
    return _einsum("...ni,...io->...no", x, w, precision), (x, w)


def _matmul_backward(
    precision: str, saved: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    x, w = saved
    gradient = lax.optimization_barrier(gradient.astype(_dtype(precision)))
    # XLA on CPU multiplies by a transposed copy up to three times faster than by a transposed
    # view. The barrier and the other shape keep it from turning the copy back into a view.
    flat = lax.optimization_barrier(x.mT.reshape((*x.shape[:-2], -1)))
    by_w = _einsum("...in,...no->...io", flat.reshape(x.mT.shape), gradient, precision)
    return _einsum("...no,...io->...ni", gradient, w, precision), by_w


_matmul.defvjp(_matmul_forward, _matmul_backward)


def _dtype(precision: str) -> DTypeLike:
    return jnp.bfloat16 if precision == "bfloat16" else jnp.float32


def _einsum(indices: str, a: Array, b: Array, precision: str) -> Array:
    # Named here, because JAX traces a backward pass outside of the caller's context.
    name = jax_precision(precision)
    return jnp.einsum(indices, a, b, precision=name, preferred_element_type=jnp.float32)
