"""Predictions for image files, by the command and from Python."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mnist_flax import load, predict
from mnist_flax.core.config import UserError
from mnist_flax.engine.trained_model import validate_images
from mnist_flax.predict import command
from mnist_flax.predict.preprocess import to_mnist
from tests.predict.test_preprocess import seven


@pytest.fixture
def image_folder(tmp_path, digits):
    """A folder with three of the dataset's test images, enlarged; beside it a blank page."""
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(3):
        small = Image.fromarray(digits.test[0][index, ..., 0])
        small.resize((140, 140)).save(folder / f"{index}.png")
    Image.new("L", (90, 90), 255).save(tmp_path / "blank.png")
    return folder


def predict_json(capsys, *arguments):
    """The exit code, the predictions and the errors of the command."""
    code = predict.main([*arguments, "--json"])
    out, errors = capsys.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], errors.splitlines()


def test_folders_patterns_and_files_are_read(small_run, image_folder, capsys):
    workdir = ("--workdir", str(small_run))
    (image_folder / ".DS_Store").touch()
    code, predictions, errors = predict_json(capsys, str(image_folder), *workdir)
    assert (code, errors) == (0, [])
    assert [x["file"] for x in predictions] == [str(image_folder / f"{i}.png") for i in range(3)]
    for prediction in predictions:
        assert prediction["top"][0] == [prediction["digit"], prediction["probability"]]
        assert len(prediction["top"]) == 3
        is_low = prediction["probability"] < command.LOW_CONFIDENCE
        assert prediction["low_confidence"] == is_low
    pattern = str(image_folder / "*.png")
    all_digits = predict_json(capsys, pattern, *workdir, "--top-k", "10")[1][0]["top"]
    assert sum(probability for _, probability in all_digits) == pytest.approx(1)
    assert predict_json(capsys, str(image_folder / "1.png"), *workdir)[1] == predictions[1:2]
    (image_folder / "folder").mkdir()
    everything = predict_json(capsys, str(image_folder / "*"), *workdir)
    assert everything == (0, predictions, [])


def test_text_output_marks_low_confidence(small_run, image_folder, capsys, monkeypatch):
    arguments = (str(image_folder / "0.png"), "--workdir", str(small_run), "--top-k", "2")
    for threshold, mark in ((0.0, ""), (1.1, "  low confidence")):
        monkeypatch.setattr(command, "LOW_CONFIDENCE", threshold)
        assert predict.main(arguments) == 0
        line = capsys.readouterr().out
        pattern = rf"{re.escape(arguments[0])}: \d  \d+\.\d%{mark}  \(\d \d+\.\d%\)\n"
        assert re.fullmatch(pattern, line)


def test_unreadable_files_do_not_stop_the_others(small_run, image_folder, tmp_path, capsys):
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty").mkdir()
    code, predictions, errors = predict_json(
        capsys,
        *(str(tmp_path / name) for name in ("text.png", "blank.png", "none.png", "*.bmp", "empty")),
        str(image_folder / "2.png"),
        *("--workdir", str(small_run)),
    )
    assert code == 2
    assert len(predictions) == 1
    assert len(errors) == 5
    names = ("text", "blank", "none", "*.bmp", "a folder without")
    for error, name in zip(errors, names, strict=True):
        assert error.startswith("error: ")
        assert name in error


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names must be Unicode")
def test_control_characters_in_file_names_are_escaped(small_run, tmp_path, capsys):
    odd = [tmp_path / name for name in ("a\nb.png", "\udcff.png", "\x1b[2J.png")]
    for path in odd:
        seven().save(path, "PNG")
    missing = ["~nobody/a.png", "n" * 5_000, "a**b", str(tmp_path / "\x1b[2J")]
    assert predict.main([*missing, str(tmp_path), "--workdir", str(small_run)]) == 2
    out, errors = capsys.readouterr()
    assert out.count("\n") == len(odd)
    assert errors.count("\nerror: ") + 1 == errors.count("\n") == len(missing)
    assert (out + errors).replace("\n", "").isprintable()


def test_preprocessed_images_can_be_saved(small_run, image_folder, tmp_path, capsys):
    folder = tmp_path / "saved"
    arguments = (str(image_folder / "0.png"), "--workdir", str(small_run))
    assert predict.main([*arguments, "--save-preprocessed", str(folder)]) == 0
    assert capsys.readouterr().out.startswith(str(image_folder / "0.png"))
    (saved,) = folder.rglob("*.png")
    assert saved == folder / image_folder.relative_to(image_folder.anchor) / "0.png.png"
    with Image.open(saved) as image:
        assert image.size == (28, 28)
    (prediction,) = predict_json(capsys, str(saved), "--workdir", str(small_run))[1]
    assert prediction["probability"] == predict_json(capsys, *arguments)[1][0]["probability"]


