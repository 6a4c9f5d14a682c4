"""The command: what it prints, writes and refuses."""

import dataclasses
import json
import signal
from pathlib import Path

import pytest

from mnist_flax import run
from mnist_flax.core.config import PRESETS, UserError
from mnist_flax.data import dataset
from mnist_flax.data.download import DataUnavailable
from mnist_flax.engine import distributed
from mnist_flax.engine.workdir import read_config
from mnist_flax.run import command, loop
from mnist_flax.run.signals import TrainingInterrupted
from tests.conftest import SMALL, read_metrics, read_summary, without_timing


def assert_same_run(workdir, expected):
    ours, theirs = read_summary(workdir), read_summary(expected)
    for name in set(theirs) - {"seconds"}:
        assert ours[name] == theirs[name]
    assert without_timing(read_metrics(workdir)) == without_timing(read_metrics(expected))


def test_a_run_writes_the_promised_files(small_run):
    assert {path.name for path in small_run.iterdir()} == {
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "summary.json",
        "checkpoints",
        "tensorboard",
        "report",
        ".checkpointed",
    }
    config = json.loads((small_run / "config.json").read_text())
    assert config["dataset"] == "digits"
    assert config["epochs"] == 4
    assert {path.name for path in (small_run / "checkpoints").iterdir()} == {"24", "36", "48"}
    reported = {path.name for path in (small_run / "report").iterdir()}
    assert reported == {"evaluation.json", "index.html"}
    assert "digits" in (small_run / "report" / "index.html").read_text()


