"""The sweep: what it tries, how it goes on, and what it chooses by."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time

import psutil
import pytest

from mnist_flax.command import run_command
from mnist_flax.spread import mean_of
from mnist_flax.workdir import held
from tests.conftest import EXPERIMENTS, read_metrics, read_summary, script

search, slurm, sweep, sweep_tables, training = map(
    script, ("search", "slurm", "sweep", "sweep_tables", "training")
)

TINY = ("--dataset", "digits", "--channels", "4", "--epochs", "1", "--batch-size", "512")
# Long enough to be stopped in the middle, with `LONG` in place of `TINY`.
LONG = (*TINY[:4], "--epochs", "30", "--batch-size", "512")
SECONDS = 300


def start(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, f"{EXPERIMENTS}/sweep.py", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


def run(*arguments, code=0, **environment):
    process = start(*arguments, **environment)
    output, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == code, output + errors
    return output, errors


def read_sweep(folder):
    return json.loads((folder / "sweep.json").read_text())


def wait_until(condition):
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def epochs_trained(folder):
    return sum(path.read_text().count("\n") for path in folder.glob("*/metrics.jsonl"))


def spaced(*arguments):
    options, _ = sweep.parse(["--workdir", "w", *arguments])
    return search.space(options)


def test_a_grid_is_every_combination():
    space = spaced("--vary", "learning-rate=1e-3,3e-3", "--vary", "batch_size=32, 64")
    assert search.grid(space) == [
        {"learning_rate": "1e-3", "batch_size": "32"},
        {"learning_rate": "1e-3", "batch_size": "64"},
        {"learning_rate": "3e-3", "batch_size": "32"},
        {"learning_rate": "3e-3", "batch_size": "64"},
    ]


def test_draws_are_as_probable_as_they_should_be():
    space = spaced(
        "--random=1", "--sample=learning_rate=log:1e-4:1e-1", "--sample=channels=log:4:64",
        "--sample=warmup_fraction=uniform:0.1:0.3", "--vary=schedule=triangular,constant",
    )  # fmt: skip
    points = search.draws(space, 2_000, seed=0)
    rates = [float(point["learning_rate"]) for point in points]
    assert 1e-4 <= min(rates) < 1.1e-4
    assert 0.9e-1 < max(rates) <= 1e-1
    assert statistics.median(rates) == pytest.approx(10**-2.5, rel=0.2)
    channels = [int(point["channels"]) for point in points]
    assert set(channels) >= {4, 5, 6, 7, 8}
    assert 60 < max(channels) <= 64
    assert statistics.median(channels) == pytest.approx(16, abs=2)
    shares = [float(point["warmup_fraction"]) for point in points]
    assert 0.1 <= min(shares) < 0.101
    assert statistics.fmean(shares) == pytest.approx(0.2, abs=0.005)
    constant = sum(point["schedule"] == "constant" for point in points)
    assert constant == pytest.approx(1_000, abs=100)


def test_draws_depend_on_the_seed_their_number_and_the_field_only():
    rate, shares = "--sample=learning_rate=log:1e-4:1e-1", "--sample=shear=uniform:0:1"
    one, both = spaced("--random=1", rate), spaced("--random=1", shares, rate)
    few, many = search.draws(one, 10, seed=3), search.draws(both, 20, seed=3)
    assert [point["learning_rate"] for point in many[:10]] == [p["learning_rate"] for p in few]
    assert few != search.draws(one, 10, seed=4)
    assert len({point["learning_rate"] for point in few}) == 10


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--vary", "learning_rat=1"], "'learning_rat' (perhaps you meant learning_rate?)"),
        (["--vary", "learning_rate=1e-3,fast"], "Error parsing --learning-rate: could not convert"),
        (["--vary", "learning_rate=1e-3,-1"], "--learning-rate must be above 0"),
        (["--vary", "optimizer=adam,sgd"], "--optimizer"),
        (["--vary", "batch_size=32,1e9"], "--batch-size"),
        (["--vary", "batch_size=32,100000"], "larger than the 1,198 training images"),
        (["--vary", "learning_rate="], "FIELD=VALUE,VALUE"),
        (["--vary", "learning_rate"], "FIELD=VALUE,VALUE"),
        (["--vary", "dataset=mnist,digits"], "do not compare"),
        (["--vary", "shift=0,1", "--vary", "shift=2"], "varied already"),
        (["--vary", "shift=0,1", "--epoch", "2"], "--epoch"),
        (["--vary", "shift=0,1", "--epochs", "0"], "--epochs must be from 1"),
        (["--vary", "shift=0,1", "--jobs", "0"], "--jobs must be at least 1"),
        (["--vary", "shift=0,1", "--jobs", "x"], "--jobs"),
        (["--vary", "shift=0,1", "--random", "-1"], "--random must be at least 0"),
        (["--vary", "shift=0,1", "--validation-fraction", "0"], "must be above 0"),
        (["--vary", "shift=0,1", "--validation-fraction", "1"], "below 1"),
        (["--vary", "shift=0,1", "--dataset", "cifar"], "cifar"),
        (["--vary", "shift=0,1", "--jobs", "2", "--slurm"], "not allowed with"),
        (["--vary", "shift=0,1", "--slurm"], "srun"),
        (["--sample", "shift=uniform:0:3"], "--random"),
        (["--random", "3", "--sample", "optimizer=log:1:2"], "not a number"),
        (["--random", "3", "--sample", "learning_rate=log:0:1"], "for log above 0"),
        (["--random", "3", "--sample", "learning_rate=log:1:nan"], "LOW below HIGH"),
        (["--random", "3", "--sample", "learning_rate=uniform:2:1"], "LOW below HIGH"),
        (["--random", "3", "--sample", "learning_rate=1:2"], "log:LOW:HIGH"),
        (["--random", "99", "--sample", "zoom=uniform:0:9"], "--zoom must be from 0 to 1"),
        ([], "nothing is varied"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_one_line_before_anything_is_trained(
    arguments, told, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("PATH", str(tmp_path))  # where no Slurm is
    folder = tmp_path / "sweep"
    argv = ["--workdir", str(folder), "--dataset", "digits", *arguments]
    assert run_command(sweep.sweep, argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert told in line
    assert not folder.exists()


def test_a_workdir_is_needed(capsys):
    assert run_command(sweep.sweep, ["--vary", "shift=0,1"]) == 2
    assert "--workdir" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[]", "{", '{"rows": [1]}', '{"rows": 1}', "null"])
def test_a_damaged_result_is_told(content, tmp_path, capsys):
    (tmp_path / "sweep.json").write_text(content)
    argv = ["--workdir", str(tmp_path), "--dataset=digits", "--vary=shift=0,1"]
    assert run_command(sweep.sweep, argv) == 2
    assert f"{tmp_path / 'sweep.json'} is damaged" in capsys.readouterr().err


def row(accuracy, loss=1.0, **values):
    return {
        "run": "abc",
        "values": values,
        "status": "finished" if accuracy else "diverged",
        "validation_accuracy": accuracy,
        "validation_loss": loss,
        "seconds": 12.3,
    }


def test_rows_are_ranked_by_validation_alone():
    rows = [row(0.0, shift=0), row(0.97, 0.2, shift=1), row(0.98, shift=2), row(0.97, 0.1, shift=3)]
    rows[1]["test_accuracy"] = 1.0
    ranked = sorted(rows, key=sweep_tables.rank)
    assert [found["values"]["shift"] for found in ranked] == [2, 3, 1, 0]
    assert sweep_tables.table(ranked).splitlines()[2:] == [
        "| 2 | 98.00% | 1.0000 | 12 | abc |",
        "| 3 | 97.00% | 0.1000 | 12 | abc |",
        "| 1 | 97.00% | 0.2000 | 12 | abc |",
        "| 0 | diverged |  |  | abc |",
    ]


@pytest.mark.parametrize(
    ("numbers", "logarithmic"),
    [
        ((1e-3, 3e-3, 1e-2), True),
        ((32.0, 64.0, 128.0), True),
        ((0.0, 1.0, 2.0), False),
        ((1.0, 2.0, 3.0, 4.0), False),
        ((22.0, 28.0), False),
    ],
)
def test_axes_are_logarithmic_where_values_are(numbers, logarithmic):
    assert sweep_tables.evenly_in_logarithm(sweep_tables.np.array(numbers)) == logarithmic


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_picture_has_a_panel_for_each_field(seeds, tmp_path, config):
    names = ("--vary=optimizer=adam,muon", "--vary=input_size=22,28", "--vary=shift=0,1")
    space = spaced(*names, "--random=1", "--sample=learning_rate=log:1e-3:1")
    values = [
        {"optimizer": "muon", "input_size": 22, "shift": 1, "learning_rate": 0.01},
        {"optimizer": "adam", "input_size": 28, "shift": 0, "learning_rate": 0.1},
        {"optimizer": "adam", "input_size": 28, "shift": 1, "learning_rate": 1.0},
    ]
    accuracy = 1.0 if seeds == 1 else {"mean": 0.95, "std": 0.1, "per_seed": [0.9, 1.0]}
    rows = [row(accuracy, **values[0]), row(0.5, **values[1]), row(0.0, **values[2])]
    held_out = sweep.training.parse(["--dataset=digits", "--validation-fraction=0.2"]).config
    sweep_tables.draw(rows, space, held_out, tmp_path)
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_sweep_from_training_to_table_and_once_more(tmp_path):
    rates = "--vary=learning_rate=1e-2,1e30"
    command = ("--workdir", tmp_path, *TINY, "--seeds=2", "--jobs=2")
    output, errors = run(*command, rates)
    assert errors == ""
    result = read_sweep(tmp_path)
    good, bad = result["rows"]
    assert (good["status"], bad["status"]) == ("finished", "diverged")
    assert bad["said"].startswith("the training loss of seed 0 became")
    assert (good["values"], bad["values"]) == ({"learning_rate": 0.01}, {"learning_rate": 1e30})
    assert result["command"].startswith("python experiments/sweep.py --workdir")
    assert result["validation_examples"] == 239
    assert result["seeds"] == [0, 1]
    summary = read_summary(tmp_path / good["run"])
    assert good["validation_accuracy"] == summary["validation_accuracy"]
    assert len(summary["validation_accuracy"]["per_seed"]) == 2
    assert "test_accuracy" not in json.dumps(result)
    assert f"{mean_of(summary['test_accuracy']):.2%}" not in output
    assert output.count("| ") == output.count(" |") > 0
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")

    # The same again, and with a value more: only that one is trained.
    again, _ = run(*command, rates)
    assert "2 of 2 runs done" in again
    assert "begun: " not in again
    assert again.partition("\n\n")[2] == output.partition("\n\n")[2]
    more, _ = run(*command, f"{rates},2e-2", "--vary=shift=1")
    assert "2 of 3 runs done" in more
    assert more.count("begun: ") == 1
    assert more.count("| 1 | ") == 3
    assert read_summary(tmp_path / good["run"]) == summary


@pytest.mark.slow
def test_a_signal_stops_it_and_the_same_command_goes_on(tmp_path):
    command = ("--workdir", tmp_path, *LONG, "--vary=learning_rate=1e-3,2e-3", "--seed=5")
    for signum in (signal.SIGTERM, signal.SIGINT):
        before = epochs_trained(tmp_path)
        process = start(*command)
        wait_until(lambda before=before: epochs_trained(tmp_path) > before)
        process.send_signal(signum)
        _, errors = process.communicate(timeout=SECONDS)
        assert process.returncode == 128 + signum
        assert errors == "stopped with 0 of 2 runs done; the same command goes on\n"
        rows = read_sweep(tmp_path)["rows"]
        assert [found["status"] for found in rows] == ["stopped", "waiting"]
        log = tmp_path / f"{rows[0]['run']}.log"
        assert f"stopped by {signum.name}, saved at step" in log.read_text()
    output, _ = run(*command)
    assert log.read_text().count("going on from step") == 2
    rows = read_sweep(tmp_path)["rows"]
    assert [found["status"] for found in rows] == ["finished", "finished"]
    assert len(read_metrics(tmp_path / rows[0]["run"])) == 30
    assert "best by validation: learning_rate=0.00" in output


@pytest.mark.slow
def test_what_comes_to_no_end_is_told_and_tried_again(tmp_path):
    command = ("--workdir", str(tmp_path), *TINY, "--vary=shift=0")
    options, flags = sweep.parse(command)
    (planned,) = sweep.define(options, flags, search.space(options))
    with held(planned.workdir):
        output, errors = run(*command, code=1)
    assert errors == "error: 1 of 1 runs came to no end; the same command tries them again\n"
    assert f"shift=0: refused: {planned.workdir} is in use by process {os.getpid()}" in output
    assert not (tmp_path / "sweep.png").exists()
    run(*command)
    assert read_sweep(tmp_path)["rows"][0]["status"] == "finished"


@pytest.fixture
def planned(tmp_path):
    options, flags = sweep.parse(["--workdir", str(tmp_path), *LONG, "--vary=learning_rate=1e-3"])
    (found,) = sweep.define(options, flags, search.space(options))
    return found


def task(job):
    """The process that trains, a child of the one that stands in for Slurm."""
    (found,) = psutil.Process(job._process.pid).children()
    return found


@pytest.mark.slow
def test_a_job_at_its_time_limit_is_queued_again_and_goes_on(planned, tmp_path, monkeypatch):
    """With submitit's executor on this machine, which treats a job as its Slurm does."""
    monkeypatch.setattr(slurm, "LOOK_SECONDS", 0.1)
    executor = slurm.submitit.LocalExecutor(tmp_path / "jobs")
    executor.update_parameters(timeout_min=SECONDS / 60)
    jobs = slurm.submit(executor, [planned])
    kept = planned.workdir / "checkpoints"
    wait_until(lambda: any(path.name.isdecimal() for path in kept.glob("*")))
    task(jobs[planned]).send_signal(signal.SIGUSR2)
    ((ended, code, _),) = slurm.wait(jobs)
    assert (ended, code) == (planned, 0)
    assert "going on from step" in jobs[planned].stdout()
    assert sweep.ended(ended, code, "")["status"] == "finished"
    assert len(read_metrics(planned.workdir)) == 30
    jobs[planned]._process.wait(timeout=SECONDS)  # or it would be told as left over


