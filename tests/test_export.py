"""Exported files, run by others than this package."""

import json

import numpy as np
import pytest

from mnist_flax import export, formats, load, run
from mnist_flax.config import UserError
from tests.conftest import SMALL

onnx = pytest.importorskip("onnx")
safe_open = pytest.importorskip("safetensors").safe_open


@pytest.fixture(scope="module")
def two_seeds(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("two") / "run"
    flags = ("--num-seeds", "2", "--input-size", "28", "--epochs", "1", "--no-report")
    assert run.main(["--workdir", str(workdir), *SMALL, *flags]) == 0
    return workdir


@pytest.fixture(params=["one", "two together", "one of two"])
def trained(request, small_run, two_seeds):
    if request.param == "one":
        return load(small_run)
    return load(two_seeds, seed_index=1 if request.param == "one of two" else None)


@pytest.mark.parametrize("kind", formats.FORMATS)
def test_an_exported_file_answers_as_the_checkpoint(kind, trained, digits, tmp_path):
    write, read = formats.FORMATS[kind]
    write(trained, tmp_path / "file")
    answer = read(tmp_path / "file")
    for count in (1, 7, 360):
        images = digits.test[0][:count]
        np.testing.assert_allclose(answer(images), trained.probabilities(images), atol=1e-5)


def test_the_onnx_graph_is_plain_and_takes_any_number_of_images(small_run, tmp_path):
    formats.write_onnx(load(small_run), tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("Conv") == operators.count("MaxPool") == operators.count("Gemm") == 3
    assert len(operators) < 25
    (images,) = model.graph.input
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert images.type.tensor_type.shape.dim[0].dim_param == "N"


def test_a_network_written_from_the_documented_layout_alone_agrees(small_run, tmp_path, digits):
    """In numpy, from the names and the layout in the file's metadata, by the definition."""
    formats.write_safetensors(load(small_run), tmp_path / "weights")
    with safe_open(tmp_path / "weights", "np") as file:
        weights = {name: file.get_tensor(name).astype(float) for name in file.keys()}  # noqa: SIM118
        assert file.metadata()["layout"] == formats.LAYOUT
        assert json.loads(file.metadata()["config"]) == {"input_size": 22}
    images = digits.test[0][:20]
    x = images[:, 3:25, 3:25].astype(float) / 255
    for index in range(3):
        kernel, bias = (weights[f"Conv_{index}.{kind}"] for kind in ("kernel", "bias"))
        views = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
        x = np.maximum(np.einsum("nyxihw,hwio->nyxo", views, kernel) + bias, 0)
        height, width = (length // 2 * 2 for length in x.shape[1:3])
        x = x[:, :height, :width].reshape(len(x), height // 2, 2, width // 2, 2, -1).max((2, 4))
    x = x.reshape(len(x), -1)
    for index in range(3):
        x = x @ weights[f"Dense_{index}.kernel"] + weights[f"Dense_{index}.bias"]
        x = np.maximum(x, 0) if index < 2 else x
    chance = np.exp(x - x.max(axis=1, keepdims=True))
    chance /= chance.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(load(small_run).probabilities(images), chance, atol=1e-5)


def test_pytorch_with_the_exported_weights_agrees(small_run, tmp_path, digits):
    torch = pytest.importorskip("torch")
    formats.write_safetensors(load(small_run), tmp_path / "weights")
    with safe_open(tmp_path / "weights", "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    images = digits.test[0][:50]
    x = torch.from_numpy(images[:, 3:25, 3:25, 0]).float()[:, None] / 255
    relu, pool = torch.relu, torch.nn.functional.max_pool2d
    for index in range(3):
        kernel = weights[f"Conv_{index}.kernel"].permute(3, 2, 0, 1)
        x = pool(relu(torch.nn.functional.conv2d(x, kernel, weights[f"Conv_{index}.bias"])), 2)
    x = x.permute(0, 2, 3, 1).flatten(1)
    for index in range(3):
        x = x @ weights[f"Dense_{index}.kernel"] + weights[f"Dense_{index}.bias"]
        x = relu(x) if index < 2 else x
    np.testing.assert_allclose(
        torch.softmax(x, 1).numpy(), load(small_run).probabilities(images), atol=1e-5
    )


@pytest.mark.parametrize("kind", formats.FORMATS)
def test_the_command_writes_a_checked_file_and_its_card(kind, small_run, tmp_path, capsys):
    output = tmp_path / f"model.{kind}"
    arguments = ("--workdir", str(small_run), "--format", kind, "--output", str(output))
    assert export.main(arguments) == 0
    assert "of 360 digits test images right" in capsys.readouterr().out
    card = json.loads(output.with_name(f"{output.name}.card.json").read_text())
    accuracy = json.loads((small_run / "summary.json").read_text())["test_accuracy"]
    assert card["accuracy"] == accuracy
    assert card["parameters"] == 81_066
    assert card["checked_on"]["largest_difference"] < 1e-5
    text = output.with_name(f"{output.name}.card.md").read_text()
    assert f"Right: {accuracy:.2%} of the 360 test images of digits" in text
    assert "## Limits" in text


def test_a_file_that_answers_otherwise_is_not_left_behind(small_run, tmp_path, monkeypatch):
    write, read = formats.FORMATS["onnx"]
    wrong = lambda path: lambda images: read(path)(images)[:, ::-1]  # noqa: E731
    monkeypatch.setitem(formats.FORMATS, "onnx", (write, wrong))
    output = tmp_path / "model.onnx"
    with pytest.raises(RuntimeError, match="otherwise than the checkpoint"):
        export.main(("--workdir", str(small_run), "--format", "onnx", "--output", str(output)))
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_told_in_one_line(small_run, tmp_path, capsys, monkeypatch):
    where = ("--workdir", str(small_run))
    cases = {
        (): "--workdir is missing",
        where: "--output is missing",
        (*where, "--output", str(tmp_path / "no" / "folder.onnx")): "cannot write",
        (*where, "--output", "m", "--format", "pickle"): "--format",
        ("--workdir", str(tmp_path), "--output", "m"): "holds no run",
    }
    for arguments, complaint in cases.items():
        assert export.main(arguments) == 2, arguments
        errors = capsys.readouterr().err
        assert complaint in errors
        assert errors.count("\n") == 1
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(UserError, match=r"onnx is missing; pip install 'mnist-flax\[export\]'"):
        formats.write_onnx(load(small_run), tmp_path / "m")
