"""The page of the format `html`: its JavaScript agrees with Python, and it needs nothing else."""

import base64
import dataclasses
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy.interpolate import CubicSpline

from experiments.handwriting import STROKES
from mnist_flax import demo, export, load
from mnist_flax.core.config import UserError
from mnist_flax.evaluate import pad
from mnist_flax.evaluate.saliency import saliency_map
from mnist_flax.export import formats, html
from mnist_flax.predict import command, preprocess
from mnist_flax.predict.preprocess import to_mnist
from tests.conftest import random_network, with_biases

ASSETS = Path(pad.__file__).with_name("assets")
SIDE, PEN = 280, 21  # of a drawing, in pixels


@pytest.fixture(scope="module")
def javascript():
    """Runs a script after the files of `assets/`, with `data` as its argument."""
    program = html.find_javascript()
    if program is None:
        pytest.skip("there is neither Node nor a browser")

    def evaluate(names, expression, data):
        sources = [(ASSETS / name).read_text(encoding="utf-8") for name in names]
        script = f"const data = {json.dumps(data)};\nprint(JSON.stringify({expression}));"
        return json.loads(html.run_javascript(program, "\n".join([*sources, script])))

    return evaluate


BYTES = "((text) => Uint8Array.from(atob(text), (char) => char.charCodeAt(0)))"


def encode(image):
    return base64.b64encode(np.asarray(image, np.uint8).tobytes()).decode()


@pytest.fixture(params=["small", 28, 30])
def trained(request, small_run):
    return load(small_run) if request.param == "small" else random_network(request.param)


def test_javascript_network_agrees_with_python(trained, digits, javascript):
    assert pad.has_pad(trained)
    images = digits.test[0][:20]
    expression = f"""data.images.map({BYTES}).map((pixels) => {{
        const network = mnistNetwork.load(data.network);
        const answer = mnistNetwork.run(network, pixels);
        const {{ size, maps }} = mnistNetwork.featureMaps(answer);
        const saliency = mnistNetwork.saliency(network, answer);
        return [answer.probabilities, [...saliency], size, maps.map((map) => [...map])];
    }})"""
    data = {"network": pad.encode_network(trained), "images": [encode(x) for x in images]}
    results = javascript(["network.js"], expression, data)
    probabilities, saliency, sizes, maps = zip(*results, strict=True)
    np.testing.assert_allclose(probabilities, trained.probabilities(images), atol=1e-5)
    expected = np.asarray(saliency_map(trained.params, images, trained.config))
    # Where convolutions of black pixels are equal up to rounding, either may be the maximum.
    assert np.abs(np.array(saliency).reshape(expected.shape) - expected).mean() < 1e-3
    side = 28 if trained.config.input_size == 30 else 20  # of 28 pixels the network sees 22
    assert set(sizes) == {side}
    assert np.shape(maps) == (20, trained.config.channels, side**2)
    assert np.max(maps, axis=(1, 2)) == pytest.approx(np.ones(20))


def test_first_feature_map_is_that_of_its_filter(small_run, digits, javascript):
    trained, image = load(small_run), digits.test[0][0]
    expression = f"""mnistNetwork.featureMaps(
        mnistNetwork.run(mnistNetwork.load(data.network), {BYTES}(data.image))
    ).maps.map((map) => [...map])"""
    data = {"network": pad.encode_network(trained), "image": encode(image)}
    maps = np.array(javascript(["network.js"], expression, data)).reshape((64, 20, 20))
    layer = {name: np.asarray(x) for name, x in trained.params["Conv_0"].items()}
    pixels = image[3:25, 3:25, 0] / 255
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (3, 3))
    expected = np.einsum("yxij,ijc->cyx", windows, layer["kernel"][:, :, 0])
    expected = np.maximum(expected + layer["bias"][:, None, None], 0)
    np.testing.assert_allclose(maps, expected / expected.max(), atol=1e-5)


