"""Two processes compute one run, over loopback: with the same result, and they end together."""

import dataclasses
import json
import signal
import time

import jax
import pytest

from experiments import multi_device
from mnist_flax import run
from mnist_flax.core.config import UserError
from mnist_flax.engine import distributed
from mnist_flax.engine.checkpoint import CheckpointManager
from mnist_flax.run import experiment
from tests.conftest import SMALL, read_metrics, read_summary, start, without_timing

ARGUMENTS = (*SMALL, "--no-report")

# Upper limit for how long a process outlives the other one. In practice it ends at once because
# the connection is closed, but the machine may be busy.
DEADLINE_SECONDS = 60


def start_two(workdir, *flags, second_only=()):
    """Starts both processes of a run; `second_only` are flags of the second one alone."""
    address = multi_device.free_address()
    common = ("--workdir", str(workdir), "--coordinator-address", address, "--num-processes", "2")
    return [
        start(*common, "--process-id", str(index), *flags, *(second_only if index else ()))
        for index in range(2)
    ]


def wait_for(pair, seconds=300):
    """The exit code, output and errors of each process, without the messages of Gloo."""
    results = []
    for process in pair:
        streams = [
            "\n".join(line for line in stream.splitlines() if not line.startswith("[Gloo]"))
            for stream in process.communicate(timeout=seconds)
        ]
        results.append((process.returncode, *streams))
    return results


def wait_for_rows(workdir, count, *processes):
    path = workdir / "metrics.jsonl"
    while all(process.poll() is None for process in processes):
        if path.exists() and path.read_text().count("\n") >= count:
            return
        time.sleep(0.005)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The workdir of a finished run of two processes, with a report, and how they ended."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    return workdir, wait_for(start_two(workdir, *SMALL))


def assert_same_run(workdir, other):
    assert read_summary(workdir)["params_sha256"] == read_summary(other)["params_sha256"]
    assert without_timing(read_metrics(workdir)) == without_timing(read_metrics(other))


@pytest.mark.slow
def test_two_processes_compute_the_same_run_and_one_writes(uninterrupted, small_run):
    workdir, results = uninterrupted
    assert [code for code, *_ in results] == [0, 0]
    (_, output, errors), second = results
    assert (errors, second[1:]) == ("", ("", ""))
    assert output.count("epoch ") == 4
    rows, single_rows = read_metrics(workdir), read_metrics(small_run)
    assert [row["step"] for row in rows] == [row["step"] for row in single_rows]
    for epoch in (0, 1):  # 24 steps
        assert abs(rows[epoch]["train_loss"] - single_rows[epoch]["train_loss"]) < 1e-4
    assert abs(rows[0]["test_accuracy"] - single_rows[0]["test_accuracy"]) < 0.002
    environment = read_summary(workdir)["environment"]
    assert (environment["device_count"], environment["process_count"]) == (2, 2)
    report = (workdir / "report" / "index.html").read_text()
    assert f"{read_summary(workdir)['test_accuracy']:.2%}" in report


@pytest.mark.nightly
def test_a_signal_to_one_process_saves_and_stops_both(uninterrupted, tmp_path):
    pair = start_two(tmp_path, *ARGUMENTS)
    wait_for_rows(tmp_path, 1, *pair)
    pair[1].send_signal(signal.SIGTERM)
    (code, _, errors), second = wait_for(pair)
    assert (code, second[0]) == (143, 143)
    assert "stopped by SIGTERM, saved at step" in errors
    assert second[1:] == ("", "")
    assert [code for code, *_ in wait_for(start_two(tmp_path, *ARGUMENTS))] == [0, 0]
    assert_same_run(tmp_path, uninterrupted[0])


@pytest.mark.nightly
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_and_the_restarted_run_resumes(
    uninterrupted, tmp_path, victim
):
    pair = start_two(tmp_path, *ARGUMENTS)
    wait_for_rows(tmp_path, 2, *pair)
    pair[victim].kill()
    code, _, errors = wait_for(pair, DEADLINE_SECONDS)[1 - victim]
    if code == -signal.SIGABRT and victim == 0:  # JAX may notice first that its coordinator is gone
        assert "This most likely indicates that another task died" in errors
    else:
        assert code == 1
        last_line = errors.splitlines()[-1]
        assert last_line.startswith("error: this process or another one failed; ")
        assert "start all processes again" in last_line
    results = wait_for(start_two(tmp_path, *ARGUMENTS))
    assert [code for code, *_ in results] == [0, 0]
    assert "resuming from step" in results[0][1]
    assert_same_run(tmp_path, uninterrupted[0])


@pytest.mark.nightly
def test_a_run_resumes_with_another_number_of_processes(tmp_path, small_run):
    """From two to one to two."""
    arguments = (*ARGUMENTS, "--num-seeds", "2")
    pair = start_two(tmp_path, *arguments)
    wait_for_rows(tmp_path, 1, *pair)
    pair[0].send_signal(signal.SIGTERM)
    assert [code for code, *_ in wait_for(pair)] == [143, 143]
    process = start("--workdir", str(tmp_path), *arguments)
    wait_for_rows(tmp_path, len(read_metrics(tmp_path)) + 1, process)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate()
    assert process.returncode == 143, errors
    assert "device_count was 2, now 1" in output
    assert "resuming from step" in output
    results = wait_for(start_two(tmp_path, *arguments))
    assert [code for code, *_ in results] == [0, 0]
    assert "resuming from step" in results[0][1]
    accuracies = read_summary(tmp_path)["test_accuracy"]["per_seed"]
    assert abs(accuracies[0] - read_summary(small_run)["test_accuracy"]) < 0.03


