"""The command in a subprocess: what it prints, and that it survives kills and signals."""

import os
import signal
import subprocess
import sys
import time

import pytest

from mnist_flax import run
from mnist_flax.run import command
from tests.conftest import SMALL, read_metrics, read_summary, start
from tests.run.test_command import assert_same_run

LONGER = ("--dataset", "digits", "--epochs", "12", "--batch-size", "128")


@pytest.fixture(scope="module")
def longer_run(tmp_path_factory):
    """The workdir of a finished, uninterrupted run of `LONGER` in a subprocess."""
    workdir = tmp_path_factory.mktemp("longer") / "run"
    process = start("--workdir", str(workdir), *LONGER)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    lines = output.splitlines()
    epochs = [line.split()[1] for line in lines if line.startswith("epoch ")]
    assert epochs == [f"{i}/12" for i in range(1, 13)]
    assert " left" in lines[0]
    assert "of 360 test images misclassified" in lines[12]
    assert lines[-1].startswith("digits: test accuracy ")
    assert len(lines) < 20
    assert errors == ""
    return workdir


def wait_for_rows(process, workdir, count):
    path = workdir / "metrics.jsonl"
    while not path.exists() or path.read_text().count("\n") < count:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


def kill_after(rows, workdir, *arguments):
    """Kills a run once it has written some rows."""
    process = start("--workdir", str(workdir), *arguments)
    wait_for_rows(process, workdir, rows)
    process.kill()
    process.communicate()
    assert not (workdir / "summary.json").exists()


@pytest.mark.slow
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(small_run, tmp_path):
    arguments = (*SMALL, "--no-report")
    kill_after(2, tmp_path, *arguments)
    assert run.main(["--workdir", str(tmp_path), *arguments]) == 0
    assert_same_run(tmp_path, small_run)


@pytest.mark.nightly
@pytest.mark.parametrize("rows", [1, 6, 11])
def test_a_longer_run_killed_at_any_epoch_equals_an_uninterrupted_one(longer_run, tmp_path, rows):
    kill_after(rows, tmp_path, *LONGER)
    assert run.main(["--workdir", str(tmp_path), *LONGER]) == 0
    assert_same_run(tmp_path, longer_run)


@pytest.mark.slow
def test_a_signal_saves_and_stops_the_training(small_run, tmp_path, capsys):
    """One run, stopped by SIGTERM and then by Ctrl-C."""
    arguments = ("--workdir", str(tmp_path), *SMALL, "--no-report")
    rows, resuming = 0, ""
    for signum, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        process = start(*arguments)
        wait_for_rows(process, tmp_path, rows + 1)
        process.send_signal(signum)
        output, errors = process.communicate()
        assert resuming in output
        assert process.returncode == code
        assert f"stopped by {signum.name}, saved at step" in errors
        assert "the same command resumes from there" in errors
        assert "Traceback" not in errors
        saved = int(errors.split("step ")[1].split(";")[0])
        assert (tmp_path / "checkpoints" / str(saved)).is_dir()
        assert not (tmp_path / "summary.json").exists()
        rows, resuming = len(read_metrics(tmp_path)), f"resuming from step {saved} of 48"
    assert run.main(arguments) == 0
    assert resuming in capsys.readouterr().out
    assert_same_run(tmp_path, small_run)


@pytest.mark.nightly
def test_a_killed_and_resumed_run_of_several_seeds_equals_an_uninterrupted_one(tmp_path):
    arguments = (*SMALL, "--num-seeds", "3", "--no-report")
    assert run.main(["--workdir", str(tmp_path / "uninterrupted"), *arguments]) == 0
    kill_after(2, tmp_path / "killed", *arguments)
    assert run.main(["--workdir", str(tmp_path / "killed"), *arguments]) == 0
    assert_same_run(tmp_path / "killed", tmp_path / "uninterrupted")
    summary = read_summary(tmp_path / "killed")
    assert summary["parameters"] == 81_066
    for name in ("test_accuracy", "test_loss"):
        assert set(summary[name]) == {"mean", "std", "interval95", "per_seed"}
        assert len(set(summary[name]["per_seed"])) == 3
        assert summary[name] == read_metrics(tmp_path / "killed")[-1][name]


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_before_the_training_ends_the_process_at_once(tmp_path, signum, code):
    # Where the signal arrives, in `__del__`, an exception would be lost.
    script = (
        "import os\nfrom mnist_flax.run import command\n"
        "class Library:\n"
        f"    def __del__(self):\n        os.kill(os.getpid(), {int(signum)})\n"
        "command._run = lambda options: Library() and 0\n"
        "command.main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, "--workdir", str(tmp_path / "a")],
        capture_output=True,
        check=False,
    )
    assert result.returncode == code
    assert result.stderr == b"interrupted; the same command resumes from the last checkpoint\n"


@pytest.mark.nightly
def test_the_compilation_cache_can_be_disabled_and_changes_no_bit(small_run, tmp_path):
    arguments = ("--workdir", str(tmp_path / "run"), *SMALL, "--no-compilation-cache")
    process = start(*arguments, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "cache"))
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert_same_run(tmp_path / "run", small_run)
    assert not (tmp_path / "cache").exists()


def test_mistakes_are_reported_in_one_line_in_any_terminal_encoding():
    messages = []
    for encoding in ("ascii", "utf-8"):
        result = subprocess.run(
            [sys.executable, "-m", "mnist_flax.run", "--workdir", "w", "--epoch", "3"],
            env=os.environ | {"PYTHONIOENCODING": encoding},
            capture_output=True,
            check=False,
        )
        assert result.returncode == 2
        messages.append(result.stderr.decode())
    expected = "error: Unrecognized options: --epoch, 3 (perhaps you meant --epochs?); see "
    assert messages == [expected + command.PROG + " --help\n"] * 2


def test_help_and_refusals_import_nothing_heavy():
    script = (
        "import sys\nfrom mnist_flax import run\n"
        "assert run.main(['--workdir', 'w', '--epochs', '0']) == 2\n"
        "try:\n    run.main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'jax', 'flax', 'numpy', 'tensorflow_datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    for flag in ("--workdir", "--preset", "--learning-rate", "--manual-dir", "--print-model"):
        assert flag in result.stdout
