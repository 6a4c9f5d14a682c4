"""A pad to draw digits on, in a web page, with a network inside that answers while one draws."""

import base64
from importlib import metadata

import numpy as np
from markupsafe import Markup

from mnist_flax.core import model
from mnist_flax.core.config import IMAGE_SHAPE, UserError
from mnist_flax.engine.trained_model import TrainedModel
from mnist_flax.evaluate.pages import dataset_title, render_page


def has_pad(trained: TrainedModel) -> bool:
    """Whether there is a pad for a network: it must have no other layers, and know digits."""
    return trained.reads_digits and set(trained.params) == set(model.LAYERS)


def render_pad(trained: TrainedModel, upload: bool = False) -> Markup:
    """The pad as a part of a page, with all that it needs; of several networks, the first.

    With `upload` it also takes photos, which the server of the page reads at `predict`.
    """
    page = render_page(
        "pad.html.jinja",
        upload=upload,
        channels=trained.config.channels,
        networks=len(trained.seeds),
        seed=trained.seeds[0],
        network=encode_network(trained),
    )
    return Markup(page)


def render_drawing_page(trained: TrainedModel, upload: bool = False) -> str:
    """A page with the pad alone, which needs no other file.

    Raises a UserError if there is no pad for the network.
    """
    if not has_pad(trained):
        raise UserError("the page is only for digits, and for a network with the layers of CNN")
    return render_page(
        "drawing_page.html.jinja",
        title="Draw a digit",
        upload=upload,
        pad=render_pad(trained, upload=upload),
        parameters=trained.num_parameters,
        dataset=dataset_title(trained.config.dataset),
        step=trained.step,
        version=metadata.version("mnist-flax"),
    )


def encode_network(trained: TrainedModel) -> dict[str, object]:
    """The first network for `assets/network.js`: the visible pixels, the layers, all parameters.

    The parameters are little-endian float32 in Base64: each layer's kernel and then its bias.
    """
    params = trained.first_params()
    layers, input_size = [params[name] for name in model.LAYERS], trained.config.input_size
    arrays = [np.asarray(layer[kind], "<f4") for layer in layers for kind in ("kernel", "bias")]
    return {
        "margin": (IMAGE_SHAPE[0] - input_size) // 2,
        "size": model.visible_size(input_size),
        "kernels": [list(layer["kernel"].shape) for layer in layers],
        "weights": base64.b64encode(b"".join(array.tobytes() for array in arrays)).decode(),
    }