def draw(strokes, rng, pen=PEN):
    """A digit as it is drawn on the pad: the ink of each pixel. Its curves have smooth edges."""
    zoom = 4
    image = Image.new("L", (SIDE * zoom, SIDE * zoom))
    pencil = ImageDraw.Draw(image)
    size = rng.uniform(0.6, 1.15, 2)
    # Near the border, `predict` takes a stroke for the background.
    offset = 40 + rng.uniform(0, 1, 2) * (SIDE - 80 - size * (100, 150)).clip(0)
    for stroke in strokes.split(";"):
        points = np.array([point.split(",") for point in stroke.split()], float)
        points += rng.normal(0, 2, points.shape)
        curve = CubicSpline(np.arange(len(points)), points)(np.linspace(0, len(points) - 1, 100))
        for x, y in zoom * (curve * size + offset):
            radius = zoom * pen / 2
            pencil.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX))


TO_MNIST = f"""data.map({BYTES}).map((pixels) => {{
    const image = mnistPreprocess.toMnist({{ pixels, width: {SIDE}, height: {SIDE} }});
    return image && [...image];
}})"""


def test_drawings_are_converted_as_predict_converts_photos(javascript):
    rng = np.random.default_rng(0)
    variants = [line[2:] for line in STROKES.splitlines() if line[0].isdecimal()]
    drawings = [
        draw(variants[index % len(variants)], rng, PEN if index < 80 else 5) for index in range(100)
    ]
    results = javascript(["preprocess.js"], TO_MNIST, [encode(x) for x in drawings])
    expected = np.stack([to_mnist(Image.fromarray(255 - x))[..., 0] for x in drawings])
    differences = np.abs(np.reshape(results, expected.shape) - expected.astype(float))
    assert differences.mean() < 1
    # In a few, the center of mass is rounded to another pixel.
    assert np.median(differences.mean(axis=(1, 2))) < 0.1


def test_blank_drawings_and_dots_are_refused_by_both(javascript):
    def shape(*box):
        image = Image.new("L", (SIDE, SIDE))
        ImageDraw.Draw(image).ellipse(box, fill=255)
        return np.asarray(image)

    no_digits = [np.zeros((SIDE, SIDE)), shape(50, 50, 60, 60), shape(100, 100, 160, 155)]
    zero, one = shape(80, 50, 180, 230) - shape(100, 70, 160, 210), shape(130, 40, 155, 200)
    drawings = [*no_digits, zero, one]
    results = javascript(["preprocess.js"], TO_MNIST, [encode(x) for x in drawings])
    assert [result is None for result in results] == [True, True, True, False, False]
    for drawing in no_digits:
        with pytest.raises(UserError, match="no digit found"):
            to_mnist(Image.fromarray(255 - np.asarray(drawing, np.uint8)))


def test_specks_and_distant_strokes_do_not_belong_to_a_digit(javascript):
    stem, near, distant, speck = np.zeros((4, SIDE, SIDE))
    stem[80:200, 100:121] = near[80:100, 140:180] = distant[80:200, 240:260] = 255
    speck[130:133, 130:133] = 255
    drawings = [stem + near, stem + near + distant + speck, stem]
    results = javascript(["preprocess.js"], TO_MNIST, [encode(x) for x in drawings])
    assert results[0] == results[1] != results[2]


def test_constants_are_those_of_python():
    sources = {path.name: path.read_text(encoding="utf-8") for path in ASSETS.glob("*.js")}
    constants = {
        (name, constant): eval(value)
        for name, text in sources.items()
        for constant, value in re.findall(r"const ([A-Z_]+) = ([\d.* ]+);", text)
    }
    for name in ("SIDE", "BOX", "MIN_STROKE", "REACH", "MIN_LENGTH", "MAX_FILL"):
        assert constants["preprocess.js", name] == getattr(preprocess, name), name
    assert constants["pad.js", "SIDE"] == SIDE
    assert constants["pad.js", "PEN"] * SIDE == PEN
    assert constants["pad.js", "LOW_CONFIDENCE"] == command.LOW_CONFIDENCE
    assert constants["upload.js", "MAX_BYTES"] == demo.MAX_BYTES


