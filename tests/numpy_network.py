"""The network and its gradients in float64 NumPy, written out by hand."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

NUM_BLOCKS = 3

Params = dict[str, dict[str, np.ndarray]]


def logits(params: Params, images: np.ndarray) -> np.ndarray:
    """Logits [N, 10] of uint8 images [N, size, size, 1]."""
    return _forward(_to_float64(params), images)[-1]


def gradients(params: Params, images: np.ndarray, labels: np.ndarray) -> tuple[float, Params]:
    """The mean cross-entropy in nats, and its gradient."""
    params = _to_float64(params)
    *inputs, scores = _forward(params, images)
    probabilities = np.exp(scores - scores.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    rows = np.arange(len(labels))
    loss = -np.log(probabilities[rows, labels]).mean()
    slope = probabilities
    slope[rows, labels] -= 1
    slope /= len(labels)

    result = {}
    for index in reversed(range(3)):
        name, x = f"Dense_{index}", inputs[NUM_BLOCKS + 1 + index]
        result[name] = {"kernel": x.T @ slope, "bias": slope.sum(axis=0)}
        slope = slope @ params[name]["kernel"].T * (x > 0)
    pooled = inputs[NUM_BLOCKS]
    slope = slope[:, None, None] / np.prod(pooled.shape[1:3]) * (pooled > 0)
    for index in reversed(range(NUM_BLOCKS)):
        name, x = f"Conv_{index}", inputs[index]
        kernel = params[name]["kernel"]
        slope = _unpool(slope, _convolve(x, kernel))
        result[name] = {
            "kernel": np.einsum("nhwirc,nhwo->rcio", _patches(x), slope),
            "bias": slope.sum(axis=(0, 1, 2)),
        }
        if index:
            padded = np.pad(slope, ((0, 0), (2, 2), (2, 2), (0, 0)))
            flipped = kernel[::-1, ::-1].swapaxes(2, 3)
            slope = _convolve(padded, flipped) * (x > 0)
    return loss, result


def _to_float64(params: Params) -> Params:
    return {
        layer: {name: np.asarray(leaf, np.float64) for name, leaf in leaves.items()}
        for layer, leaves in params.items()
    }


def _forward(params: Params, images: np.ndarray) -> list[np.ndarray]:
    """The inputs of all layers, and the logits."""
    x = images / 255
    values = [x]
    for index in range(NUM_BLOCKS):
        layer = params[f"Conv_{index}"]
        x = np.maximum(_pool(_convolve(x, layer["kernel"])) + layer["bias"], 0)
        values.append(x)
    x = x.mean(axis=(1, 2))
    values.append(x)
    for index in range(3):
        layer = params[f"Dense_{index}"]
        x = x @ layer["kernel"] + layer["bias"]
        x = np.maximum(x, 0) if index < 2 else x
        values.append(x)
    return values


def _patches(x: np.ndarray) -> np.ndarray:
    """[N, height - 2, width - 2, channels, 3, 3]."""
    return sliding_window_view(x, (3, 3), axis=(1, 2))


def _convolve(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    return np.einsum("nhwirc,rcio->nhwo", _patches(x), kernel, optimize=True)


def _windows(x: np.ndarray) -> np.ndarray:
    """The pooling windows of even rows and columns: [N, height / 2, width / 2, channels, 4]."""
    count, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    x = x.reshape((count, height // 2, 2, width // 2, 2, channels))
    return x.transpose((0, 1, 3, 5, 2, 4)).reshape((count, height // 2, width // 2, channels, 4))


def _pool(x: np.ndarray) -> np.ndarray:
    return _windows(x).max(axis=-1)


def _unpool(slope: np.ndarray, convolved: np.ndarray) -> np.ndarray:
    """The gradient of the convolution's output: each slope goes to the first maximum."""
    first = _windows(convolved).argmax(axis=-1)
    result = np.zeros_like(convolved)
    image, row, column, channel = np.indices(slope.shape)
    result[image, 2 * row + first // 2, 2 * column + first % 2, channel] = slope
    return result
