"""Small pictures, for pages and for TensorBoard."""

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mnist_flax.evaluate import pictures

IMAGE = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)


def test_a_digit_is_ink_on_nothing():
    pixels = pictures.ink(IMAGE)
    address = pictures.to_data_url(pixels)
    assert address.startswith("data:image/png;base64,")
    image = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
    assert image.mode == "LA"
    np.testing.assert_array_equal(np.asarray(image), pixels)
    np.testing.assert_array_equal(pixels[..., 1], IMAGE)
    assert not pixels[..., 0].any()


def test_saliency_goes_from_dark_blue_to_yellow_and_is_nothing_at_0():
    pixels = pictures.heat(np.array([[0.0, 1e-9, 0.5, 1.0, 7.0]]), highest=1.0)[0]
    assert pixels[0, 3] == 0
    assert (pixels[1:, 3] == 255).all()
    assert [tuple(x) for x in pixels[1:, :3]] == [
        pictures.VIRIDIS[0], pictures.VIRIDIS[2], pictures.VIRIDIS[4], pictures.VIRIDIS[4]
    ]  # fmt: skip
    assert not pictures.heat(np.zeros((2, 2)), 0.0)[..., 3].any()


def test_weights_have_their_sign_as_color_and_their_size_as_strength():
    pixels = pictures.signed(np.array([-1.0, 0.0, 0.25]))
    assert pixels.tolist() == [
        [*pictures.NEGATIVE, 255],
        [*pictures.NEGATIVE, 0],
        [*pictures.POSITIVE, 128],
    ]
    assert not pictures.signed(np.zeros(3))[:, 3].any()


def test_tiles_are_in_rows_with_gaps():
    tiled = pictures.tile(np.arange(1, 4).reshape(3, 1, 1, 1), columns=2)
    assert tiled[..., 0].tolist() == [[1, 0, 2], [0, 0, 0], [3, 0, 0]]


@pytest.mark.parametrize(("channels", "height"), [(1, 3), (64, 15), (1_024, 63)])
def test_filters_are_shown_16_in_a_row_and_at_most_256(channels, height):
    kernel = np.random.default_rng(0).normal(size=(3, 3, 1, channels))
    assert pictures.filters(kernel).shape == (height, 63, 4)


def test_pictures_for_tensorboard_are_rgb_on_white():
    rows: Any = [{"label": 4, "prediction": 9, "confidence": 0.5}] * 11
    maps = np.random.default_rng(0).random((10, 28, 28))
    for pixels in (
        pictures.confusion([[3, 1], [0, 1_234]]),
        pictures.misclassified_grid(np.stack([IMAGE[..., None]] * 11), rows),
        pictures.saliency(maps, 255 * maps),
        pictures.filters_on_white(np.random.default_rng(0).normal(size=(3, 3, 1, 8))),
    ):
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3
        assert pixels.min() < 150
        assert pixels.max() == 255