def test_metrics_and_summary_have_the_promised_content(small_run):
    summary, metrics = read_summary(small_run), read_metrics(small_run)
    assert [row["epoch"] for row in metrics] == [1, 2, 3, 4]
    assert [row["step"] for row in metrics] == [12, 24, 36, 48]
    for row in metrics:
        assert set(row) == {
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
        assert row["dataset"] == "digits"
        assert row["images_per_second"] == pytest.approx(1_437 / row["seconds"])
    assert set(summary) == {
        "dataset",
        "parameters",
        "test_examples",
        "test_accuracy",
        "test_loss",
        "epochs",
        "steps",
        "params_sha256",
        "seconds",
        "environment",
    }
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


def test_the_same_command_leaves_a_finished_run_alone(small_run, capsys):
    before = {path: path.stat().st_mtime_ns for path in small_run.rglob("*")}
    assert run.main(["--workdir", str(small_run), *SMALL]) == 0
    message = f"{small_run} holds this run, which is finished: digits: test accuracy"
    assert message in capsys.readouterr().out
    assert run.main(["--workdir", str(small_run), *SMALL[2:]]) == 0  # `auto` is what the run chose
    assert {path: path.stat().st_mtime_ns for path in small_run.rglob("*")} == before


@pytest.mark.parametrize("index", ["0", "1"])
def test_only_the_primary_process_reports_a_finished_run(small_run, capsys, monkeypatch, index):
    calls = []
    monkeypatch.setattr(distributed, "initialize", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(distributed, "is_primary", lambda: calls == [("localhost:1", 2, 0)])
    flags = ("--num-processes", "2", "--coordinator-address", "localhost:1", "--process-id", index)
    assert run.main(["--workdir", str(small_run), *SMALL, *flags]) == 0
    assert calls == [("localhost:1", 2, int(index))]
    assert ("which is finished" in capsys.readouterr().out) == (index == "0")


def test_another_config_is_refused(small_run, capsys):
    assert run.main(["--workdir", str(small_run), *SMALL, "--seed", "1"]) == 2
    assert "--seed was 0, now 1" in capsys.readouterr().err


def test_two_runs_are_bit_identical(small_run, tmp_path, capsys):
    again = tmp_path / "again"
    assert run.main(["--workdir", str(again), *SMALL, "--no-report"]) == 0
    assert capsys.readouterr().out.endswith(f"see {again / 'summary.json'}\n")
    assert not (again / "report").exists()
    assert_same_run(again, small_run)


@pytest.mark.nightly
def test_another_seed_gives_another_network(small_run, tmp_path):
    other = ("--seed", "1", "--no-report")
    assert run.main(["--workdir", str(tmp_path), *SMALL, *other]) == 0
    assert read_summary(tmp_path)["params_sha256"] != read_summary(small_run)["params_sha256"]


@pytest.fixture
def ctrl_c():
    """Ctrl-C as in a terminal: a process started in the background may ignore it."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_reaches_the_caller_once_the_training_is_saved(monkeypatch, capsys):
    """So that it also stops pytest, or whatever else calls the function."""

    def stop(_):
        raise TrainingInterrupted(signal.SIGINT, 5)

    monkeypatch.setattr(command, "_run", stop)
    with pytest.raises(KeyboardInterrupt):
        run.main(["--workdir", "w"])
    assert capsys.readouterr().err.startswith("stopped by SIGINT, saved at step 5;")


@pytest.mark.nightly
@pytest.mark.usefixtures("ctrl_c")
def test_stopping_within_an_epoch_changes_no_bit(small_run, tmp_path, monkeypatch, capsys):
    arguments = ["--workdir", str(tmp_path), *SMALL, "--no-report"]
    with monkeypatch.context() as patch:
        signals = iter((0, 0, 0, 0, signal.SIGINT))
        patch.setattr(loop, "CHUNK_SECONDS", 0.0)  # one step at a time
        patch.setattr(loop, "first_signal", lambda _: next(signals))
        with pytest.raises(KeyboardInterrupt):  # the caller hears of it too
            run.main(arguments)
    assert capsys.readouterr().err == (
        "stopped by SIGINT, saved at step 5; the same command resumes from there\n"
    )
    assert run.main(arguments) == 0
    assert "resuming from step 5 of 48" in capsys.readouterr().out
    assert_same_run(tmp_path, small_run)


@pytest.mark.nightly
def test_evaluating_and_saving_less_often_changes_no_bit(small_run, tmp_path):
    seldom = ("--eval-every-epochs", "3", "--checkpoint-every-epochs", "2")
    flags = (*seldom, "--max-to-keep", "9", "--no-report")
    assert run.main(["--workdir", str(tmp_path), *SMALL, *flags]) == 0
    assert [row["epoch"] for row in read_metrics(tmp_path)] == [3, 4]
    assert without_timing(read_metrics(tmp_path)) == without_timing(read_metrics(small_run))[2:]
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"24", "48"}
    assert read_summary(tmp_path)["params_sha256"] == read_summary(small_run)["params_sha256"]


@pytest.mark.nightly
def test_validation_is_reported_and_chooses_the_best_checkpoint(tmp_path, capsys):
    flags = ("--validation-fraction", "0.2", "--max-to-keep", "1", "--no-report")
    assert run.main(["--workdir", str(tmp_path), *SMALL, *flags]) == 0
    metrics = read_metrics(tmp_path)
    best = max(metrics, key=lambda row: row["validation_accuracy"])
    kept = {int(path.name) for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {best["step"], metrics[-1]["step"]}
    for name in ("validation_accuracy", "validation_loss"):
        assert read_summary(tmp_path)[name] == metrics[-1][name]
    assert "val loss  val acc" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--workdir is missing"),
        (["--workdir"], "--workdir"),
        (["--workdir", "W", "--epoch", "3"], "perhaps you meant --epochs?"),
        (["--workdir", "W", "--epochs", "many"], "--epochs must be a whole number, but is 'many'"),
        (["--workdir", "W", "--epochs", "0"], "--epochs must be from 1 to 100,000, but is 0"),
        (["--workdir", "W", "--preset", "fastest"], "invalid choice 'fastest'"),
        (["--workdir", "W", "--preset"], "--preset"),
        (["--workdir", "W", "--dataset", "cifar10"], "invalid choice 'cifar10'"),
        (["--workdir", "W", "--batch-size", "60001"], "larger than the 60,000 training images"),
        (["--workdir", "W", "--learning-rate", "nan"], "--learning-rate must be above 0"),
        (["--workdir", "W", "--manual-dir", "nowhere", "--dataset", "mnist"], "is not a folder"),
        (["--workdir", "README"], "README"),
        (["--workdir", "lr=[0.1]"], "lr=[0.1]; rename it"),
        (["--workdir", r"back\slash"], r"with \ in it"),
        (["--workdir", "s*b"], "with * in it"),
        (["--workdir="], "--workdir has an empty value"),
        (["--workdir=lr=", "--epochs", "0"], "--epochs must be from 1"),
        (["--workdir", "W", "--process-id", "0"], "--num-processes and --process-id go together"),
        (["surprise"], "surprise"),
    ],
)
def test_mistakes_are_reported_in_one_line_before_anything_is_written(
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


def test_a_workdir_that_cannot_be_written_is_reported(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run.main(["--workdir", str(tmp_path / "file" / "run"), *SMALL]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_flags_override_the_preset(monkeypatch, tmp_path):
    monkeypatch.setenv("MNIST_FLAX_MANUAL_DIR", str(tmp_path))
    options = command.parse(["--preset", "reference", "--epochs", "7", "--workdir", "w"])
    assert options.config.epochs == 7
    assert options.config.batch_size == PRESETS["reference"].batch_size == 32
    assert options.manual_dir == tmp_path
    monkeypatch.delenv("MNIST_FLAX_MANUAL_DIR")
    expected = run.Options(config=PRESETS["default"], workdir=Path("w"))
    assert command.parse(["--workdir", "w"]) == expected


def test_the_fallback_is_the_preset_digits_with_the_given_flags():
    preset = PRESETS["digits"]
    assert command.parse_fallback(["--workdir", "w"]) == preset
    # Also a flag whose value is that of `default`.
    assert command.parse_fallback(["--epochs", "5"]) == dataclasses.replace(preset, epochs=5)
    quick = dataclasses.replace(PRESETS["quick"], dataset="digits")
    assert command.parse_fallback(["--preset", "quick", "--dataset", "auto"]) == quick
    with pytest.raises(UserError, match="larger than the 1,437 training images"):
        command.parse_fallback(["--batch-size", "2000"])


def test_without_mnist_the_fallback_is_trained_and_the_same_command_knows_it(
    tmp_path, monkeypatch, capsys
):
    def refuse(*_):
        raise DataUnavailable("mnist is not here")

    monkeypatch.setattr(dataset, "load_tfds", refuse)
    small = dataclasses.replace(PRESETS["digits"], epochs=1, batch_size=512)
    monkeypatch.setitem(PRESETS, "digits", small)
    arguments = ["--workdir", str(tmp_path / "run"), "--no-report"]
    assert run.main(arguments) == 0
    output = capsys.readouterr()
    assert "recipe   preset digits\n" in output.out
    assert "THE RESULTS ARE NOT MNIST RESULTS" in output.err
    assert "mnist-flax predict IMAGE..." in output.err
    assert read_config(tmp_path / "run") == small
    assert run.main(arguments) == 0
    assert "holds this run, which is finished: digits" in capsys.readouterr().out
    assert run.main([*arguments, "--epochs", "5"]) == 2
    assert "--epochs was 1, now 5" in capsys.readouterr().err


def test_the_reference_preset_is_the_recipe_of_the_tutorial():
    config = PRESETS["reference"]
    assert (config.input_size, config.batch_size, config.epochs) == (28, 32, 5)
    assert (config.schedule, config.learning_rate) == ("constant", 1e-3)
    assert (config.adam_b1, config.adam_b2, config.adam_epsilon) == (0.9, 0.999, 1e-7)
    assert (config.shift_pixels, config.train_examples) == (0, 60_000)


def test_print_model_needs_no_workdir(capsys):
    assert run.main(["--print-model", "--preset", "reference"]) == 0
    table = capsys.readouterr().out
    assert "13,13,64" in table
    assert "81,066" in table
