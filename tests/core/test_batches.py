"""Which images each step gets."""

import jax.numpy as jnp
import numpy as np
import pytest

from mnist_flax.core import batches
from mnist_flax.core.config import Config


@pytest.mark.parametrize("batch_size", [1_437, 128, 100, 479])
def test_an_epoch_uses_every_image_once(key, batch_size):
    config = Config(dataset="digits", batch_size=batch_size)
    orders = [np.asarray(batches.epoch_order(key, jnp.int32(epoch), config)) for epoch in (0, 0, 1)]
    assert orders[0].shape == (config.steps_per_epoch, batch_size)
    indices = orders[0][orders[0] < 1_437]
    assert sorted(indices) == list(range(1_437))
    np.testing.assert_array_equal(orders[0], orders[1])
    assert (orders[0] != orders[2]).any()


@pytest.mark.parametrize(
    ("epoch", "first"), [(0, [259, 774, 1370, 470, 67]), (1, [1362, 780, 1253, 143, 891])]
)
def test_an_epoch_begins_with_the_golden_images(key, epoch, first):
    """Another stream of the key, or another use of it, would change what every seed gives."""
    order = batches.epoch_order(key, jnp.int32(epoch), Config(dataset="digits"))
    assert order[0, :5].tolist() == first
