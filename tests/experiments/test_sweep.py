"""The sweep: what it tries, what it chooses by, and how its processes share and resume trials."""

import collections
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import optuna
import psutil
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from experiments import sweep, sweep_study
from experiments.sweep_study import SweepStudy, claim
from mnist_flax.engine.cli import run_command
from mnist_flax.engine.seed_stats import mean_of
from mnist_flax.engine.workdir import lock_workdir, read_metrics, read_summary

TINY = ("--dataset", "digits", "--channels", "4", "--epochs", "1", "--batch-size", "512")
LONG = ("--dataset", "digits", "--epochs", "30", "--batch-size", "512")  # can be interrupted
SECONDS = 300


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.sweep", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, code=0):
    output, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == code, output + errors
    return output, errors


def wait_until(condition):
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def read_rows(folder):
    return json.loads((folder / "sweep.json").read_text())["rows"]


def epochs_trained(folder):
    return sum(path.read_text().count("\n") for path in folder.glob("*/metrics.jsonl"))


def read_logs(folder):
    return "".join(path.read_text() for path in folder.glob("????????????.log"))


def open_sweep(folder, *arguments):
    return SweepStudy(*sweep.parse(["--workdir", str(folder), *TINY, *arguments]))


@pytest.fixture
def fake_training(monkeypatch):
    """Replaces training: its results by learning rate, and the number of times that it ran."""
    results, trained, summaries = {}, collections.Counter(), {}

    def follow(study, trial, run, log):
        rate = run.config.learning_rate
        trained[rate] += 1
        result = results.get(rate, {"accuracy": rate})
        if "accuracy" in result:
            scores = {"validation_accuracy": result["accuracy"], "validation_loss": 1 - rate}
            summaries[run.workdir] = {
                "seconds": {"total": 12.3},
                "test_accuracy": 1 - rate,
                **scores,
            }
            return None
        return result if result else study.signals.append(signal.SIGINT)

    monkeypatch.setattr(SweepStudy, "follow", follow)
    monkeypatch.setattr(sweep_study, "read_summary", summaries.get)
    monkeypatch.setattr(sweep_study, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return results, trained


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "nothing varies"),
        ("--vary learning_rat=1", "'learning_rat' (perhaps you meant learning_rate?)"),
        ("--vary learning_rate=1e-3,fast", "could not convert string to float: 'fast'"),
        ("--vary learning_rate=1e-3,-1", "--learning-rate must be above 0"),
        ("--vary optimizer=adam,sgd", "--optimizer"),
        ("--vary batch_size=32,1e9", "argument --vary: batch_size=32,1e9: invalid literal"),
        ("--vary batch_size=32,100000", "larger than the 1,198 training images"),
        ("--vary learning_rate=", "FIELD=A,B,..."),
        ("--vary learning_rate", "FIELD=A,B,..."),
        ("--vary dataset=mnist,digits", "are not comparable"),
        ("--vary validation_fraction=0.1,0.2", "are not comparable"),
        ("--vary shift_pixels=0,1 --vary shift-pixels=2", "a field varies twice"),
        ("--vary zoom=0,0.1 --epoch 2", "--epoch"),
        ("--vary zoom=0,0.1 --epochs 0", "--epochs must be from 1"),
        ("--vary zoom=0,0.1 --jobs 0", "--jobs must be at least 1"),
        ("--vary zoom=0,0.1 --jobs x", "--jobs"),
        ("--vary zoom=0,0.1 --seeds 0", "--seeds must be at least 1"),
        ("--vary zoom=0,0.1 --trials -1", "--trials must be at least 0"),
        ("--vary zoom=0,0.1 --sampler random", "--trials is missing"),
        ("--vary zoom=0,0.1 --sampler grid --trials 2", "a grid is all combinations"),
        ("--vary zoom=0,0.1 --sampler best", "--sampler"),
        ("--vary zoom=0,0.1 --validation-fraction 0", "must be above 0"),
        ("--vary zoom=0,0.1 --validation-fraction 1", "below 1"),
        ("--vary zoom=0,0.1 --dataset cifar", "cifar"),
        ("--sample shift_pixels=uniform:0:3", "--trials is missing"),
        ("--sample shift_pixels=uniform:0:3 --sampler grid", "a grid is all combinations"),
        ("--trials 3 --sample optimizer=log:1:2", "for numbers, FIELD=log|uniform:LOW:HIGH"),
        ("--trials 3 --sample learning_rate=1:2", "for numbers, FIELD=log|uniform:LOW:HIGH"),
        ("--trials 3 --sample learning_rate=log:0:1", "log=True"),
        ("--trials 3 --sample learning_rate=log:1:nan", "but is nan"),
        ("--trials 3 --sample learning_rate=uniform:2:1", "low <= high"),
        ("--trials 3 --sample shift_pixels=uniform:0.5:2", "invalid literal for int"),
        ("--trials 3 --sample zoom=uniform:0:9", "--zoom must be from 0 to 1"),
    ],
)
def test_mistakes_are_reported_in_one_line_before_training(arguments, message, tmp_path, capsys):
    folder = tmp_path / "sweep"
    argv = ["--workdir", str(folder), "--dataset", "digits", *arguments.split()]
    assert run_command(sweep.sweep, argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not folder.exists()


def test_a_workdir_is_required(capsys):
    assert run_command(sweep.sweep, ["--vary", "shift_pixels=0,1"]) == 2
    assert "--workdir" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[]\n", "{\n", '{"op_code": 99}\n', "null\n", "\0\n"])
def test_a_damaged_study_is_reported(content, tmp_path, capsys):
    (tmp_path / "study.log").write_text(content)
    argv = ["--workdir", str(tmp_path), "--dataset=digits", "--vary=shift_pixels=0,1"]
    assert run_command(sweep.sweep, argv) == 2
    assert f"{tmp_path / 'study.log'} is damaged" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert run_command(sweep.sweep, [*argv, "--workdir", str(tmp_path / "file" / "x")]) == 2
    assert "cannot write to" in capsys.readouterr().err


def test_a_grid_is_all_combinations(tmp_path, fake_training):
    fields = ("--vary", "learning-rate=1e-3,3e-3,0.001", "--vary", "batch_size=32, 64")
    study = open_sweep(tmp_path, *fields)
    study.prepare()
    study.prepare()
    study.work()
    assert [trial.params for trial in study.study.trials] == [
        {"learning_rate": 1e-3, "batch_size": 32},
        {"learning_rate": 1e-3, "batch_size": 64},
        {"learning_rate": 3e-3, "batch_size": 32},
        {"learning_rate": 3e-3, "batch_size": 64},
    ]


def test_fields_are_drawn_from_their_ranges():
    fields = (
        "--sample=learning_rate=log:1e-4:1e-1", "--sample=channels=log:4:64",
        "--sample=warmup-fraction=uniform:0.1:0.3", "--vary=schedule=triangular,constant",
    )  # fmt: skip
    options, flags = sweep.parse(["--workdir=w", "--trials=9", *fields, "--zoom=0.1"])
    assert (options.sampler, flags) == ("tpe", ["--zoom=0.1"])
    assert options.space == {
        "learning_rate": FloatDistribution(1e-4, 1e-1, log=True),
        "channels": IntDistribution(4, 64, log=True),
        "warmup_fraction": FloatDistribution(0.1, 0.3),
        "schedule": CategoricalDistribution(["triangular", "constant"]),
    }


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_more_draws_continue_the_same_sequence(sampler, tmp_path, fake_training):
    rate = "--sample=learning_rate=log:1e-4:1e-1", f"--sampler={sampler}"
    for folder, *counts in (("a", 4, 12), ("b", 12)):
        for count in counts:
            open_sweep(tmp_path / folder, *rate, f"--trials={count}").work()
    a, b = (open_sweep(tmp_path / folder, *rate, "--trials=12").study for folder in "ab")
    assert [trial.params for trial in a.trials] == [trial.params for trial in b.trials]
    assert len({trial.params["learning_rate"] for trial in a.trials}) == 12


def test_repeated_draws_are_replaced(tmp_path, fake_training):
    _, trained = fake_training
    sampler = ("--trials=4", "--sampler=random", "--vary=learning_rate=0.1,0.2,0.3")
    open_sweep(tmp_path, *sampler).work()
    assert trained == {0.1: 1, 0.2: 1, 0.3: 1}


def test_runs_are_ranked_by_validation_alone(tmp_path, fake_training, capsys):
    results, _ = fake_training
    results[0.4] = {"status": "diverged", "reason": "the loss became nan"}
    results[0.2] = {"accuracy": {"mean": 0.3, "std": 0.1, "per_seed": [0.2, 0.4]}}
    results[0.5] = {"status": "pruned", "reason": "worse than the median"}
    command = ["--workdir", str(tmp_path), *TINY, "--vary=learning_rate=0.4,0.1,0.2,0.3,0.5"]
    assert sweep.sweep(command) == 0
    output = capsys.readouterr().out
    rows = [line.rpartition(" | ")[0] for line in output.splitlines() if line.startswith("| 0.")]
    assert rows == [
        "| 0.3 | 30.00% | 0.7000 | 12",
        "| 0.2 | 30.00% ± 10.00 | 0.8000 | 12",
        "| 0.1 | 10.00% | 0.9000 | 12",
        "| 0.4 | diverged |  | ",
        "| 0.5 | pruned |  | ",
    ]
    assert output.count("| ") == output.count(" |") > 0
    assert "best on the held-out images: learning_rate=0.3\n" in output
    assert "learning_rate=0.4: diverged: the loss became nan\n" in output
    assert "test_accuracy" not in (tmp_path / "sweep.json").read_text()
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_only_new_and_failed_runs_are_trained_by_the_next_command(tmp_path, fake_training, capsys):
    results, trained = fake_training
    results[0.1] = {"status": "failed", "reason": "MemoryError"}
    results[0.2] = {"status": "diverged", "reason": "the loss became nan"}
    results[0.3] = {"status": "pruned", "reason": "worse than the median"}
    command = ["--workdir", str(tmp_path), *TINY, "--vary=learning_rate=0.1,0.2,0.3,0.4"]
    assert run_command(sweep.sweep, command) == 1
    output, errors = capsys.readouterr()
    assert errors == "error: 1 of 4 runs did not finish; the same command tries them again\n"
    assert "learning_rate=0.1: failed: MemoryError\n" in output
    del results[0.1]
    assert sweep.sweep(command) == 0
    assert trained == {0.1: 2, 0.2: 1, 0.3: 1, 0.4: 1}
    other_values = ["--workdir", str(tmp_path), *TINY, "--vary=learning_rate=0.1,0.4,0.5"]
    assert sweep.sweep(other_values) == 0
    assert trained == {0.1: 2, 0.2: 1, 0.3: 1, 0.4: 1, 0.5: 1}
    assert len(read_rows(tmp_path)) == 3


def test_another_process_takes_over_interrupted_runs_only(tmp_path, fake_training):
    results, trained = fake_training
    grid = "--vary=learning_rate=0.1,0.2,0.3"
    stopped, other = open_sweep(tmp_path, grid), open_sweep(tmp_path, grid)
    stopped.prepare()
    results[0.1] = {}  # a signal arrives
    stopped.work()
    assert stopped.progress() == "0 of 3 trials done"
    task = stopped.ask()  # which it is working on
    assert task
    assert task[0].params == {"learning_rate": 0.2}
    del results[0.1]
    worker = threading.Thread(target=other.work)
    worker.start()
    wait_until(lambda: trained[0.1] == 2 and other.progress() == "2 of 3 trials done")
    assert trained[0.2] == 0
    stopped.train(*task)
    worker.join(SECONDS)
    assert other.progress() == "3 of 3 trials done"
    assert trained == {0.1: 2, 0.2: 1, 0.3: 1}


def test_a_run_that_ends_while_others_look_at_it_is_left_alone(
    tmp_path, fake_training, monkeypatch
):
    worker, other = (open_sweep(tmp_path, "--vary=learning_rate=0.1") for _ in range(2))
    worker.prepare()
    task = worker.ask()
    assert task

    def end_and_claim(log):
        worker.train(*task)
        return claim(log)

    monkeypatch.setattr(sweep_study, "claim", end_and_claim)
    assert other.ask() is None
    assert other.progress() == "1 of 1 trials done"


@pytest.mark.parametrize("sampler", ["grid", "random", "tpe"])
def test_processes_at_the_same_time_share_the_trials(sampler, tmp_path, fake_training):
    _, trained = fake_training
    grid = "--vary=learning_rate=0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8"
    draws = (f"--sampler={sampler}", "--sample=learning_rate=log:0.1:0.9", "--trials=8")
    studies = [open_sweep(tmp_path, *([grid] if sampler == "grid" else draws)) for _ in range(3)]

    def take_part(study):
        study.prepare()
        study.work()

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(take_part, studies))
    assert len(trained) == trained.total() == 8
    assert {trial.state for trial in studies[0].study.trials} == {TrialState.COMPLETE}


@pytest.mark.nightly
def test_two_commands_share_a_sweep_from_training_to_table(tmp_path):
    command = ("--workdir", tmp_path, *TINY, "--seeds=2", "--vary=learning_rate=1e-2,1e30")
    (output, errors), (other, _) = map(finish, [start(*command), start(*command)])
    assert errors == ""
    assert (output + other).count("begin ") == 2
    result = json.loads((tmp_path / "sweep.json").read_text())
    good, bad = result["rows"]
    assert (good["status"], bad["status"]) == ("finished", "diverged")
    assert bad["reason"].startswith("the training loss of seed 0 became")
    assert (good["values"], bad["values"]) == ({"learning_rate": 0.01}, {"learning_rate": 1e30})
    assert result["command"].startswith("python -m experiments.sweep --workdir")
    assert (result["validation_examples"], result["seeds"]) == (239, [0, 1])
    summary = read_summary(tmp_path / good["run"])
    assert summary
    assert good["validation_accuracy"] == summary.get("validation_accuracy")
    assert len(good["validation_accuracy"]["per_seed"]) == 2
    assert f"{mean_of(summary['test_accuracy']):.2%}" not in output
    again, _ = finish(start(*command, "--jobs=2"))
    assert "begin " not in again
    assert again.partition("\n\n")[2] == output.partition("\n\n")[2]


@pytest.mark.nightly
def test_signals_stop_it_and_the_same_command_resumes(tmp_path):
    command = ("--workdir", tmp_path, *LONG, "--vary=learning_rate=1e-3,2e-3", "--seed=5")
    for signum in (signal.SIGTERM, signal.SIGINT):
        before = epochs_trained(tmp_path)
        process = start(*command)
        wait_until(lambda before=before: epochs_trained(tmp_path) > before)
        process.send_signal(signum)
        _, errors = finish(process, code=128 + signum)
        assert errors == "stopped with 0 of 2 trials done; the same command resumes\n"
        assert {row["status"] for row in read_rows(tmp_path)} == {"running", "waiting"}
        assert f"{signum.name}, saved at step" in read_logs(tmp_path)
    output, _ = finish(start(*command))
    assert read_logs(tmp_path).count("resuming from step") == 2
    assert [row["status"] for row in read_rows(tmp_path)] == ["finished", "finished"]
    assert epochs_trained(tmp_path) == 2 * 30
    assert "best on the held-out images: learning_rate=0.00" in output


@pytest.mark.nightly
def test_a_hopeless_run_is_pruned(tmp_path):
    fields = (*LONG, "--vary=learning_rate=1e-30")
    study = SweepStudy(*sweep.parse(["--workdir", str(tmp_path), *fields])).study
    for _ in range(5):
        values = dict.fromkeys(range(1, 31), 0.9)
        study.add_trial(optuna.create_trial(value=0.9, intermediate_values=values))
    finish(start("--workdir", tmp_path, *fields))
    (row,) = read_rows(tmp_path)
    assert row["reason"].startswith("worse than the median after ")
    folder = tmp_path / row["run"]
    assert 1 <= len(read_metrics(folder)) < 30
    assert "SIGTERM, saved at step" in (tmp_path / f"{row['run']}.log").read_text()


@pytest.mark.nightly
def test_a_refused_run_is_reported_and_an_orphan_is_waited_for(tmp_path):
    command = ("--workdir", str(tmp_path), *TINY, "--vary=shift_pixels=0")
    run = SweepStudy(*sweep.parse(command)).plan({"shift_pixels": 0})
    with lock_workdir(run.workdir):
        output, errors = finish(start(*command), code=1)
    assert errors == "error: 1 of 1 runs did not finish; the same command tries them again\n"
    assert f"failed: {run.workdir} is in use by process {os.getpid()}" in output
    assert not (tmp_path / "sweep.png").exists()
    log = tmp_path / f"{run.workdir.name}.log"
    process = start(*command)
    wait_until(psutil.Process(process.pid).children)
    process.kill()  # but not the training
    finish(process, code=-signal.SIGKILL)
    assert claim(log) is None
    output, _ = finish(start(*command))
    assert "begin " not in output
    assert [row["status"] for row in read_rows(tmp_path)] == ["finished"]
