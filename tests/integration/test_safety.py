"""Files from others run no code, redirect no writes, and cannot control the terminal."""

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
from tests.predict.test_preprocess import seven

SOURCES = sorted(Path(mnist_flax.__file__).parent.rglob("*.py"))
RUNS_CODE = {"eval", "exec", "compile", "__import__"}
UNSAFE = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml"}
HOSTILE = "<script>alert(1)</script>\x1b[2J"


@pytest.fixture
def foreign(small_run, tmp_path):
    """A copy of a finished run, as one may get from somebody else."""
    return shutil.copytree(small_run, tmp_path / "inner" / "run")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: "/".join(path.parts[-2:]))
def test_the_source_never_executes_or_unpickles_data(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & UNSAFE
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in UNSAFE
        if isinstance(node, ast.Call):
            assert not (isinstance(node.func, ast.Name) and node.func.id in RUNS_CODE)
            allowed = [x.value for x in node.keywords if x.arg == "allow_pickle"]
            assert all(isinstance(x, ast.Constant) and x.value is False for x in allowed)


@pytest.mark.slow
def test_commands_unpickle_nothing(foreign, tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, fail)
    seven().save(tmp_path / "seven.png")
    workdir = ("--workdir", str(foreign))
    assert predict.main([*workdir, str(tmp_path / "seven.png")]) == 0
    assert evaluate.main(workdir) == 0
    assert run.main([*workdir, *SMALL]) == 0
    assert compare.main([str(foreign), str(foreign)]) == 0
    (foreign / "summary.json").unlink()  # so that the checkpoint is restored
    assert run.main([*workdir, *SMALL, "--no-report"]) == 0
    assert "resuming from step" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["report", "report/index.html", "tensorboard", "summary.json"])
def test_links_in_a_workdir_are_refused_and_not_followed(name, foreign, tmp_path, capsys):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("precious")
    inside = foreign / name
    target = outside if inside.is_dir() else outside / "file"
    shutil.rmtree(inside) if inside.is_dir() else inside.unlink()
    inside.symlink_to(target)
    assert evaluate.main(["--workdir", str(foreign)]) == 2
    assert "is a link, which a workdir must not contain" in capsys.readouterr().err
    (foreign / "summary.json").unlink(missing_ok=True)
    if name != "summary.json":
        assert run.main(["--workdir", str(foreign), *SMALL]) == 2
        assert "is a link, which a workdir must not contain" in capsys.readouterr().err
    assert [path.name for path in outside.iterdir()] == ["file"]
    assert (outside / "file").read_text() == "precious"


@pytest.mark.slow
def test_hostile_text_is_escaped_in_reports_and_messages(foreign, capsys):
    path = foreign / "summary.json"
    summary = json.loads(path.read_text()) | {"dataset": HOSTILE}
    summary["environment"][HOSTILE] = HOSTILE
    summary["seconds"][HOSTILE] = 1.0
    path.write_text(json.dumps(summary))
    lines = (foreign / "metrics.jsonl").read_text().splitlines()
    lines = [json.dumps(json.loads(line) | {"dataset": HOSTILE}) for line in lines]
    (foreign / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert run.main(["--workdir", str(foreign), *SMALL]) == 0
    assert evaluate.main(["--workdir", str(foreign)]) == 0
    page = (foreign / "report" / "index.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;" in page
    assert "<script>alert" not in page
    path.write_text(json.dumps(summary | {HOSTILE: {HOSTILE: HOSTILE}}))
    assert run.main(["--workdir", str(foreign), *SMALL]) == 2
    config = json.loads((foreign / "config.json").read_text())
    (foreign / "config.json").write_text(json.dumps(config | {HOSTILE: 1}))
    for main in (run.main, evaluate.main, predict.main):
        assert main(["--workdir", str(foreign), *(["x.png"] if main == predict.main else [])]) == 2
    output, errors = capsys.readouterr()
    assert r"\x1b[2J" in output
    assert errors.count(r"\x1b[2J") == 4
    assert "\x1b" not in output + errors


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("{", marks=pytest.mark.slow),  # the only one that is run again
        *("[]", "{}", "null", '{"dataset": "digits"}', "[" * 9**5, "without total"),
    ],
)
def test_a_damaged_summary_is_reported_and_written_again_once_removed(content, foreign, capsys):
    path = foreign / "summary.json"
    before = json.loads(path.read_text())
    if content == "without total":
        content = json.dumps(before | {"seconds": {"import": 0.1}})
    path.write_text(content)
    command = ["--workdir", str(foreign), *SMALL, "--no-report"]
    assert run.main(command) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert "summary.json is damaged" in errors
    assert "remove it, and the command that trained the run writes it again" in errors
    if content == "{":
        path.unlink()
        assert run.main(command) == 0
        after = json.loads(path.read_text())
        assert before | {"seconds": None} == after | {"seconds": None}


@pytest.mark.parametrize("suffix", ["", ".card.json", ".card.md"])
@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_a_refused_export_leaves_no_files(suffix, kind, small_run, tmp_path, capsys):
    output = tmp_path / "model"
    blocked = tmp_path / f"model{suffix}"
    os.mkfifo(blocked) if kind == "pipe" else blocked.mkdir()
    assert export.main(["--workdir", str(small_run), "--output", str(output)]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: cannot write")
    assert errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == [blocked]
    assert not blocked.is_file()
