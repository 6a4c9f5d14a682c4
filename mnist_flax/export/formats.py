"""Converts the networks of a trained run to files for other programs, and runs such files.

All formats compute in float32. StableHLO and ONNX files take `images`, uint8 [N, 28, 28, 1], white
on black, crop and scale them, and return `probabilities`, float32 [N, 10], the mean of several
networks. Safetensors files hold the parameters alone. `html.py` makes web pages.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import traverse_util
from jax import export
from jax.typing import ArrayLike

from mnist_flax.core import model
from mnist_flax.core.augment import center_crop, to_float
from mnist_flax.core.config import IMAGE_SHAPE, Config, UserError
from mnist_flax.core.conv_pool import ConvPool, conv_pool_lax
from mnist_flax.engine.cli import import_extra
from mnist_flax.engine.trained_model import TrainedModel
from mnist_flax.export.html import load_html, to_html

LAYOUT = (
    "Conv_i.kernel is [height, width, in, out], Dense_i.kernel is [in, out]; with several networks "
    "each name begins with its seed, as in seed_0.Conv_0.kernel."
)

Layer = dict[str, jax.Array]  # the kernel and the bias
Predictor = Callable[[np.ndarray], np.ndarray]  # uint8 [N, 28, 28, 1] to probabilities [N, 10]


def to_stablehlo(trained: TrainedModel) -> bytes:
    """A program serialized by `jax.export`, for any number of images on CPU, CUDA and TPU."""
    networks = list(_params_by_prefix(trained).values())
    program = jax.jit(lambda x: _probabilities(networks, x, trained.config, conv_pool_lax))
    images = jax.ShapeDtypeStruct(export.symbolic_shape("N, 28, 28, 1"), jnp.uint8)
    return bytes(export.export(program, platforms=("cpu", "cuda", "tpu"))(images).serialize())


def load_stablehlo(path: Path) -> Predictor:
    """Loads a StableHLO file with nothing but JAX."""
    program = jax.jit(export.deserialize(bytearray(path.read_bytes())).call)
    return lambda images: np.asarray(program(images))


@functools.partial(jax.jit, static_argnames=("config", "conv_pool"))
def _probabilities(
    networks: list[model.Params], images: jax.Array, config: Config, conv_pool: ConvPool | None
) -> jax.Array:
    """The mean probabilities of the networks, float32 [N, 10], for uint8 [N, 28, 28, 1]."""
    cropped = to_float(center_crop(images, config))
    logits = [model.apply(params, cropped, conv_pool=conv_pool) for params in networks]
    return jax.nn.softmax(jnp.stack(logits)).mean(axis=0)


class OnnxGraph:
    """An ONNX graph under construction, in which each operator has one output."""

    def __init__(self) -> None:
        self.onnx = import_extra("onnx", "export")
        self.nodes: list[object] = []
        self.constants: list[object] = []

    def add(self, operator: str, name: str, *inputs: str | ArrayLike, **attributes: object) -> str:
        """Appends an operator; returns its name, which is also that of its output.

        Inputs are names of other outputs, or arrays, which become constants.
        """
        names = [x if isinstance(x, str) else f"{name}/{index}" for index, x in enumerate(inputs)]
        for constant, value in zip(names, inputs, strict=True):
            if not isinstance(value, str):
                tensor = self.onnx.numpy_helper.from_array(np.asarray(value), constant)
                self.constants.append(tensor)
        node = self.onnx.helper.make_node(operator, names, [name], name=name, **attributes)
        self.nodes.append(node)
        return name

    def serialize(self, output: str) -> bytes:
        """The complete graph, checked: uint8 `images` to a float32 output per class."""
        helper, types = self.onnx.helper, self.onnx.TensorProto
        images = helper.make_tensor_value_info("images", types.UINT8, ["N", *IMAGE_SHAPE])
        result = helper.make_tensor_value_info(output, types.FLOAT, ["N", model.NUM_CLASSES])
        graph = helper.make_graph(self.nodes, "mnist_flax", [images], [result], self.constants)
        # The oldest versions that have every operator used here; newer readers accept them.
        versions = {"opset_imports": [helper.make_opsetid("", 17)], "ir_version": 8}
        proto = helper.make_model(graph, producer_name="mnist_flax", **versions)
        self.onnx.checker.check_model(proto, full_check=True)
        return proto.SerializeToString()


def to_onnx(trained: TrainedModel) -> bytes:
    """A graph of standard operators, for any number of images."""
    if set(trained.params) != set(model.LAYERS):
        raise UserError("ONNX is written only for a network with the layers of CNN")
    graph = OnnxGraph()
    pixels = _add_preprocessing(graph, trained.config.input_size)
    networks = _params_by_prefix(trained).items()
    outputs = [_add_network(graph, pixels, prefix, params) for prefix, params in networks]
    return graph.serialize(graph.add("Mean", "probabilities", *outputs))


def _add_preprocessing(graph: OnnxGraph, input_size: int) -> str:
    """Adds the crop and the scaling of `images`: float32 [N, 1, size, size] from 0 to 1."""
    start = (IMAGE_SHAPE[0] + 2 - input_size) // 2  # in the image with its border
    stop = start + model.visible_size(input_size)
    floats = graph.add("Cast", "float", "images", to=graph.onnx.TensorProto.FLOAT)
    scaled = graph.add("Div", "scaled", floats, np.array(255, np.float32))
    channels_first = graph.add("Transpose", "channels_first", scaled, perm=[0, 3, 1, 2])
    border = np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)
    bordered = graph.add("Pad", "bordered", channels_first, border)
    starts, stops, axes = np.array([[start, start], [stop, stop], [2, 3]], np.int64)
    return graph.add("Slice", "visible", bordered, starts, stops, axes)


def _add_network(graph: OnnxGraph, pixels: str, prefix: str, params: model.Params) -> str:
    """Adds the layers of a network: probabilities [N, 10]."""
    *convolutions, first, second, last = model.LAYERS
    features = pixels
    for layer in convolutions:
        features = _add_conv_block(graph, features, prefix + layer, params[layer])
    mean = graph.add("GlobalAveragePool", f"{prefix}mean", features)
    hidden = graph.add("Flatten", f"{prefix}flat", mean)
    for layer in (first, second):
        dense = _add_dense(graph, hidden, prefix + layer, params[layer])
        hidden = graph.add("Relu", f"{prefix}{layer}/relu", dense)
    logits = _add_dense(graph, hidden, prefix + last, params[last])
    return graph.add("Softmax", f"{prefix}softmax", logits, axis=1)


def _add_conv_block(graph: OnnxGraph, features: str, name: str, layer: Layer) -> str:
    """Adds a 3x3 convolution, ReLU and 2x2 max-pooling: [N, channels, height, width]."""
    kernel = np.asarray(layer["kernel"]).transpose((3, 2, 0, 1))
    conv = graph.add("Conv", name, features, kernel, layer["bias"], kernel_shape=[3, 3])
    relu = graph.add("Relu", f"{name}/relu", conv)
    return graph.add("MaxPool", f"{name}/pooled", relu, kernel_shape=[2, 2], strides=[2, 2])


def _add_dense(graph: OnnxGraph, inputs: str, name: str, layer: Layer) -> str:
    """Adds a dense layer: [N, units]."""
    return graph.add("Gemm", name, inputs, layer["kernel"], layer["bias"])


def load_onnx(path: Path) -> Predictor:
    """Loads an ONNX file with ONNX Runtime."""
    runtime = import_extra("onnxruntime", "export")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["probabilities"], {"images": images})[0]


def to_safetensors(trained: TrainedModel) -> bytes:
    """The parameters by name; the metadata describe the layout."""
    tensors = {
        f"{prefix}{name}": np.ascontiguousarray(value)
        for prefix, params in _params_by_prefix(trained).items()
        for name, value in traverse_util.flatten_dict(params, sep=".").items()
    }
    # One entry, because several are written in an order that varies.
    about = json.dumps({"input_size": trained.config.input_size, "layout": LAYOUT})
    return safetensors.numpy.save(tensors, {"about": about})


def load_safetensors(path: Path) -> Predictor:
    """Loads the parameters in a safetensors file into this package's network."""
    with safetensors.safe_open(path, "flax") as file:
        config = Config(input_size=json.loads(file.metadata()["about"])["input_size"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no dict)
    tree = traverse_util.unflatten_dict(tensors, sep=".")
    networks = [tree] if "Conv_0" in tree else list(tree.values())
    return lambda images: np.asarray(_probabilities(networks, jnp.asarray(images), config, None))


class Format(NamedTuple):
    """How a file is written, and how it is loaded and verified."""

    convert: Callable[[TrainedModel], bytes]
    load: Callable[[Path], Predictor | None]
    """Returns None if this machine has nothing that runs the file."""
    tolerance: float = 1e-5
    """The largest difference of a probability from the checkpoint's."""
    max_images: int | None = None
    """How many images verify it. Default: all test images."""
    first_only: bool = False
    """Whether it holds only the first of several networks."""


FORMATS = {
    "stablehlo": Format(to_stablehlo, load_stablehlo),
    "onnx": Format(to_onnx, load_onnx),
    "safetensors": Format(to_safetensors, load_safetensors),
    "html": Format(to_html, load_html, tolerance=1e-4, max_images=200, first_only=True),
}


def _params_by_prefix(trained: TrainedModel) -> dict[str, model.Params]:
    """The parameters of each network by the prefix of their names: empty for a single network."""
    prefixes = [f"seed_{seed}." for seed in trained.seeds] if len(trained.seeds) > 1 else [""]
    return {prefix: trained.select_seed(index).params for index, prefix in enumerate(prefixes)}
