"""The command as a user meets it: what it prints, leaves, refuses and survives."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mnist_flax import command, determinism, loop, run
from mnist_flax.config import PRESETS
from tests.conftest import SMALL, read_metrics, read_summary, start, without_timing

LONGER = ("--dataset", "digits", "--epochs", "12", "--batch-size", "128")


@pytest.fixture(scope="module")
def longer_run(tmp_path_factory):
    """The workdir of a finished, undisturbed run of `LONGER`, in a process of its own."""
    workdir = tmp_path_factory.mktemp("longer") / "run"
    process = start("--workdir", str(workdir), *LONGER)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    lines = output.splitlines()
    epochs = [line.split()[1] for line in lines if line.startswith("epoch ")]
    assert epochs == [f"{i}/12" for i in range(1, 13)]
    assert " left" in lines[0]
    assert "of 360 test images wrong" in lines[12]
    assert lines[-1].startswith("digits: test accuracy ")
    assert len(lines) < 20
    assert errors == ""
    return workdir


def assert_same_run(workdir, undisturbed):
    ours, theirs = read_summary(workdir), read_summary(undisturbed)
    for name in set(theirs) - {"seconds"}:
        assert ours[name] == theirs[name]
    assert without_timing(read_metrics(workdir)) == without_timing(read_metrics(undisturbed))


def wait_for_lines(process, workdir, count):
    path = workdir / "metrics.jsonl"
    while not path.exists() or path.read_text().count("\n") < count:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


def test_leaves_what_the_contract_says(small_run):
    assert {path.name for path in small_run.iterdir()} == {
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "summary.json",
        "checkpoints",
        "tensorboard",
        "report",
        ".saved",
    }
    config = json.loads((small_run / "config.json").read_text())
    assert config["dataset"] == "digits"
    assert config["epochs"] == 4
    summary, metrics = read_summary(small_run), read_metrics(small_run)
    assert [line["epoch"] for line in metrics] == [1, 2, 3, 4]
    assert [line["step"] for line in metrics] == [12, 24, 36, 48]
    for line in metrics:
        assert set(line) == {
            "step",
            "epoch",
            "dataset",
            "learning_rate",
            "train_loss",
            "test_loss",
            "test_accuracy",
            "seconds",
            "images_per_second",
        }
        assert line["dataset"] == "digits"
        assert line["images_per_second"] == pytest.approx(1_437 / line["seconds"])
    assert summary["dataset"] == "digits"
    assert summary["parameters"] == 81_066
    assert summary["test_examples"] == 360
    assert summary["test_accuracy"] == metrics[-1]["test_accuracy"] > 0.4
    assert summary["test_loss"] == metrics[-1]["test_loss"]
    assert summary["epochs"] == 4
    assert summary["steps"] == 48
    assert len(summary["params_sha256"]) == 64
    seconds = summary["seconds"]
    assert set(seconds) == {"import", "data", "compile", "train", "total"}
    assert seconds["total"] == pytest.approx(sum(seconds.values()) / 2)
    assert {"jax", "flax", "backend", "device_kind", "device_count"} <= set(summary["environment"])
    assert sorted(path.name for path in (small_run / "checkpoints").iterdir()) == ["24", "36", "48"]
    pictures = ("confusion", "curves", "filters", "mistakes", "reliability", "saliency")
    assert {path.name for path in (small_run / "report").iterdir()} == {
        "evaluation.json",
        "index.html",
        *(f"{name}.png" for name in pictures),
    }
    assert "digits" in (small_run / "report" / "index.html").read_text()


def test_the_report_can_be_left_out(tmp_path, capsys):
    assert run.main(["--workdir", str(tmp_path), *SMALL, "--epochs", "1", "--no-report"]) == 0
    assert not (tmp_path / "report").exists()
    assert capsys.readouterr().out.endswith(f"see {tmp_path / 'summary.json'}\n")


def test_the_same_command_again_leaves_a_finished_run_alone(small_run, capsys):
    before = {path: path.stat().st_mtime_ns for path in small_run.rglob("*")}
    assert run.main(["--workdir", str(small_run), *SMALL]) == 0
    assert "finished already: digits: test accuracy" in capsys.readouterr().out
    assert run.main(["--workdir", str(small_run), *SMALL[2:]]) == 0  # auto: as it began
    assert {path: path.stat().st_mtime_ns for path in small_run.rglob("*")} == before


def test_of_several_processes_the_first_tells_that_a_run_is_finished(
    small_run, capsys, monkeypatch
):
    monkeypatch.setenv("SLURM_PROCID", "1")  # which the option overrides
    several = ("--num-processes", "2", "--coordinator-address", "localhost:1", "--process-id")
    for number in ("0", "1"):
        assert run.main(["--workdir", str(small_run), *SMALL, *several, number]) == 0
        assert ("finished already" in capsys.readouterr().out) == (number == "0")


def test_another_config_is_refused(small_run, capsys):
    assert run.main(["--workdir", str(small_run), *SMALL, "--seed", "1"]) == 2
    assert "--seed was 0, now 1" in capsys.readouterr().err


def test_two_runs_are_bit_identical_and_another_seed_is_not(small_run, tmp_path):
    assert run.main(["--workdir", str(tmp_path / "again"), *SMALL]) == 0
    assert_same_run(tmp_path / "again", small_run)
    assert run.main(["--workdir", str(tmp_path / "other"), *SMALL, "--seed", "1"]) == 0
    digest = "params_sha256"
    assert read_summary(tmp_path / "other")[digest] != read_summary(small_run)[digest]


def test_a_program_compiled_afresh_gives_the_same_bits(small_run, tmp_path):
    kept = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "programs")}
    arguments = ("--workdir", str(tmp_path / "run"), *SMALL, "--no-compilation-cache")
    process = start(*arguments, **kept)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert_same_run(tmp_path / "run", small_run)
    assert not (tmp_path / "programs").exists()


def test_compiled_programs_are_kept_for_this_kind_of_processor(tmp_path, monkeypatch):
    used = {}
    monkeypatch.setattr("jax.config.update", used.__setitem__)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    command.keep_compiled_programs()
    folder = Path(used["jax_compilation_cache_dir"])
    assert folder.parent == tmp_path / "mnist_flax"
    assert folder.name == determinism.processor_fingerprint()


def test_a_stop_within_an_epoch_changes_no_bit(small_run, tmp_path, monkeypatch, capsys):
    arguments = ["--workdir", str(tmp_path), *SMALL, "--no-report"]
    with monkeypatch.context() as patch:
        asked = iter((0, 0, 0, 0, signal.SIGTERM))
        patch.setattr(loop, "PACE_SECONDS", 0.0)  # a step at a time
        patch.setattr(loop, "first_signal", lambda _: next(asked))
        assert run.main(arguments) == 128 + signal.SIGTERM
    assert "stopped by SIGTERM, saved at step 5" in capsys.readouterr().err
    assert run.main(arguments) == 0
    assert "going on from step 5 of 48" in capsys.readouterr().out
    assert_same_run(tmp_path, small_run)


def test_evaluating_and_saving_less_often_changes_no_bit(small_run, tmp_path):
    often = ("--eval-every", "3", "--checkpoint-every", "2", "--keep-checkpoints", "9")
    assert run.main(["--workdir", str(tmp_path), *SMALL, *often]) == 0
    assert [line["epoch"] for line in read_metrics(tmp_path)] == [3, 4]
    assert without_timing(read_metrics(tmp_path)) == without_timing(read_metrics(small_run))[2:]
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"24", "48"}
    assert read_summary(tmp_path)["params_sha256"] == read_summary(small_run)["params_sha256"]


def test_validation_is_reported_and_chooses_what_is_kept(tmp_path, capsys):
    arguments = ("--validation-fraction", "0.2", "--keep-checkpoints", "1")
    assert run.main(["--workdir", str(tmp_path), *SMALL, *arguments]) == 0
    metrics = read_metrics(tmp_path)
    best = max(metrics, key=lambda line: line["validation_accuracy"])
    kept = {int(path.name) for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {best["step"], metrics[-1]["step"]}
    assert read_summary(tmp_path)["validation_accuracy"] == metrics[-1]["validation_accuracy"]
    assert "validation loss" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("lines", [1, 6, 11])
def test_killed_and_continued_is_as_if_nothing_had_been(longer_run, tmp_path, lines):
    process = start("--workdir", str(tmp_path), *LONGER)
    wait_for_lines(process, tmp_path, lines)
    process.kill()
    process.communicate()
    assert not (tmp_path / "summary.json").exists()
    assert run.main(["--workdir", str(tmp_path), *LONGER]) == 0
    assert_same_run(tmp_path, longer_run)


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_stops(longer_run, tmp_path, signum, code):
    process = start("--workdir", str(tmp_path), *LONGER)
    wait_for_lines(process, tmp_path, 3)
    process.send_signal(signum)
    output, errors = process.communicate()
    assert process.returncode == code
    assert "saved at step" in errors
    assert "Traceback" not in errors
    saved = int(errors.split("step ")[1].split(";")[0].replace(",", ""))
    assert (tmp_path / "checkpoints" / str(saved)).is_dir()
    assert not (tmp_path / "summary.json").exists()
    process = start("--workdir", str(tmp_path), *LONGER)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert output.startswith(f"going on from step {saved:,} of 144")
    assert_same_run(tmp_path, longer_run)


@pytest.mark.slow
def test_many_seeds_are_killed_and_continued_as_if_nothing_had_been(tmp_path):
    many = (*SMALL, "--num-seeds", "3")
    assert run.main(["--workdir", str(tmp_path / "undisturbed"), *many]) == 0
    process = start("--workdir", str(tmp_path / "killed"), *many)
    wait_for_lines(process, tmp_path / "killed", 2)
    process.kill()
    process.communicate()
    assert run.main(["--workdir", str(tmp_path / "killed"), *many]) == 0
    assert_same_run(tmp_path / "killed", tmp_path / "undisturbed")
    summary = read_summary(tmp_path / "killed")
    assert summary["parameters"] == 81_066
    for name in ("test_accuracy", "test_loss"):
        assert set(summary[name]) == {"mean", "std", "interval95", "per_seed"}
        assert len(set(summary[name]["per_seed"])) == 3
        assert summary[name] == read_metrics(tmp_path / "killed")[-1][name]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_before_the_training_ends_it_wherever_it_comes(tmp_path, signum, code):
    # An exception raised there would be dropped.
    script = (
        "import os, mnist_flax.run as run\n"
        "class Library:\n"
        f"    def __del__(self):\n        os.kill(os.getpid(), {int(signum)})\n"
        "run._run = lambda options: Library() and 0\n"
        "run.main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, "--workdir", str(tmp_path / "a")],
        capture_output=True,
        check=False,
    )
    assert ended.returncode == code
    assert ended.stderr == b"interrupted; the same command goes on from the last checkpoint\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--workdir is missing"),
        (["--workdir"], "--workdir"),
        (["--workdir", "W", "--epoch", "3"], "perhaps you meant --epochs?"),
        (["--workdir", "W", "--epochs", "many"], "Error parsing --epochs"),
        (["--workdir", "W", "--epochs", "0"], "--epochs must be from 1 to 100,000, but is 0"),
        (["--workdir", "W", "--preset", "fastest"], "invalid choice 'fastest'"),
        (["--workdir", "W", "--preset"], "--preset"),
        (["--workdir", "W", "--dataset", "cifar10"], "invalid choice 'cifar10'"),
        (["--workdir", "W", "--batch-size", "60001"], "larger than the 60,000 training images"),
        (["--workdir", "W", "--learning-rate", "nan"], "--learning-rate must be above 0"),
        (["--workdir", "W", "--manual-dir", "nowhere", "--dataset", "mnist"], "is not a folder"),
        (["--workdir", "README"], "README"),
        (["surprise"], "surprise"),
    ],
)
def test_a_mistake_is_told_in_one_line_before_anything_is_written(
    tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "README").write_text("a file, not a folder")
    assert run.main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert output.err.startswith("error: ")
    assert message in output.err
    assert [path.name for path in tmp_path.iterdir()] == ["README"]


def test_a_mistake_is_told_in_one_line_on_a_terminal_of_any_encoding():
    told = []
    for encoding in ("ascii", "utf-8"):
        process = subprocess.run(
            [sys.executable, "-m", "mnist_flax.run", "--workdir", "w", "--epoch", "3"],
            env=os.environ | {"PYTHONIOENCODING": encoding},
            capture_output=True,
            check=False,
        )
        assert process.returncode == 2
        told.append(process.stderr.decode())
    expected = "error: Unrecognized options: --epoch, 3 (perhaps you meant --epochs?); see "
    assert told == [expected + run.PROG + " --help\n"] * 2


def test_a_workdir_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run.main(["--workdir", str(tmp_path / "file" / "run"), *SMALL]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_presets_and_flags_that_override_them(monkeypatch, tmp_path):
    monkeypatch.setenv("MNIST_FLAX_MANUAL_DIR", str(tmp_path))
    options = run.parse(["--preset", "reference", "--epochs", "7", "--workdir", "w"])
    assert options.config.epochs == 7
    assert options.config.batch_size == PRESETS["reference"].batch_size == 32
    assert options.manual_dir == tmp_path
    monkeypatch.delenv("MNIST_FLAX_MANUAL_DIR")
    assert run.parse(["--workdir", "w"]) == run.Options(PRESETS["default"], Path("w"))


def test_the_reference_preset_is_the_tutorials_recipe():
    config = PRESETS["reference"]
    assert (config.input_size, config.batch_size, config.epochs) == (28, 32, 5)
    assert (config.schedule, config.learning_rate) == ("constant", 1e-3)
    assert (config.adam_b1, config.adam_b2, config.adam_epsilon) == (0.9, 0.999, 1e-7)
    assert (config.shift, config.train_examples) == (0, 60_000)


def test_help_and_refusals_import_nothing_heavy():
    script = (
        "import sys\nfrom mnist_flax import run\n"
        "assert run.main(['--workdir', 'w', '--epochs', '0']) == 2\n"
        "try:\n    run.main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'jax', 'flax', 'numpy', 'tensorflow_datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    for flag in ("--workdir", "--preset", "--learning-rate", "--manual-dir", "--print-model"):
        assert flag in ended.stdout


def test_print_model_needs_no_workdir(capsys):
    assert run.main(["--print-model", "--preset", "reference"]) == 0
    table = capsys.readouterr().out
    assert "13,13,64" in table
    assert "81,066" in table
