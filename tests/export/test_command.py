"""Exported files, run by other programs than this package."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest
from safetensors import safe_open

from mnist_flax import export, load, run
from mnist_flax.data.download import DataUnavailable
from mnist_flax.export import command, formats, html
from tests.conftest import SMALL, random_network

onnx = pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def two_seeds_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("two_seeds") / "run"
    flags = ("--num-seeds", "2", "--input-size", "28", "--epochs", "1", "--no-report")
    assert run.main(["--workdir", str(workdir), *SMALL, *flags]) == 0
    return workdir


@pytest.fixture(
    scope="module",
    params=[
        "one",
        30,
        *(pytest.param(x, marks=pytest.mark.nightly) for x in ("two", "one of two")),
    ],
)
def trained(request, small_run):
    if request.param == "one":
        return load(small_run)
    if request.param == 30:
        return random_network(input_size=30)
    two_seeds_run = request.getfixturevalue("two_seeds_run")
    return load(two_seeds_run, seed_index=1 if request.param == "one of two" else None)


@pytest.fixture(params=formats.FORMATS)
def kind(request):
    if request.param == "html" and html.find_javascript() is None:
        pytest.skip("there is neither Node nor a browser")
    return request.param


def test_exported_file_gives_the_probabilities_of_the_checkpoint(kind, trained, digits, tmp_path):
    file_format = formats.FORMATS[kind]
    (tmp_path / "file").write_bytes(file_format.convert(trained))
    predict = file_format.load(tmp_path / "file")
    assert predict
    expected = trained.select_seed(0) if file_format.first_only else trained
    for count in (1, 7, 360):
        images = digits.test[0][:count]
        np.testing.assert_allclose(predict(images), expected.probabilities(images), atol=1e-5)


def test_a_network_in_bfloat16_is_exported_in_float32(tmp_path, digits):
    trained = random_network(22)
    config = dataclasses.replace(trained.config, precision="bfloat16")
    trained = dataclasses.replace(trained, config=config)
    (tmp_path / "file").write_bytes(formats.to_safetensors(trained))
    card = command._make_card("file", "safetensors", trained, digits, tmp_path / "file")
    assert card["verified"] is not None
    assert card["config"]["precision"] == "bfloat16"


def test_onnx_graph_has_few_operators_and_a_variable_batch_size(small_run):
    model = onnx.load_from_string(formats.to_onnx(load(small_run)))
    onnx.checker.check_model(model, full_check=True)
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("Conv") == operators.count("MaxPool") == operators.count("Gemm") == 3
    assert len(operators) < 25
    (images,) = model.graph.input
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert images.type.tensor_type.shape.dim[0].dim_param == "N"


@pytest.mark.nightly
def test_keras_tutorial_network_loads_the_exported_weights(
    small_run, tmp_path, digits, monkeypatch
):
    """Uses nothing but the tutorial and the names and the layout in the file."""
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    import keras
    from keras import layers

    (tmp_path / "weights").write_bytes(formats.to_safetensors(load(small_run)))
    with safe_open(tmp_path / "weights", "np") as file:
        names = file.keys()
        weights = {name: file.get_tensor(name) for name in names}
        about = {"input_size": 22, "layout": formats.LAYOUT}
        assert file.metadata() == {"about": json.dumps(about)}
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
        probabilities = np.asarray(network(images[:, 3:25, 3:25] / np.float32(255)))
    np.testing.assert_allclose(probabilities, load(small_run).probabilities(images), atol=1e-5)


def test_command_verifies_the_file_and_writes_its_card(kind, small_run, tmp_path, capsys):
    output = tmp_path / f"model.{kind}"
    arguments = ("--workdir", str(small_run), "--format", kind, "--output", str(output))
    assert export.main(arguments) == 0
    printed = capsys.readouterr().out
    card = json.loads(output.with_name(f"{output.name}.card.json").read_text())
    accuracy = json.loads((small_run / "summary.json").read_text())["test_accuracy"]
    assert card["accuracy"] == accuracy
    assert card["parameters"] == 81_066
    assert card["verified"]["examples"] == (200 if kind == "html" else 360)
    assert card["verified"]["largest_difference"] < 1e-5
    assert printed.startswith(f"{output}: accuracy {accuracy:.2%} on 360 digits test images, prob")
    assert printed.endswith(" on 200 of them\n") == (kind == "html")
    text = output.with_name(f"{output.name}.card.md").read_text()
    assert f"Accuracy: {accuracy:.2%} on the 360 test images of digits" in text
    assert "## Limits" in text
    assert "{" not in text


@pytest.mark.parametrize(
    "distort", [lambda x: x[:, ::-1], lambda x: x + 2e-5, lambda x: np.full_like(x, np.nan)]
)
def test_file_that_fails_verification_is_removed(distort, small_run, tmp_path, monkeypatch):
    onnx_format = formats.FORMATS["onnx"]

    def load_distorted(path):
        predict = onnx_format.load(path)
        return lambda images: distort(predict(images))  # pyright: ignore[reportOptionalCall]

    monkeypatch.setitem(formats.FORMATS, "onnx", onnx_format._replace(load=load_distorted))
    output = tmp_path / "model.onnx"
    output.write_text("an earlier file")
    with pytest.raises(RuntimeError, match="differ from the checkpoint's"):
        export.main(("--workdir", str(small_run), "--format", "onnx", "--output", str(output)))
    assert list(tmp_path.iterdir()) == [output]
    assert output.read_text() == "an earlier file"


def test_errors_are_reported_in_one_line(small_run, tmp_path, capsys, monkeypatch):
    workdir = ("--workdir", str(small_run))
    (tmp_path / "file").touch()
    cases = {
        ("--output", "m", "--seed-index", "0"): "--checkpoint and --seed-index need --workdir",
        workdir: "--output is missing",
        **{
            (*workdir, "--output", str(output), "--format", kind): "cannot write"
            for kind in formats.FORMATS
            for output in (tmp_path / "file" / "model", tmp_path)
        },
        (*workdir, "--output", "m", "--format", "pickle"): "--format",
        ("--workdir", str(tmp_path), "--output", "m"): "holds no run",
    }
    for arguments, message in cases.items():
        assert export.main(arguments) == 2, arguments
        errors = capsys.readouterr().err
        assert message in errors
        assert errors.count("\n") == 1
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setattr("mnist_flax.data.dataset.load_dataset", pytest.fail)
    assert export.main((*workdir, "--output", "m", "--format", "onnx")) == 2  # before any data
    message = "onnx is missing; in your clone, run pip install -c constraints.txt -e '.[export]'"
    assert message in capsys.readouterr().err


def test_without_a_workdir_and_mnist_the_pretrained_network_is_verified_on_digits(
    tmp_path, capsys, monkeypatch
):
    def fail(*_, **__):
        raise DataUnavailable("MNIST is not on this machine")

    monkeypatch.setattr("mnist_flax.data.dataset.load_tfds", fail)
    assert export.main(["--output", str(tmp_path / "m.safetensors")]) == 0
    assert "; verifying on scikit-learn's digits instead" in capsys.readouterr().err
    card = json.loads((tmp_path / "m.safetensors.card.json").read_text())
    assert (card["trained_on"], card["dataset"], card["examples"]) == ("mnist", "digits", 360)


@pytest.mark.slow
def test_page_of_several_networks_holds_the_first(two_seeds_run, tmp_path, capsys):
    output = tmp_path / "page.html"
    arguments = ("--workdir", str(two_seeds_run), "--format", "html", "--output", str(output))
    assert export.main(arguments) == 0
    assert "the file holds the first network alone (seed 0)" in capsys.readouterr().err
    assert json.loads(output.with_name("page.html.card.json").read_text())["seeds"] == [0]
