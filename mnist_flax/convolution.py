"""A block's convolution and pooling, each backend's fast way behind one function.

Both ways take float arrays [batch, height, width, in] and a kernel [3, 3, in, out] and give
[batch, (height - 2) // 2, (width - 2) // 2, out]: a valid convolution with stride 1, of
whose outputs 2x2 max-pooling keeps the largest. A last odd row or column is dropped, as in
Keras; bias and ReLU, which change no order, are left for the pooled quarter.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mnist_flax import devices

# Winograd's F(tile, 3): `tile` outputs of a 3-tap filter from `tile + 2` products instead of
# 3 * tile, as `outputs @ ((taps @ filter) * (inputs @ data))`. Lavin and Gray, "Fast
# Algorithms for Convolutional Neural Networks", https://arxiv.org/abs/1509.09308.
_WINOGRAD = {
    2: {
        "inputs": [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
        "taps": [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
        "outputs": [[1, 1, 1, 0], [0, 1, -1, -1]],
    },
    4: {
        "inputs": [
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ],
        "taps": [
            [1 / 4, 0, 0],
            [-1 / 6, -1 / 6, -1 / 6],
            [-1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6],
            [1 / 24, -1 / 12, 1 / 6],
            [0, 0, 1],
        ],
        "outputs": [
            [1, 1, 1, 1, 1, 0],
            [0, 1, -1, 2, -2, 0],
            [0, 1, 1, 4, 4, 0],
            [0, 1, -1, 8, -8, 1],
        ],
    },
}

PooledConvolution = Callable[[jax.Array, jax.Array], jax.Array]


def pooled_convolution() -> PooledConvolution:
    """The one that is fast on this backend."""
    return cpu_pooled_convolution if devices.on_cpu() else lax_pooled_convolution


def lax_pooled_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """XLA's own convolution, which is cuDNN's on GPU, and four strided views of it.

    On GPU the gradient of `reduce_window` has no deterministic implementation.
    """
    height, width = _live(x)
    y = lax.conv_general_dilated(
        x[:, : height + 2, : width + 2],
        kernel,
        window_strides=(1, 1),
        padding="VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    y = y.reshape((x.shape[0], height // 2, 2, width // 2, 2, kernel.shape[-1]))
    return largest(*(y[:, :, row, :, column] for row in range(2) for column in range(2)))


def cpu_pooled_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution as matrix products over patches that are built for them.

    XLA's own gradients of a convolution are many times slower inside a loop on CPU. With
    as little arithmetic as one input channel gives, memory decides; with more, Winograd's
    algorithm along the rows halves the arithmetic. Computes in float32 whatever it is
    given, for lack of anything faster, and returns the dtype of `x`.
    """
    convolve = _few_channels if x.shape[-1] < 8 else _winograd
    return convolve(x.astype(jnp.float32), kernel.astype(jnp.float32)).astype(x.dtype)


def _few_channels(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """One product for each of the four outputs that a pool looks at."""
    height, width = _live(x)

    def patches(row: int, column: int) -> jax.Array:
        views = [
            x[:, row + r : row + r + height - 1 : 2, column + c : column + c + width - 1 : 2]
            for r in range(3)
            for c in range(3)
        ]
        return jnp.concatenate(views, axis=-1)

    taps = kernel.reshape((-1, kernel.shape[-1]))
    return largest(
        *(_product(patches(row, column), taps) for row in range(2) for column in range(2))
    )


def _winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Winograd's algorithm along the rows, patches along the columns.

    Exact to about 3e-6 of the largest output. Where the exact output is 0 (a blank place,
    with biases still 0) rounding decides whether a ReLU after it passes a gradient.
    """
    height, width = _live(x)
    tile = 4 if height % 4 == 0 else 2
    matrices = _WINOGRAD[tile]

    rows = [x[:, row : row + height - tile + 1 : tile] for row in range(tile + 2)]
    # Without the barrier XLA computes the sums anew for each of the three columns.
    data = lax.optimization_barrier(jnp.stack([_weighted_sum(w, rows) for w in matrices["inputs"]]))
    patches = jnp.concatenate([data[..., c : c + width, :] for c in range(3)], axis=-1)
    taps = jnp.array(matrices["taps"], x.dtype) @ kernel.reshape((3, -1))
    taps = taps.reshape((tile + 2, patches.shape[-1], -1))
    products = _product(patches, taps)

    products = products.reshape((*products.shape[:-2], width // 2, 2, products.shape[-1]))
    terms = [products[k] for k in range(tile + 2)]
    outputs = [_weighted_sum(w, terms) for w in matrices["outputs"]]
    pooled = [
        largest(*(row[:, :, :, column] for row in pair for column in range(2)))
        for pair in zip(outputs[::2], outputs[1::2], strict=True)
    ]
    return jnp.stack(pooled, axis=2).reshape((x.shape[0], height // 2, width // 2, -1))


def _live(x: jax.Array) -> tuple[int, int]:
    """How many rows and columns of the convolution's output the pool reads."""
    return (x.shape[1] - 2) // 2 * 2, (x.shape[2] - 2) // 2 * 2


def _weighted_sum(weights: Sequence[float], arrays: Sequence[jax.Array]) -> jax.Array:
    terms = [
        array if weight == 1 else array * np.float32(weight)
        for weight, array in zip(weights, arrays, strict=True)
        if weight
    ]
    return sum(terms[1:], terms[0])


@jax.custom_vjp
def largest(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> jax.Array:
    """The elementwise maximum. Its gradient goes to the first of equals, as in Keras.

    Backwards it reads one byte for each output instead of all four inputs again.
    """
    return jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))


def _largest_forward(
    a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array
) -> tuple[jax.Array, jax.Array]:
    maximum = largest(a, b, c, d)
    which = jnp.where(a == maximum, 0, jnp.where(b == maximum, 1, jnp.where(c == maximum, 2, 3)))
    return maximum, which.astype(jnp.int8)


def _largest_backward(which: jax.Array, gradient: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(jnp.where(which == i, gradient, jnp.zeros_like(gradient)) for i in range(4))


largest.defvjp(_largest_forward, _largest_backward)


def _product(patches: jax.Array, taps: jax.Array) -> jax.Array:
    """Patches [..., n] times taps [n, out], or [k, ..., n] times [k, n, out] for each k."""
    flat = _matmul(patches.reshape((*taps.shape[:-2], -1, taps.shape[-2])), taps)
    return flat.reshape((*patches.shape[:-1], taps.shape[-1]))


@jax.custom_vjp
def _matmul(x: jax.Array, w: jax.Array) -> jax.Array:
    return x @ w


def _matmul_forward(x: jax.Array, w: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return x @ w, (x, w)


def _matmul_backward(
    saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, w = saved
    # XLA on CPU multiplies by a transposed copy up to three times faster than by a
    # transposed view, which the barrier keeps it from turning the copy back into.
    return gradient @ w.mT, lax.optimization_barrier(x.mT) @ gradient


_matmul.defvjp(_matmul_forward, _matmul_backward)