@pytest.mark.slow
def test_a_job_that_diverges_or_is_killed_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(slurm.submitit.LocalJob, "_results_timeout_s", 0)
    argv = ["--workdir", str(tmp_path), *LONG, "--vary=learning_rate=1e-3,1e30"]
    options, flags = sweep.parse(argv)
    healthy, sick = sweep.define(options, flags, search.space(options))
    jobs = slurm.submit(slurm.submitit.LocalExecutor(tmp_path / "jobs"), [healthy, sick])
    wait_until(lambda: epochs_trained(tmp_path))
    task(jobs[healthy]).kill()
    found = {ended: sweep.ended(ended, code, said) for ended, code, said in slurm.wait(jobs)}
    assert found[sick]["status"] == "diverged"
    assert found[sick]["said"].startswith("the training loss became")
    assert found[healthy]["status"] == "failed"
    assert f"job {jobs[healthy].job_id} " in found[healthy]["said"]


SBATCH = """#!{python}
import os, pathlib, re, subprocess, sys

script = pathlib.Path(sys.argv[1])
folder = pathlib.Path({folder!r})
with (folder / "submitted").open("a") as file:
    file.write(script.read_text())
kept = folder / "script"
kept.write_text(script.read_text())
last = int(re.search("--array=0-([0-9]+)", kept.read_text())[1])
for task in range(last + 1):
    variables = {{"SLURM_JOB_ID": str(8 + task), "SLURM_ARRAY_JOB_ID": "7"}}
    variables["SLURM_ARRAY_TASK_ID"] = str(task)
    wait = f"while [ ! -e {folder}/go ]; do sleep 0.1; done; exec bash {folder}/script"
    subprocess.Popen(
        ["bash", "-c", wait], env=os.environ | variables, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )
print("Submitted batch job 7")
"""
SRUN = """#!/bin/bash
name() { sed "s/%A/7/; s/%a/$SLURM_ARRAY_TASK_ID/; s/%t/0/" <<< "$1"; }
while [[ $1 == --* ]]; do
    case $1 in
        --output) output=$(name "$2"); shift ;;
        --error) error=$(name "$2"); shift ;;
    esac
    shift
done
exec "$@" > "$output" 2> "$error"
"""


