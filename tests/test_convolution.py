"""Each way of computing a block against XLA's own convolution and pooling."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mnist_flax import convolution, model, train
from mnist_flax.config import Config


def plain(x, kernel):
    dimensions = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=dimensions)
    return lax.reduce_window(y, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def relative(found, expected):
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    return jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected)


@pytest.mark.parametrize("lowering", ["cpu_pooled_convolution", "lax_pooled_convolution"])
@pytest.mark.parametrize(
    "shape",
    [
        (5, 22, 22, 1),  # the three blocks of the network
        (5, 10, 10, 64),
        (5, 4, 4, 64),
        (2, 13, 11, 64),  # odd: the last row and column are dropped
        (2, 12, 9, 8),
        (1, 28, 7, 3),
    ],
)
def test_a_lowering_equals_the_plain_one(key, lowering, shape):
    x = jax.random.normal(key, shape)
    kernel = jax.random.normal(jax.random.fold_in(key, 1), (3, 3, shape[-1], 16))
    features = (shape[0], (shape[1] - 2) // 2, (shape[2] - 2) // 2, 16)
    weights = jax.random.normal(jax.random.fold_in(key, 2), features)

    @functools.partial(jax.jit, static_argnums=0)
    def with_gradients(block):
        output, gradients = jax.vjp(block, x, kernel)
        return output, *gradients(weights)

    own = with_gradients(getattr(convolution, lowering))
    for found, expected, limit in zip(own, with_gradients(plain), (1e-5, 1e-4, 1e-4), strict=True):
        assert relative(found, expected) <= limit


@pytest.mark.parametrize("tile", convolution._WINOGRAD)
def test_the_winograd_matrices_are_exact(tile):
    """In exact arithmetic they are the 3-tap filter that they stand for."""
    rng = np.random.default_rng(0)
    matrices = {k: np.array(v, np.float64) for k, v in convolution._WINOGRAD[tile].items()}
    data, taps = rng.normal(size=tile + 2), rng.normal(size=3)
    found = matrices["outputs"] @ ((matrices["taps"] @ taps) * (matrices["inputs"] @ data))
    np.testing.assert_allclose(found, np.correlate(data, taps, "valid"), rtol=1e-12, atol=1e-12)


def test_the_gradient_of_a_tie_goes_to_the_first(key):
    values = jax.random.randint(key, (4, 50), 0, 3).astype(jnp.float32)
    ones = jnp.ones(50)
    maximum, gradient = jax.vjp(convolution.largest, *values)
    np.testing.assert_array_equal(maximum, values.max(axis=0))
    expected = jax.nn.one_hot(values.argmax(axis=0), 4, axis=0)
    np.testing.assert_array_equal(jnp.stack(gradient(ones)), expected)
    assert (values == maximum[None]).sum(axis=0).max() == 4


def test_pooling_drops_an_odd_last_row_and_column():
    x = jnp.arange(49, dtype=jnp.float32).reshape((1, 7, 7, 1))
    kernel = jnp.zeros((3, 3, 1, 1)).at[0, 0].set(1)
    for pooled in (convolution.cpu_pooled_convolution, convolution.lax_pooled_convolution):
        np.testing.assert_array_equal(pooled(x, kernel)[0, :, :, 0], [[8, 10], [22, 24]])


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_lower_precision_stays_close_and_parameters_stay_float32(key, precision):
    params = model.init(key, 22)
    images = jax.random.uniform(key, (8, 22, 22, 1))
    apply = jax.jit(model.apply, static_argnames="precision")
    logits, exact = apply(params, images, precision=precision), apply(params, images)
    assert logits.dtype == jnp.float32
    assert 0 <= jnp.abs(logits - exact).max() <= 0.03 * jnp.abs(exact).max()
    assert (precision == "bfloat16") == bool((logits != exact).any())
    gradients = jax.jit(jax.grad(lambda p: apply(p, images, precision=precision).sum()))(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize(
    ("precision", "convolutions"),
    [
        ("float32", r"(precision HIGHEST>.*){2}"),
        ("tf32", r"(precision HIGH>.*){2}"),
        ("bfloat16", "xbf16>"),
    ],
)
def test_what_an_accelerator_is_given(key, platform, precision, convolutions, monkeypatch):
    """No accelerator is needed to see the program that one would be given.

    The convolutions, their gradients too, are in the precision that was asked for, and
    nothing scatters: `select_and_scatter`, as the gradient of `reduce_window`, is not
    deterministic on GPU.
    """
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    config = Config(dataset="digits", precision=precision)
    state = jax.eval_shape(functools.partial(train.create_state, config=config), key)
    batch = {
        "images": jax.ShapeDtypeStruct((128, 28, 28, 1), jnp.uint8),
        "labels": jax.ShapeDtypeStruct((128,), jnp.int32),
        "weights": jax.ShapeDtypeStruct((128,), jnp.float32),
    }
    step = jax.jit(train.train_step, static_argnames="config")
    text = step.trace(state, batch, key, config=config).lower(lowering_platforms=(platform,))
    lines = [line for line in text.as_text().splitlines() if "stablehlo.convolution" in line]
    # Forwards and by the kernel three times each; by the input not for the first block.
    assert len(lines) == 8
    for line in lines:
        assert re.search(convolutions, line), line
    assert "select_and_scatter" not in text.as_text()