@pytest.mark.nightly
def test_different_configs_are_refused(tmp_path):
    results = wait_for(start_two(tmp_path, *ARGUMENTS, second_only=("--seed", "1")))
    assert [code for code, *_ in results] == [2, 2]
    assert "different configs (--seed was 0, now 1)" in results[1][2]


@pytest.mark.nightly
def test_an_error_of_the_primary_process_ends_both_and_is_reported_once(small_run, tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    for workdir in (tmp_path, small_run / "summary.json"):
        first, second = wait_for(start_two(workdir, *ARGUMENTS))
        assert (first[0], second[0]) == (2, 2)
        assert first[2].startswith("error: ")
        assert first[2].count("\n") == 0
        if workdir == tmp_path:  # the other one sees this mistake only through the primary one
            assert second[2] == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("localhost:1", None, None), "go together"),
        ((None, 2, None), "go together"),
        ((None, 2, 0), "go together"),
        (("localhost", 2, 0), "must be HOST:PORT, but is 'localhost'"),
        ((":80", 2, 0), "must be HOST:PORT"),
        (("localhost:x", 2, 0), "must be HOST:PORT"),
        (("localhost:65536", 2, 0), "must be HOST:PORT"),
        (("localhost:1", 2, 2), "from 0 to below --num-processes 2, but is 2"),
        (("localhost:1", 0, 0), "from 0 to below --num-processes 0"),
    ],
)
def test_invalid_arguments_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        distributed.initialize(*arguments)


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{}, {"OMPI_COMM_WORLD_SIZE": "2"}])
def test_distributed_without_a_known_launcher_is_refused_in_one_line(tmp_path, environment):
    """Open MPI 5 does not say where the other processes are."""
    workdir = tmp_path / "run"
    process = start("--workdir", str(workdir), *ARGUMENTS, "--distributed", **environment)
    output, errors = process.communicate()
    assert (process.returncode, output) == (2, "")
    assert errors.startswith("error: cannot join the other processes: ")
    assert "set --coordinator-address, --num-processes and --process-id" in errors
    assert errors.count("\n") == 1
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("flags", "arguments"),
    [
        ((), None),
        (("--distributed",), (None, None, None)),
        (
            ("--coordinator-address", "host:1", "--num-processes", "2", "--process-id", "1"),
            ("host:1", 2, 1),
        ),
    ],
)
def test_only_the_flags_decide_whether_processes_join(small_run, monkeypatch, flags, arguments):
    """Not the variables that a launcher sets."""
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node[1-2]")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **_: calls.append(args))
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    assert run.main(["--workdir", str(small_run), *SMALL, *flags]) == 0
    assert calls == ([] if arguments is None else [arguments])


def test_joining_has_time_limits(monkeypatch):
    limits = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **named: limits.update(named))
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    distributed.initialize(None, None, None)
    assert limits == {"initialization_timeout": 300, "heartbeat_timeout_seconds": 30}


def test_the_other_processes_load_the_data_after_the_primary_one(monkeypatch, config, digits):
    events = []

    def run_on_primary(_):
        def prepare():
            events.append("prepared by the primary")
            return "digits"

        return prepare

    def load(name, *_):
        events.append(f"{name} loaded")
        return digits

    config = dataclasses.replace(config, dataset="auto")
    monkeypatch.setattr(distributed, "is_primary", lambda: False)
    monkeypatch.setattr(experiment, "run_on_primary", run_on_primary)
    monkeypatch.setattr(experiment, "load_dataset", load)
    assert experiment._load_dataset(config, None, None, print) is digits
    assert events == ["prepared by the primary", "digits loaded"]


def test_another_checkpoint_than_the_primary_process_has_is_refused(monkeypatch, tmp_path):
    with CheckpointManager(tmp_path, max_to_keep=1) as checkpoints:
        checkpoints.save(3, {"a": jax.numpy.arange(2)})
        monkeypatch.setattr(distributed, "broadcast_from_primary", lambda _: 5)
        with pytest.raises(UserError, match="all of them need the same folder"):
            checkpoints.restore({"a": jax.numpy.arange(2)})


def test_a_single_process_has_nobody_to_communicate_with():
    assert not distributed.is_distributed()
    assert distributed.is_primary()
    result = object()  # not representable as JSON
    assert distributed.run_on_primary(lambda value, key: (value, key))(result, key=1) == (result, 1)
    assert (distributed.broadcast_from_primary(3), distributed.allreduce_max(4)) == (3, 4)
    distributed.exit_now(7)  # ends only one of several processes
    tree = distributed.gather_to_host({"x": jax.numpy.arange(2)})
    assert json.dumps(tree["x"].tolist()) == "[0, 1]"


def test_an_unexpected_error_of_a_single_process_keeps_its_traceback(monkeypatch, small_run):
    def fail(*_):
        raise ValueError("UNKNOWN: a bug")

    monkeypatch.setattr("mnist_flax.engine.workdir.resolve_config", fail)
    with pytest.raises(ValueError, match="a bug"):
        run.main(["--workdir", str(small_run), *SMALL])
