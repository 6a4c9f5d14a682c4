"""The command that evaluates a checkpoint."""

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
    flags = (*SMALL, "--validation-fraction", "0.25", "--num-seeds", "2", "--no-report")
    assert run.main(["--workdir", str(workdir), *flags]) == 0
    return workdir


def evaluate_as_json(capsys, *arguments):
    assert evaluate.main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.nightly
def test_a_report_that_cannot_be_written_is_an_error(small_run, tmp_path, capsys):
    shutil.copytree(small_run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "report")
    (tmp_path / "run" / "report").write_text("mine")
    assert evaluate.main(["--workdir", str(tmp_path / "run")]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"error: cannot write to {tmp_path}/run/report: File exists; --no-rep")
    assert errors.count("\n") == 1
    assert evaluate.main(["--workdir", str(tmp_path / "run"), "--no-report"]) == 0


def test_command_report_summary_and_metrics_agree(small_run, capsys):
    evaluation = evaluate_as_json(capsys, "--workdir", str(small_run), "--no-report")
    summary = read_summary(small_run)
    assert evaluation == json.loads((small_run / "report" / "evaluation.json").read_text())
    assert evaluation["accuracy"] == summary["test_accuracy"]
    assert evaluation["accuracy"] == read_metrics(small_run)[-1]["test_accuracy"]
    assert evaluation["loss"] == summary["test_loss"]
    assert evaluation["correct"] == round(360 * evaluation["accuracy"])
    page = (small_run / "report" / "index.html").read_text(encoding="utf-8")
    assert f"<span>{evaluation['accuracy']:.2%}</span>" in page
    assert "Evaluated on 360 test images" in page


@pytest.mark.nightly
def test_splits_checkpoints_and_single_networks_are_selected(validated_run, capsys):
    where = ("--workdir", str(validated_run), "--no-report")
    rows = read_metrics(validated_run)
    latest = evaluate_as_json(capsys, *where)
    assert latest["seeds"] == [0, 1]
    assert latest["accuracy"] == rows[-1]["test_accuracy"]
    assert latest["calibration"]["temperature"] > 0
    held_out = evaluate_as_json(capsys, *where, "--split", "validation", "--checkpoint", "best")
    best = max(row["validation_accuracy"]["mean"] for row in rows)
    assert held_out["accuracy"]["mean"] == best
    assert held_out["calibration"]["temperature"] is None
    early = evaluate_as_json(capsys, *where, "--checkpoint", str(rows[-2]["step"]))
    assert early["accuracy"] == rows[-2]["test_accuracy"]
    assert early["epochs"] == rows[-2]["epoch"]
    one = evaluate_as_json(capsys, *where, "--seed-index", "1", "--split", "test")
    assert one["seeds"] == [1]
    assert one["accuracy"] == pytest.approx(latest["accuracy"]["per_seed"][1])
    train = evaluate_as_json(capsys, *where, "--split", "train")
    assert train["examples"] == 1_437 - 359


@pytest.mark.nightly
def test_the_report_is_written_again_with_corruptions(validated_run, capsys):
    assert evaluate.main(["--workdir", str(validated_run), "--corruptions"]) == 0
    text = capsys.readouterr().out
    assert "expected calibration error" in text
    assert "inversion" in text
    assert len(text.splitlines()) < 40
    assert "<h2>Robustness</h2>" in (validated_run / "report" / "index.html").read_text("utf-8")


# When a read fails, Orbax may close its event loop while other reads are still running.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_mistakes_of_the_user_are_reported_in_one_line(small_run, tmp_path, capsys):
    names = ("empty", "untrained", "truncated", "barely_validated")
    empty, untrained, truncated, barely_validated = (tmp_path / name for name in names)
    empty.mkdir()
    shutil.copytree(small_run, untrained, ignore=lambda *_: ["checkpoints"])
    shutil.copytree(small_run, truncated)
    for path in truncated.glob("checkpoints/*/**/d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    shutil.copytree(small_run, barely_validated)
    config = barely_validated / "config.json"  # 30 images of MNIST, but none of the digits
    changes = {"dataset": "mnist", "validation_fraction": 0.0005}
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    on_digits = ("--split", "validation", "--dataset", "digits")
    cases = {
        ("--checkpoint", "best"): "--checkpoint and --seed-index need --workdir",
        (str(small_run),): f"perhaps you meant --workdir {small_run}?",
        ("--workdir", str(empty)): "holds no run",
        ("--workdir", str(untrained)): "nothing has been trained there",
        ("--workdir", str(truncated)): "is not as it was written",
        ("--workdir", str(small_run), "--split", "exam"): "--split",
        ("--workdir", str(small_run), "--split", "validation"): "no images are held out",
        ("--workdir", str(barely_validated), *on_digits): "holds out no image of digits",
        ("--workdir", str(small_run), "--checkpoint", "best"): "validation accuracy",
        ("--workdir", str(small_run), "--checkpoint", "17"): "there is no checkpoint '17' in",
        ("--workdir", str(small_run), "--seed-index", "1"): "--seed-index must be from 0 to 0",
    }
    for arguments, message in cases.items():
        assert evaluate.main(arguments) == 2, arguments
        errors = capsys.readouterr().err
        assert message in errors
        assert errors.count("\n") == 1


@pytest.mark.nightly
def test_no_training_code_is_imported(small_run):
    script = (
        "import sys\nfrom mnist_flax import evaluate\n"
        f"assert evaluate.main(['--workdir', {str(small_run)!r}, '--no-report']) == 0\n"
        "training = {'mnist_flax.core.train', 'mnist_flax.core.optimizer', 'mnist_flax.run'}\n"
        "training |= {'optax'}\n"
        "assert not training & set(sys.modules), training & set(sys.modules)"
    )
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr


@pytest.mark.nightly
def test_a_closed_output_pipe_is_no_error(small_run):
    arguments = ("--workdir", str(small_run), "--no-report")
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "mnist_flax.evaluate", *arguments]
    process = subprocess.run(
        command, stdout=write_end, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write_end)
    assert (process.returncode, process.stderr) == (141, "")
