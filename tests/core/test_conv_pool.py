"""Both implementations of a block against XLA's own convolution and pooling."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mnist_flax.core import model, train
from mnist_flax.core.config import Config
from mnist_flax.core.conv_pool import (
    WINOGRAD,
    conv_pool_lax,
    conv_pool_matmul,
    default_conv_pool,
    max4,
)
from mnist_flax.engine.environment import multiplies_bfloat16


def plain_conv_pool(x, kernel):
    dimensions = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=dimensions)
    return lax.reduce_window(y, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def relative_error(actual, expected):
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    return jnp.linalg.norm(actual - expected) / jnp.linalg.norm(expected)


@pytest.mark.parametrize("conv_pool", [conv_pool_matmul, conv_pool_lax])
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
def test_output_and_gradients_equal_the_plain_implementation(key, conv_pool, shape):
    x = jax.random.normal(key, shape)
    kernel = jax.random.normal(jax.random.fold_in(key, 1), (3, 3, shape[-1], 16))
    features = (shape[0], (shape[1] - 2) // 2, (shape[2] - 2) // 2, 16)
    weights = jax.random.normal(jax.random.fold_in(key, 2), features)

    @functools.partial(jax.jit, static_argnums=0)
    def with_gradients(function):
        output, gradients = jax.vjp(function, x, kernel)
        return output, *gradients(weights)

    actual, expected = with_gradients(conv_pool), with_gradients(plain_conv_pool)
    for ours, plain, limit in zip(actual, expected, (1e-5, 1e-4, 1e-4), strict=True):
        assert relative_error(ours, plain) <= limit


@pytest.mark.parametrize("tile", WINOGRAD)
def test_winograd_equals_the_3_tap_filter(tile):
    rng = np.random.default_rng(0)
    matrices = {k: np.array(v, np.float64) for k, v in WINOGRAD[tile].items()}
    data, taps = rng.normal(size=tile + 2), rng.normal(size=3)
    filtered = matrices["outputs"] @ ((matrices["taps"] @ taps) * (matrices["inputs"] @ data))
    np.testing.assert_allclose(filtered, np.correlate(data, taps, "valid"), rtol=1e-12, atol=1e-12)


def test_the_gradient_goes_to_the_first_of_equal_values(key):
    values = jax.random.randint(key, (4, 50), 0, 3).astype(jnp.float32)
    ones = jnp.ones(50)
    maximum, gradient = jax.vjp(max4, *values)
    np.testing.assert_array_equal(maximum, values.max(axis=0))
    expected = jax.nn.one_hot(values.argmax(axis=0), 4, axis=0)
    np.testing.assert_array_equal(jnp.stack(gradient(ones)), expected)
    assert (values == maximum[None]).sum(axis=0).max() == 4


def test_pooling_drops_an_odd_last_row_and_column():
    x = jnp.arange(49, dtype=jnp.float32).reshape((1, 7, 7, 1))
    kernel = jnp.zeros((3, 3, 1, 1)).at[0, 0].set(1)
    for conv_pool in (conv_pool_matmul, conv_pool_lax):
        np.testing.assert_array_equal(conv_pool(x, kernel)[0, :, :, 0], [[8, 10], [22, 24]])


@pytest.mark.skipif(not multiplies_bfloat16(), reason="the processor does not multiply bfloat16")
def test_on_cpu_all_products_of_a_layer_are_in_bfloat16(key):
    """XLA silently multiplies in float32 where the layout of a factor is not the right one."""
    if jax.default_backend() != "cpu":
        pytest.skip("concerns CPUs")
    x, kernel = jax.random.normal(key, (64, 10, 10, 64)), jax.random.normal(key, (3, 3, 64, 64))
    conv_pool = default_conv_pool("bfloat16")
    gradients = jax.jit(jax.grad(lambda *x: (conv_pool(*x) ** 2).sum(), argnums=(0, 1)))
    text = str(gradients.lower(x, kernel).compile().as_text())
    # Those by Winograd's six filters; the others transform the kernel and its gradient.
    products = re.findall(r" = f32\[6,\d+,\d+\]\S* dot\(%([\w.-]+), %([\w.-]+)\)", text)
    factors = [re.escape(factor) for product in products for factor in product]
    types = [re.findall(rf"%{factor} = (\w+)", text) for factor in factors]
    assert types == 6 * [["bf16"]]


@pytest.mark.nightly
@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_lower_precision_stays_close_and_its_gradients_stay_float32(key, precision):
    params = model.init(key, Config())
    images = jax.random.uniform(key, (8, 22, 22, 1))
    apply = jax.jit(model.apply, static_argnames="precision")
    logits, exact = apply(params, images, precision=precision), apply(params, images)
    assert logits.dtype == jnp.float32
    assert jnp.abs(logits - exact).max() <= 0.03 * jnp.abs(exact).max()
    assert (precision == "bfloat16") == bool((logits != exact).any())
    gradients = jax.jit(jax.grad(lambda p: apply(p, images, precision=precision).sum()))(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize(
    ("precision", "layers"),
    [("float32", "HIGHEST"), ("tf32", "HIGH"), ("bfloat16", "DEFAULT")],
)
def test_accelerator_programs_use_the_precision_and_no_scatter(
    key, platform, precision, layers, monkeypatch
):
    """Checks the lowered program, which needs no accelerator.

    `select_and_scatter`, the gradient of `reduce_window`, is not deterministic on GPU.
    """
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    config = Config(dataset="digits", precision=precision, optimizer="muon", elastic_pixels=1.0)
    state = jax.eval_shape(functools.partial(train.create_state, config=config), key)
    batch = {
        "images": jax.ShapeDtypeStruct((128, 28, 28, 1), jnp.uint8),
        "labels": jax.ShapeDtypeStruct((128,), jnp.int32),
        "weights": jax.ShapeDtypeStruct((128,), jnp.float32),
    }
    step = jax.jit(lambda *x: train.train_step(*x, config=config))  # not traced before
    with jax.default_matmul_precision("default"):  # as JAX has it, unlike these tests
        text = step.trace(state, batch, key).lower(lowering_platforms=(platform,)).as_text()
    convolutions, products = (
        [re.findall("DEFAULT|HIGHEST|HIGH", line) for line in text.splitlines() if name in line]
        for name in ("stablehlo.convolution", "stablehlo.dot_general")
    )
    # Forward and by the kernel in three layers, by the input in all but the first; of the first
    # layer there are four products.
    assert convolutions == (8 * [2 * [layers]] if platform == "tpu" else [])
    number = 3 * 3 + (4 * 2 + 2 * 3 if platform == "cuda" else 0)
    others = [product for product in products if product != 2 * [layers]]
    if precision == "float32":
        assert not others
    else:
        assert len(products) - len(others) == number
        assert all(other == 2 * ["HIGHEST"] for other in others)  # Muon, elastic distortion
    assert ("xbf16" in text) == (precision == "bfloat16" and platform == "cuda")
    assert "select_and_scatter" not in text