def test_page_is_small_and_refers_to_no_other_file(small_run):
    page = html.to_html(load(small_run)).decode()
    assert len(page) < 700_000
    text = re.sub(r'"weights": "[^"]*"', "", page)
    assert len(text) < 60_000
    assert not re.findall(r'https?:|\b(?:src|href)="(?!data:)|url\(|@import|\bimport\b', text)
    assert not re.findall(r"\bfetch\(", text)
    assert str(small_run.parent) not in page
    assert "81,066 parameters" in page
    assert "scikit-learn's digits" in text.replace("&#39;", "'")


def test_of_several_networks_the_page_holds_the_first_and_says_so(small_run):
    trained = load(small_run)
    text = pad.render_pad(trained)
    assert "networks of this run" not in text
    several = type(trained)(
        type(trained.config)(dataset="digits", seed=5, num_seeds=2),
        trained.step,
        jax.tree.map(lambda leaf: jnp.stack([leaf, leaf + 1]), trained.params),
    )
    text = pad.render_pad(several)
    assert "Of the 2 networks of this run, this is the first (seed 5)" in text
    assert pad.encode_network(several) == pad.encode_network(trained)


def test_of_another_network_or_other_images_there_is_no_page(small_run):
    trained = load(small_run)
    layers = trained.params | {"Dense_3": trained.params["Dense_2"]}
    clothes = dataclasses.replace(trained.config, dataset="fashion_mnist")
    for config, params in ((trained.config, layers), (clothes, trained.params)):
        other = type(trained)(config, trained.step, params)
        assert not pad.has_pad(other)
        with pytest.raises(UserError, match="the page is only for digits"):
            pad.render_drawing_page(other)
    with pytest.raises(UserError, match="ONNX is written only for a network with the layers"):
        formats.to_onnx(type(trained)(trained.config, trained.step, layers))


@pytest.mark.parametrize("program", [None, "broken", "another"])
def test_page_that_nothing_can_run_is_written_and_called_unverified(
    program, small_run, tmp_path, monkeypatch, capsys
):
    if program:
        node = tmp_path / "bin" / "node"
        node.parent.mkdir()
        node.write_text("#!/bin/sh\n" + ("exit 1" if program == "broken" else "echo hello"))
        node.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    output = tmp_path / "page.html"
    arguments = ("--workdir", str(small_run), "--format", "html", "--output", str(output))
    assert export.main(arguments) == 0
    captured = capsys.readouterr()
    message = "the page was not verified: this machine has neither Node nor Chromium"
    assert captured.err.splitlines() == [message]
    assert "within" not in captured.out
    assert output.stat().st_size > 400_000
    assert json.loads(Path(f"{output}.card.json").read_text())["verified"] is None
    assert "Not verified" in Path(f"{output}.card.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("names", ["NODE", "BROWSERS"])
def test_page_is_verified_by_node_and_by_a_browser(names, small_run, digits, tmp_path, monkeypatch):
    other = {"NODE": "BROWSERS", "BROWSERS": "NODE"}[names]
    monkeypatch.setattr(html, other, ())
    if html.find_javascript() is None:
        pytest.skip("not on this machine")
    trained = load(small_run)
    (tmp_path / "page.html").write_bytes(html.to_html(trained))
    predict = html.load_html(tmp_path / "page.html")
    assert predict
    images = digits.test[0][:30]
    np.testing.assert_allclose(predict(images), trained.probabilities(images), atol=1e-5)


def test_biases_and_a_blank_image_are_no_special_case(small_run, javascript):
    trained = load(small_run)
    trained = type(trained)(trained.config, trained.step, with_biases(trained.params))
    blank = np.zeros((1, 28, 28, 1), np.uint8)
    expression = f"mnistNetwork.run(mnistNetwork.load(data[0]), {BYTES}(data[1])).probabilities"
    data = [pad.encode_network(trained), encode(blank)]
    result = javascript(["network.js"], expression, data)
    np.testing.assert_allclose([result], trained.probabilities(blank), atol=1e-5)


def test_the_page_in_the_documentation_has_the_pretrained_network():
    page = Path(__file__).parents[2] / "docs" / "digits.html"
    text = page.read_text(encoding="utf-8")
    assert len(text) < 700_000
    assert text == pad.render_drawing_page(load())  # else run `python docs/generate.py`
