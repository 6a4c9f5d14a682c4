"""What comes from others runs no code, writes nowhere else, and does not steer the terminal."""

import ast
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest

import mnist_flax
from mnist_flax import compare, evaluate, export, predict, run
from tests.conftest import SMALL
from tests.test_preprocess import seven

SOURCES = sorted(Path(mnist_flax.__file__).parent.glob("*.py"))
RUNNING = {"eval", "exec", "compile", "__import__"}
UNSAFE = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml"}
HOSTILE = "<script>alert(1)</script>\x1b[2J"


@pytest.fixture
def foreign(small_run, tmp_path):
    """A copy of a finished run, as somebody else may hand over."""
    return shutil.copytree(small_run, tmp_path / "inner" / "run")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_the_source_has_nothing_that_runs_data(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & UNSAFE
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in UNSAFE
        if isinstance(node, ast.Call):
            assert not (isinstance(node.func, ast.Name) and node.func.id in RUNNING)
            allowed = [x.value for x in node.keywords if x.arg == "allow_pickle"]
            assert all(isinstance(x, ast.Constant) and x.value is False for x in allowed)


def test_nothing_that_is_loaded_is_unpickled(foreign, tmp_path, monkeypatch, capsys):
    def refused(*_, **__):
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refused)
    seven().save(tmp_path / "seven.png")
    where = ("--workdir", str(foreign))
    assert predict.main([*where, str(tmp_path / "seven.png")]) == 0
    assert evaluate.main(where) == 0
    assert run.main([*where, *SMALL]) == 0
    assert compare.main([str(foreign), str(foreign)]) == 0
    (foreign / "summary.json").unlink()  # the checkpoint is restored
    assert run.main([*where, *SMALL, "--no-report"]) == 0
    assert "going on from step" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["report", "report/index.html", "tensorboard", "summary.json"])
def test_a_link_in_a_workdir_leads_nowhere(name, foreign, tmp_path, capsys):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("precious")
    inside = foreign / name
    target = outside if inside.is_dir() else outside / "file"
    shutil.rmtree(inside) if inside.is_dir() else inside.unlink()
    inside.symlink_to(target)
    assert evaluate.main(["--workdir", str(foreign)]) == 2
    assert "is a link, which a workdir may not hold" in capsys.readouterr().err
    (foreign / "summary.json").unlink(missing_ok=True)
    if name != "summary.json":
        assert run.main(["--workdir", str(foreign), *SMALL]) == 2
        assert "is a link, which a workdir may not hold" in capsys.readouterr().err
    assert [path.name for path in outside.iterdir()] == ["file"]
    assert (outside / "file").read_text() == "precious"


def test_hostile_texts_stay_texts(foreign, capsys):
    path = foreign / "summary.json"
    summary = json.loads(path.read_text())
    path.write_text(json.dumps(summary | {"dataset": HOSTILE, HOSTILE: {HOSTILE: HOSTILE}}))
    lines = (foreign / "metrics.jsonl").read_text().splitlines()
    lines = [json.dumps(json.loads(line) | {HOSTILE: 1.0, "dataset": HOSTILE}) for line in lines]
    (foreign / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert run.main(["--workdir", str(foreign), *SMALL]) == 0
    assert evaluate.main(["--workdir", str(foreign)]) == 0
    page = (foreign / "report" / "index.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    config = json.loads((foreign / "config.json").read_text())
    (foreign / "config.json").write_text(json.dumps(config | {HOSTILE: 1}))
    for main in (run.main, evaluate.main, predict.main):
        assert main(["--workdir", str(foreign), *(["x.png"] if main == predict.main else [])]) == 2
    told = capsys.readouterr()
    assert r"\x1b[2J" in told.err
    assert "\x1b" not in told.out + told.err


@pytest.mark.parametrize("content", ["{", "[]", "{}", "null", '{"dataset": "digits"}', "[" * 9**5])
def test_a_damaged_summary_is_told_and_written_again(content, foreign, capsys):
    path = foreign / "summary.json"
    before = json.loads(path.read_text())
    path.write_text(content)
    command = ["--workdir", str(foreign), *SMALL, "--no-report"]
    assert run.main(command) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert "summary.json is damaged" in errors
    assert "remove it, and the same command" in errors
    if content == "{":
        path.unlink()
        assert run.main(command) == 0
        after = json.loads(path.read_text())
        assert before | {"seconds": None} == after | {"seconds": None}


@pytest.mark.parametrize("suffix", ["", ".card.json", ".card.md"])
@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_an_export_is_refused_as_a_whole(suffix, kind, small_run, tmp_path, capsys):
    output = tmp_path / "model"
    blocked = tmp_path / f"model{suffix}"
    os.mkfifo(blocked) if kind == "pipe" else blocked.mkdir()
    assert export.main(["--workdir", str(small_run), "--output", str(output)]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: cannot write")
    assert errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == [blocked]
    assert not blocked.is_file()
