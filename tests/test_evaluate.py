"""The command that evaluates a checkpoint, and that all who tell its figures agree."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from mnist_flax import evaluate, run
from tests.conftest import SMALL, read_metrics, read_summary


@pytest.fixture(scope="module")
def validated_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("validated") / "run"
    flags = (*SMALL, "--validation-fraction", "0.25", "--num-seeds", "2")
    assert run.main(["--workdir", str(workdir), *flags]) == 0
    return workdir


def evaluated(capsys, *arguments):
    assert evaluate.main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_report_that_cannot_be_written_is_told(small_run, tmp_path, capsys):
    shutil.copytree(small_run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "report")
    (tmp_path / "run" / "report").write_text("mine")
    assert evaluate.main(["--workdir", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: cannot write to {tmp_path}/run/report: File exists; --no-rep")
    assert told.count("\n") == 1
    assert evaluate.main(["--workdir", str(tmp_path / "run"), "--no-report"]) == 0


def test_all_who_tell_the_figures_agree(small_run, capsys):
    found = evaluated(capsys, "--workdir", str(small_run), "--no-report")
    summary = read_summary(small_run)
    stored = json.loads((small_run / "report" / "evaluation.json").read_text())
    assert found == stored
    assert (
        found["accuracy"]
        == summary["test_accuracy"]
        == read_metrics(small_run)[-1]["test_accuracy"]
    )
    assert found["loss"] == summary["test_loss"]
    assert found["right"] == round(360 * found["accuracy"])
    assert f"{found['accuracy']:.2%} of 360 test images" in (
        small_run / "report" / "index.html"
    ).read_text(encoding="utf-8")


def test_splits_checkpoints_and_single_networks(validated_run, capsys):
    where = ("--workdir", str(validated_run), "--no-report")
    lines = read_metrics(validated_run)
    latest = evaluated(capsys, *where)
    assert latest["seeds"] == [0, 1]
    assert latest["accuracy"] == lines[-1]["test_accuracy"]
    assert latest["calibration"]["temperature"] > 0
    held_out = evaluated(capsys, *where, "--split", "validation", "--checkpoint", "best")
    best = max(line["validation_accuracy"]["mean"] for line in lines)
    assert held_out["accuracy"]["mean"] == best
    assert held_out["calibration"]["temperature"] is None
    early = evaluated(capsys, *where, "--checkpoint", str(lines[-2]["step"]))
    assert early["accuracy"] == lines[-2]["test_accuracy"]
    assert early["epochs"] == lines[-2]["epoch"]
    one = evaluated(capsys, *where, "--seed-index", "1", "--split", "test")
    assert one["seeds"] == [1]
    assert one["accuracy"] == pytest.approx(latest["accuracy"]["per_seed"][1])
    train = evaluated(capsys, *where, "--split", "train")
    assert train["examples"] == 1_437 - 359


def test_the_report_is_written_anew_with_corruptions(validated_run, capsys):
    assert evaluate.main(["--workdir", str(validated_run), "--corruptions"]) == 0
    text = capsys.readouterr().out
    assert "expected calibration error" in text
    assert "inversion" in text
    assert len(text.splitlines()) < 40
    assert (validated_run / "report" / "robustness.png").exists()
    assert "How robust it is" in (validated_run / "report" / "index.html").read_text("utf-8")


# When a read fails, Orbax may close its event loop under other reads that are under way.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_mistakes_are_told_in_one_line(small_run, tmp_path, capsys):
    names = ("empty", "untrained", "truncated", "barely_validated")
    empty, untrained, truncated, barely_validated = (tmp_path / name for name in names)
    empty.mkdir()
    shutil.copytree(small_run, untrained, ignore=lambda *_: ["checkpoints"])
    shutil.copytree(small_run, truncated)
    for path in truncated.glob("checkpoints/*/**/d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    shutil.copytree(small_run, barely_validated)
    config = barely_validated / "config.json"  # 30 of MNIST's images, but none of the digits
    changes = {"dataset": "mnist", "validation_fraction": 0.0005}
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    elsewhere = ("--split", "validation", "--dataset", "digits")
    cases = {
        (): "--workdir is missing",
        ("--workdir", str(empty)): "holds no run",
        ("--workdir", str(untrained)): "nothing has been trained there",
        ("--workdir", str(truncated)): "is not as it was written",
        ("--workdir", str(small_run), "--split", "exam"): "--split",
        ("--workdir", str(small_run), "--split", "validation"): "nothing is held out",
        ("--workdir", str(barely_validated), *elsewhere): "holds out no image of digits",
        ("--workdir", str(small_run), "--checkpoint", "best"): "validation accuracy",
        ("--workdir", str(small_run), "--checkpoint", "17"): "there is no checkpoint '17'",
        ("--workdir", str(small_run), "--seed-index", "1"): "--seed-index must be from 0 to 0",
    }
    for arguments, complaint in cases.items():
        assert evaluate.main(arguments) == 2, arguments
        errors = capsys.readouterr().err
        assert complaint in errors
        assert errors.count("\n") == 1


def test_evaluating_imports_nothing_of_training(small_run):
    script = (
        "import sys\nfrom mnist_flax import evaluate\n"
        f"assert evaluate.main(['--workdir', {str(small_run)!r}, '--no-report']) == 0\n"
        "training = {f'mnist_flax.{name}' for name in ('train', 'optimizer', 'programs', "
        "'experiment')} | {'optax'}\n"
        "assert not training & set(sys.modules), training & set(sys.modules)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr


def test_a_reader_who_has_had_enough_is_no_error(small_run):
    arguments = ("--workdir", str(small_run), "--no-report")
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "mnist_flax.evaluate", *arguments]
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (141, "")