@pytest.fixture
def cluster(tmp_path):
    """Commands that stand in for Slurm's; its jobs begin once there is a file `go`."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    scripts = {"sbatch": SBATCH.format(python=sys.executable, folder=str(folder)), "srun": SRUN}
    for name, text in (scripts | {"sacct": "#!/bin/sh\n"}).items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.slow
def test_a_slurm_array_is_submitted_once_and_waited_for(cluster, tmp_path):
    path = f"{cluster}:{os.environ['PATH']}"
    tree = tmp_path / "sweep"
    command = ("--workdir", tree, *TINY, "--vary=shift=0,1", "--slurm=partition=gpu,time=9")
    process = start(*command, PATH=path)
    wait_until(lambda: (tree / "sweep.json").exists() and read_sweep(tree)["rows"][1].get("job"))
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, errors) == (130, f"{sweep.INTERRUPTED}\n")
    rows = read_sweep(tree)["rows"]
    assert [(found["status"], found["job"]) for found in rows] == [
        ("submitted", "7_0"),
        ("submitted", "7_1"),
    ]
    (cluster / "go").touch()
    output, _ = run(*command, PATH=path)
    assert "2 of 2 runs done: shift=" in output
    assert [found["status"] for found in read_sweep(tree)["rows"]] == ["finished", "finished"]
    script = (cluster / "submitted").read_text()
    for line in ("--partition=gpu", "--time=9", "--array=0-1%2", "--job-name=sweep"):
        assert script.count(f"#SBATCH {line}\n") == 1
    assert "2 of 2 runs done" in run(*command, PATH=path)[0]
    assert (cluster / "submitted").read_text() == script


@pytest.mark.parametrize(
    ("settings", "told"), [("time=1:00:00", "in minutes"), ("partitio=gpu", "['partitio']")]
)
def test_a_wrong_setting_for_slurm_is_told(settings, told, cluster, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(cluster))
    argv = ["--workdir", str(tmp_path / "sweep"), *TINY, "--vary=shift=0,1", "--slurm", settings]
    assert run_command(sweep.sweep, argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert not (tmp_path / "sweep").exists()