def test_images_of_the_same_name_are_saved_separately(small_run, tmp_path, monkeypatch):
    names = ("a.png", "../a.png", "b/a.png", "b_a.png")
    (tmp_path / "cwd" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "cwd")
    for name in names:
        seven().save(name)
    options = ("--workdir", str(small_run), "--save-preprocessed", "saved")
    assert predict.main([*names, *options]) == 0
    saved = {path.relative_to("saved").as_posix() for path in Path("saved").rglob("*.png")}
    outside = (tmp_path / "a.png").relative_to(tmp_path.anchor).as_posix()
    assert saved == {"a.png.png", f"{outside}.png", "b/a.png.png", "b_a.png.png"}


def test_a_photo_is_read_before_any_training(capsys):
    photo = Path(__file__).parents[2] / "docs" / "images" / "seven.jpg"
    code, (prediction,), (note,) = predict_json(capsys, str(photo))
    assert (code, prediction["digit"], prediction["low_confidence"]) == (0, 7, False)
    assert note.startswith("using the pretrained network")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a.png", "--checkpoint", "best"), "--checkpoint and --seed-index need --workdir"),
        (("--workdir", "w"), "no images"),
        (("a.png", "--workdir", "w", "--top-k", "0"), "--top-k must be from 1 to 10"),
        (("a.png", "--workdir", "no/such/run"), "holds no run"),
        (("",), "the name of an image is empty"),
        (("small_run",), "is a run, not an image (perhaps you meant --workdir "),
    ],
)
def test_errors_are_reported_in_one_line(arguments, message, capsys, small_run):
    arguments = [str(small_run) if x == "small_run" else x for x in arguments]
    assert predict.main(arguments) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1


def test_image_in_mnists_format_is_not_changed(small_run, tmp_path):
    model = load(small_run)
    image = to_mnist(seven())
    Image.fromarray(image[..., 0]).save(tmp_path / "small.png")
    prediction = command.predict_file(model, tmp_path / "small.png")
    assert prediction["probability"] == model.probabilities(image[None]).max()


def test_array_types_give_equal_predictions(small_run, digits):
    model = load(str(small_run))
    images = digits.test[0][:5]
    predictions = model.predict(images)
    assert predictions.dtype == np.int32
    assert model.probabilities(images).shape == (5, 10)
    for same in (images[..., 0], images / 255, (images[..., 0] / 255).astype(np.float32)):
        np.testing.assert_array_equal(model.probabilities(same), model.probabilities(images))
    assert len(model.predict(images[:0])) == 0
    np.testing.assert_array_equal(predictions, model.logits(digits.test[0])[0].argmax(-1)[:5])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_images_are_rounded_to_the_nearest_level(dtype):
    levels = np.resize(np.arange(256), (1, 28, 28, 1))
    below, above = (((levels + x).clip(0, 255) / 255).astype(dtype) for x in (-0.3, 0.3))
    for images in (below, (levels / 255).astype(dtype), above):
        np.testing.assert_array_equal(validate_images(images), levels)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((28, 28), np.uint8), r"\[N, 28, 28\] or \[N, 28, 28, 1\], but are \[28, 28\]"),
        (np.zeros((2, 28, 28, 3), np.uint8), "must be"),
        (np.zeros((2, 28, 28), np.int64), "uint8 or float, but are int64"),
        (np.full((2, 28, 28), 255.0), "from 0 to 1"),
        (np.full((2, 28, 28), -0.1), "from 0 to 1"),
        (np.full((2, 28, 28), np.nan), "from 0 to 1"),
        ([["a"]], "must be"),
    ],
)
def test_invalid_arrays_are_rejected(images, message):
    with pytest.raises(UserError, match=message):
        validate_images(images)


def test_a_network_that_reads_no_digits_is_refused(small_run, tmp_path, capsys):
    shutil.copytree(small_run, tmp_path / "run")
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text().replace('"digits"', '"fashion_mnist"'))
    assert predict.main(["a.png", "--workdir", str(tmp_path / "run")]) == 2
    assert "run was trained on fashion_mnist; in Python" in capsys.readouterr().err
