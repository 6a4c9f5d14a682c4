"""A trained run's networks as files that other programs run, and how those run them.

All formats compute in float32. StableHLO and ONNX take uint8 images [N, 28, 28, 1], white on
black, as `images`, with all scaling inside, and give float32 probabilities [N, 10]; several
networks give their mean. Safetensors hold the parameters alone.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mnist_flax import model
from mnist_flax.augment import to_unit, window
from mnist_flax.config import IMAGE_SHAPE, UserError
from mnist_flax.convolution import lax_pooled_convolution
from mnist_flax.trained import Trained

PLATFORMS = ("cpu", "cuda", "tpu")
# The oldest that has all that is used; what reads a newer one reads it too.
ONNX_OPSET, ONNX_IR = 17, 8
DENSE = ("Dense_0", "Dense_1", "Dense_2")
LAYOUT = (
    "Conv_i.kernel is [height, width, in, out], Dense_i.kernel is [in, out], after the last "
    "pooling flattened in the order height, width, channel; with several networks each name "
    "begins with its seed, as in seed_0.Conv_0.kernel."
)

Run = Callable[[np.ndarray], np.ndarray]  # uint8 [N, 28, 28, 1] to probabilities [N, 10]


def to_stablehlo(trained: Trained) -> bytes:
    """As `jax.export` serialises it, for any number of images on CPU, CUDA and TPU."""
    from jax import export

    networks = list(_networks(trained))

    def probabilities(images: jax.Array) -> jax.Array:
        seen = to_unit(window(images, trained.config))
        chances = [
            jax.nn.softmax(model.apply(params, seen, convolution=lax_pooled_convolution))
            for _, params in networks
        ]
        return jnp.stack(chances).mean(axis=0)

    shape = export.symbolic_shape("N, 28, 28, 1")
    exported = export.export(jax.jit(probabilities), platforms=PLATFORMS)(
        jax.ShapeDtypeStruct(shape, jnp.uint8)
    )
    return bytes(exported.serialize())


def read_stablehlo(path: Path) -> Run:
    """Runs such a file as anybody would, who has JAX alone."""
    from jax import export

    call = jax.jit(export.deserialize(bytearray(path.read_bytes())).call)
    return lambda images: np.asarray(call(images))


def to_onnx(trained: Trained) -> bytes:
    """For any number of images, from plain operators."""
    onnx = _needed("onnx")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    constants: dict[str, np.ndarray] = {}
    nodes: list[Any] = []

    def node(operator: str, name: str, *inputs: str | np.ndarray, **attributes: Any) -> str:
        names = []
        for index, value in enumerate(inputs):
            if isinstance(value, str):
                names.append(value)
            else:
                constants[f"{name}/{index}"] = value
                names.append(f"{name}/{index}")
        nodes.append(helper.make_node(operator, names, [name], name=name, **attributes))
        return name

    live = model.live_size(trained.config.input_size)
    start = (IMAGE_SHAPE[0] - trained.config.input_size) // 2
    x = node("Cast", "float", "images", to=onnx.TensorProto.FLOAT)
    x = node("Div", "scaled", x, np.array(255, np.float32))
    x = node("Transpose", "channels_first", x, perm=[0, 3, 1, 2])
    ends = np.array([start, start]), np.array([start + live, start + live])
    x = seen = node("Slice", "window", x, *ends, np.array([2, 3]))
    chances = []
    for prefix, params in _networks(trained):
        x = seen
        for index in range(model.NUM_BLOCKS):
            layer = {k: np.asarray(v) for k, v in params[f"Conv_{index}"].items()}
            name, kernel = f"{prefix}Conv_{index}", layer["kernel"].transpose((3, 2, 0, 1))
            x = node("Conv", name, x, kernel, layer["bias"], kernel_shape=[3, 3])
            x = node("Relu", f"{name}/relu", x)
            x = node("MaxPool", f"{name}/pooled", x, kernel_shape=[2, 2], strides=[2, 2])
        x = node("Transpose", f"{prefix}channels_last", x, perm=[0, 2, 3, 1])
        x = node("Flatten", f"{prefix}flat", x)
        for layer in DENSE:
            kernel, bias = (np.asarray(params[layer][key]) for key in ("kernel", "bias"))
            x = node("Gemm", prefix + layer, x, kernel, bias)
            x = node("Relu", f"{prefix}{layer}/relu", x) if layer != DENSE[-1] else x
        chances.append(node("Softmax", f"{prefix}softmax", x, axis=1))
    result = node("Mean", "probabilities", *chances)
    graph = helper.make_graph(
        nodes,
        "mnist_flax",
        [helper.make_tensor_value_info("images", onnx.TensorProto.UINT8, ["N", *IMAGE_SHAPE])],
        [helper.make_tensor_value_info(result, onnx.TensorProto.FLOAT, ["N", model.NUM_CLASSES])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", ONNX_OPSET)]
    made = helper.make_model(graph, opset_imports=opsets, producer_name="mnist_flax")
    made.ir_version = ONNX_IR
    onnx.checker.check_model(made, full_check=True)
    return made.SerializeToString()


def read_onnx(path: Path) -> Run:
    """Runs such a file with ONNX Runtime."""
    session = _needed("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["probabilities"], {"images": images})[0]


def to_safetensors(trained: Trained) -> bytes:
    """The parameters by name in the order of the layers; the layout is in the metadata."""
    save = _needed("safetensors.numpy").save
    tensors = {
        f"{prefix}{layer}.{name}": np.ascontiguousarray(params[layer][name])
        for prefix, params in _networks(trained)
        for layer in (*(f"Conv_{index}" for index in range(model.NUM_BLOCKS)), *DENSE)
        for name in ("kernel", "bias")
    }
    window = json.dumps({"input_size": trained.config.input_size})
    return save(tensors, {"layout": LAYOUT, "config": window})


def read_safetensors(path: Path) -> Run:
    """Runs the parameters in such a file by this package's own network."""
    tensors = _needed("safetensors.numpy").load_file(path)
    networks: dict[str, model.Params] = {}
    for name, value in tensors.items():
        *prefix, layer, kind = name.split(".")
        networks.setdefault(".".join(prefix), {}).setdefault(layer, {})[kind] = value
    with _needed("safetensors").safe_open(path, "np") as file:
        size = json.loads(file.metadata()["config"])["input_size"]
    first = (IMAGE_SHAPE[0] - size) // 2
    apply = jax.jit(lambda params, images: jax.nn.softmax(model.apply(params, to_unit(images))))

    def run(images: np.ndarray) -> np.ndarray:
        seen = images[:, first : first + size, first : first + size]
        return np.stack([apply(params, seen) for params in networks.values()]).mean(axis=0)

    return run


# How each is made, and how it is read.
FORMATS: dict[str, tuple[Callable[[Trained], bytes], Callable[[Path], Run]]] = {
    "stablehlo": (to_stablehlo, read_stablehlo),
    "onnx": (to_onnx, read_onnx),
    "safetensors": (to_safetensors, read_safetensors),
}


def _networks(trained: Trained) -> Iterator[tuple[str, model.Params]]:
    """Each network's parameters, and what its names begin with."""
    if trained.config.num_seeds == 1:
        yield "", trained.params
        return
    for index, seed in enumerate(trained.seeds):
        yield f"seed_{seed}.", trained.only(index).params


def _needed(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{name} is missing; pip install 'mnist-flax[export]'") from error
