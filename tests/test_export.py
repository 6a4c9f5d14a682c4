"""Exported files, run by others than this package."""

import json

import jax
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
    make, read = formats.FORMATS[kind]
    (tmp_path / "file").write_bytes(make(trained))
    answer = read(tmp_path / "file")
    for count in (1, 7, 360):
        images = digits.test[0][:count]
        np.testing.assert_allclose(answer(images), trained.probabilities(images), atol=1e-5)


def test_the_onnx_graph_is_plain_and_takes_any_number_of_images(small_run, tmp_path):
    model = onnx.load_from_string(formats.to_onnx(load(small_run)))
    onnx.checker.check_model(model, full_check=True)
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("Conv") == operators.count("MaxPool") == operators.count("Gemm") == 3
    assert len(operators) < 25
    (images,) = model.graph.input
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert images.type.tensor_type.shape.dim[0].dim_param == "N"


def test_the_keras_tutorials_network_takes_the_exported_weights(
    small_run, tmp_path, digits, monkeypatch
):
    """Written from the names and the layout in the file's metadata, and the tutorial, alone."""
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    import keras
    from keras import layers

    (tmp_path / "weights").write_bytes(formats.to_safetensors(load(small_run)))
    with safe_open(tmp_path / "weights", "np") as file:
        names = file.keys()
        weights = {name: file.get_tensor(name) for name in names}
        assert file.metadata()["layout"] == formats.LAYOUT
        assert json.loads(file.metadata()["config"]) == {"input_size": 22}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        blocks = [
            layer
            for index in range(3)
            for layer in (
                layers.Conv2D(64, 3, activation="relu", name=f"Conv_{index}"),
                layers.MaxPooling2D(2),
            )
        ]
        head = [
            layers.Flatten(),
            layers.Dense(64, activation="relu", name="Dense_0"),
            layers.Dense(32, activation="relu", name="Dense_1"),
            layers.Dense(10, activation="softmax", name="Dense_2"),
        ]
        network = keras.Sequential([keras.Input((22, 22, 1)), *blocks, *head])
        for layer in network.layers:
            if layer.weights:
                layer.set_weights([weights.pop(f"{layer.name}.{k}") for k in ("kernel", "bias")])
        assert not weights
        images = digits.test[0][:50]
        found = np.asarray(network(images[:, 3:25, 3:25] / np.float32(255)))
    np.testing.assert_allclose(found, load(small_run).probabilities(images), atol=1e-5)


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
    make, read = formats.FORMATS["onnx"]
    wrong = lambda path: lambda images: read(path)(images)[:, ::-1]  # noqa: E731
    monkeypatch.setitem(formats.FORMATS, "onnx", (make, wrong))
    output = tmp_path / "model.onnx"
    output.write_text("an earlier one")
    with pytest.raises(RuntimeError, match="otherwise than the checkpoint"):
        export.main(("--workdir", str(small_run), "--format", "onnx", "--output", str(output)))
    assert list(tmp_path.iterdir()) == [output]
    assert output.read_text() == "an earlier one"


def test_mistakes_are_told_in_one_line(small_run, tmp_path, capsys, monkeypatch):
    where = ("--workdir", str(small_run))
    (tmp_path / "file").touch()
    cases = {
        (): "--workdir is missing",
        where: "--output is missing",
        **{
            (*where, "--output", str(output), "--format", kind): "cannot write"
            for kind in formats.FORMATS
            for output in (tmp_path / "file" / "model", tmp_path)
        },
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
        formats.to_onnx(load(small_run))
