"""Reading pictures, by command and from Python."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mnist_flax import load, predict
from mnist_flax.config import UserError
from mnist_flax.trained import as_images
from tests.test_preprocess import seven


@pytest.fixture
def pictures(tmp_path, digits):
    """A folder with three of the data set's test images, enlarged, and a page that is blank."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(3):
        small = Image.fromarray(digits.test[0][index, ..., 0])
        small.resize((140, 140)).save(folder / f"{index}.png")
    Image.new("L", (90, 90), 255).save(tmp_path / "blank.png")
    return folder


def predicted(capsys, *arguments):
    code = predict.main([*arguments, "--json"])
    out, errors = capsys.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], errors.splitlines()


def test_folders_patterns_and_files_are_read(small_run, pictures, capsys):
    where = ("--workdir", str(small_run))
    (pictures / ".DS_Store").touch()
    code, answers, errors = predicted(capsys, str(pictures), *where)
    assert (code, errors) == (0, [])
    assert [answer["file"] for answer in answers] == [str(pictures / f"{i}.png") for i in range(3)]
    for answer in answers:
        assert answer["top"][0] == [answer["digit"], answer["probability"]]
        assert len(answer["top"]) == 3
        assert answer["unsure"] == (answer["probability"] < predict.UNSURE)
    pattern = predicted(capsys, str(pictures / "*.png"), *where, "--top-k", "10")[1]
    assert sum(chance for _, chance in pattern[0]["top"]) == pytest.approx(1)
    assert predicted(capsys, str(pictures / "1.png"), *where)[1] == answers[1:2]


def test_the_others_are_read_when_some_cannot_be(small_run, pictures, tmp_path, capsys):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty").mkdir()
    code, answers, errors = predicted(
        capsys,
        *(str(tmp_path / name) for name in ("text.png", "blank.png", "none.png", "*.bmp", "empty")),
        str(pictures / "2.png"),
        *("--workdir", str(small_run)),
    )
    assert code == 2
    assert len(answers) == 1
    assert len(errors) == 5
    for error, name in zip(errors, ("text", "blank", "none", "*.bmp", "a folder in"), strict=True):
        assert error.startswith("error: ")
        assert name in error


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names must be Unicode")
def test_odd_names_neither_steer_the_terminal_nor_end_the_others(small_run, tmp_path, capsys):
    odd = [tmp_path / name for name in ("a\nb.png", "\udcff.png", "\x1b[2J.png")]
    for path in odd:
        seven().save(path, "PNG")
    bad = ["~nobody/a.png", "n" * 5_000, "a**b", str(tmp_path / "\x1b[2J")]
    assert predict.main([*bad, str(tmp_path), "--workdir", str(small_run)]) == 2
    out, errors = capsys.readouterr()
    assert out.count("\n") == len(odd)
    assert errors.count("\nerror: ") + 1 == errors.count("\n") == len(bad)
    assert (out + errors).replace("\n", "").isprintable()


def test_what_the_network_gets_can_be_kept(small_run, pictures, tmp_path, capsys):
    kept = tmp_path / "kept"
    arguments = (str(pictures / "0.png"), "--workdir", str(small_run))
    assert predict.main([*arguments, "--save-preprocessed", str(kept)]) == 0
    assert capsys.readouterr().out.startswith(str(pictures / "0.png"))
    (saved,) = kept.rglob("*.png")
    assert saved == kept / pictures.relative_to(pictures.anchor) / "0.png.png"
    with Image.open(saved) as image:
        assert image.size == (28, 28)
    _, answers, _ = predicted(capsys, str(saved), "--workdir", str(small_run))
    assert answers[0]["probability"] == predicted(capsys, *arguments)[1][0]["probability"]


def test_pictures_of_the_same_name_are_kept_apart(small_run, tmp_path, monkeypatch):
    names = ("a.png", "../a.png", "b/a.png", "b_a.png")
    (tmp_path / "here" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    for name in names:
        seven().save(name)
    where = ("--workdir", str(small_run), "--save-preprocessed", "kept")
    assert predict.main([*names, *where]) == 0
    kept = {path.relative_to("kept").as_posix() for path in Path("kept").rglob("*.png")}
    outside = (tmp_path / "a.png").relative_to(tmp_path.anchor).as_posix()
    assert kept == {"a.png.png", f"{outside}.png", "b/a.png.png", "b_a.png.png"}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("a.png",), "--workdir is missing"),
        (("--workdir", "w"), "no pictures"),
        (("a.png", "--workdir", "w", "--top-k", "0"), "--top-k must be from 1 to 10"),
        (("a.png", "--workdir", "no/such/run"), "holds no run"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, complaint, capsys):
    assert predict.main(arguments) == 2
    errors = capsys.readouterr().err
    assert complaint in errors
    assert errors.count("\n") == 1


def test_a_picture_of_a_data_set_image_is_that_image(small_run, tmp_path):
    model = load(small_run)
    image = seven()
    image.save(tmp_path / "seven.png")
    from mnist_flax.preprocess import to_mnist

    Image.fromarray(to_mnist(image)[..., 0]).save(tmp_path / "small.png")
    answer = predict.predict_picture(model, tmp_path / "small.png")
    assert answer["probability"] == model.probabilities(to_mnist(image)[None]).max()


def test_arrays_of_every_kind_give_the_same(small_run, digits):
    model = load(str(small_run))
    images = digits.test[0][:5]
    answers = model.predict(images)
    assert answers.dtype == np.int32
    assert model.probabilities(images).shape == (5, 10)
    for same in (images[..., 0], images / 255, (images[..., 0] / 255).astype(np.float32)):
        np.testing.assert_array_equal(model.probabilities(same), model.probabilities(images))
    assert len(model.predict(images[:0])) == 0
    np.testing.assert_array_equal(answers, model.logits(digits.test[0])[0].argmax(-1)[:5])


@pytest.mark.parametrize(
    ("images", "complaint"),
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
def test_other_arrays_are_refused(images, complaint):
    with pytest.raises(UserError, match=complaint):
        as_images(images)


def test_importing_the_package_imports_nothing_heavy():
    import subprocess
    import sys

    script = "import sys, mnist_flax; print('jax' in sys.modules or 'numpy' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert found.stdout == "False\n"
