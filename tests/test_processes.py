"""Two processes as one run, over loopback: the same result, and the same end for both."""

import json
import re
import signal
import time
from types import SimpleNamespace

import jax
import pytest

from mnist_flax import experiment, processes
from mnist_flax.checkpoint import Checkpoints
from mnist_flax.config import UserError
from tests.conftest import SMALL, read_metrics, read_summary, script, start, without_timing

scaling = script("scaling")

ARGUMENTS = (*SMALL, "--no-report")

# A process ends so soon, in seconds, once another has died: here at once, for its connection is
# closed, but the machine may be busy.
SOON = 60


def two(workdir, *flags, others=()):
    """Both processes of a run; `others` are the flags of the second one alone."""
    address = scaling.free_address()
    common = ("--workdir", str(workdir), "--coordinator-address", address, "--num-processes", "2")
    return [
        start(*common, "--process-id", str(number), *flags, *(others if number else ()))
        for number in range(2)
    ]


def ended(pair, seconds=300):
    """Each one's exit code, output and errors, without what the transport says of itself."""
    found = []
    for process in pair:
        streams = process.communicate(timeout=seconds)
        own = [
            "\n".join(line for line in stream.splitlines() if not line.startswith("[Gloo]"))
            for stream in streams
        ]
        found.append((process.returncode, *own))
    return found


def wait_for_lines(workdir, count, *pair):
    path = workdir / "metrics.jsonl"
    while all(process.poll() is None for process in pair):
        if path.exists() and path.read_text().count("\n") >= count:
            return
        time.sleep(0.005)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The workdir of a finished run of two processes, with a report, and how they ended."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    return workdir, ended(two(workdir, *SMALL))


def assert_as_undisturbed(workdir, undisturbed):
    ours, theirs = read_summary(workdir), read_summary(undisturbed[0])
    assert ours["params_sha256"] == theirs["params_sha256"]
    metrics = [without_timing(read_metrics(folder)) for folder in (workdir, undisturbed[0])]
    assert metrics[0] == metrics[1]


@pytest.mark.slow
def test_two_processes_train_as_one(undisturbed, small_run):
    workdir, ends = undisturbed
    assert [end[0] for end in ends] == [0, 0]
    (_, output, errors), second = ends
    assert (errors, second[1:]) == ("", ("", ""))
    assert output.count("epoch ") == 4
    ours, theirs = read_metrics(workdir), read_metrics(small_run)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for epoch in (0, 1):  # 24 steps
        loss, alone = (lines[epoch]["train_loss"] for lines in (ours, theirs))
        assert abs(loss - alone) < 1e-4
    assert abs(ours[0]["test_accuracy"] - theirs[0]["test_accuracy"]) < 0.002
    environment = read_summary(workdir)["environment"]
    assert (environment["device_count"], environment["process_count"]) == (2, 2)
    report = (workdir / "report" / "index.html").read_text()
    assert f"{read_summary(workdir)['test_accuracy']:.2%}" in report


@pytest.mark.slow
def test_a_signal_to_one_saves_and_stops_both(undisturbed, tmp_path):
    pair = two(tmp_path, *ARGUMENTS)
    wait_for_lines(tmp_path, 1, *pair)
    pair[1].send_signal(signal.SIGTERM)
    (code, _, errors), second = ended(pair)
    assert (code, second[0]) == (143, 143)
    assert "stopped by SIGTERM, saved at step" in errors
    assert second[1:] == ("", "")
    assert [end[0] for end in ended(two(tmp_path, *ARGUMENTS))] == [0, 0]
    assert_as_undisturbed(tmp_path, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_one_that_dies_ends_the_other_and_the_restart_goes_on(undisturbed, tmp_path, victim):
    pair = two(tmp_path, *ARGUMENTS)
    wait_for_lines(tmp_path, 2, *pair)
    pair[victim].kill()
    code, _, errors = ended(pair, SOON)[1 - victim]
    if code == -signal.SIGABRT and victim == 0:  # JAX itself may be first to miss its coordinator
        assert "This most likely indicates that another task died" in errors
    else:
        assert code == 1
        assert f"error: process {1 - victim} has lost another one" in errors
        assert victim == 0 or errors.count("\n") == 0
    ends = ended(two(tmp_path, *ARGUMENTS))
    assert [end[0] for end in ends] == [0, 0]
    assert "going on from step" in ends[0][1]
    assert_as_undisturbed(tmp_path, undisturbed)


@pytest.mark.slow
def test_what_two_began_one_goes_on_with_and_two_finish(tmp_path, small_run):
    arguments = (*ARGUMENTS, "--num-seeds", "2")
    pair = two(tmp_path, *arguments)
    wait_for_lines(tmp_path, 1, *pair)
    pair[0].send_signal(signal.SIGTERM)
    assert [end[0] for end in ended(pair)] == [143, 143]
    process = start("--workdir", str(tmp_path), *arguments)
    wait_for_lines(tmp_path, len(read_metrics(tmp_path)) + 1, process)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate()
    assert process.returncode == 143, errors
    assert "device_count was 2, now 1" in output
    assert "going on from step" in output
    ends = ended(two(tmp_path, *arguments))
    assert [end[0] for end in ends] == [0, 0]
    assert "going on from step" in ends[0][1]
    accuracies = read_summary(tmp_path)["test_accuracy"]["per_seed"]
    assert abs(accuracies[0] - read_summary(small_run)["test_accuracy"]) < 0.03


@pytest.mark.slow
def test_mistakes_end_all(small_run, tmp_path):
    """Whether all can see them or only one."""
    different = ended(two(tmp_path / "a", *ARGUMENTS, others=("--seed", "1")))
    assert [end[0] for end in different] == [2, 2]
    assert "different configs (--seed was 0, now 1)" in different[1][2]
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "checkpoints").write_text("mine")
    for workdir in (tmp_path / "b", small_run / "summary.json"):
        first, second = ended(two(workdir, *ARGUMENTS))
        assert (first[0], second[0]) == (2, 2)
        assert first[2].startswith("error: ")
        assert first[2].count("\n") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("localhost:1", None, None), "go together"),
        ((None, 2, None), "go together"),
        ((None, 2, 0), "go together"),
        (("localhost", 2, 0), "must be HOST:PORT, but is 'localhost'"),
        ((":80", 2, 0), "must be HOST:PORT"),
        (("localhost:x", 2, 0), "must be HOST:PORT"),
        (("localhost:1", 2, 2), "from 0 to below --num-processes 2, but is 2"),
        (("localhost:1", 0, 0), "from 0 to below --num-processes 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        processes.initialize(*arguments)


ALONE = (
    {},
    {"SLURM_NTASKS": "4"},  # in a batch script, before any srun
    {"SLURM_STEP_NODELIST": "node1", "SLURM_NTASKS": "1"},
    {"OMPI_COMM_WORLD_SIZE": "1"},
    {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
)
TOGETHER = (
    {"SLURM_STEP_NODELIST": "node[1-2]", "SLURM_NTASKS": "2"},
    {"OMPI_COMM_WORLD_SIZE": "2"},
    {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"},
)


@pytest.mark.parametrize(
    ("environment", "together"),
    [*((env, False) for env in ALONE), *((env, True) for env in TOGETHER)],
)
def test_processes_that_were_started_together_are_joined(monkeypatch, environment, together):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    joined, limits = [], {}

    def join(*given, **named):
        joined.append(given)
        limits.update(named)

    monkeypatch.setattr(jax.distributed, "initialize", join)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    processes.initialize()
    assert joined == ([(None, None, None)] if together else [])
    if together:
        assert limits == {"initialization_timeout": 300, "heartbeat_timeout_seconds": 30}
    processes.initialize(num_processes=1)
    assert len(joined) == together


def test_others_that_cannot_be_found_are_told(tmp_path):
    """Open MPI 5 does not say where they are."""
    process = start("--workdir", str(tmp_path / "run"), *ARGUMENTS, OMPI_COMM_WORLD_SIZE="2")
    output, errors = process.communicate()
    assert (process.returncode, output) == (2, "")
    assert errors.startswith("error: cannot join the other processes: ")
    assert "name them by --coordinator-address, --num-processes and --process-id" in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_others_wait_until_the_first_has_prepared_the_data(monkeypatch, config):
    events = []

    def first_has_done(_):
        events.append("prepared by the first")
        return "digits"

    def load(name, *_):
        events.append(f"{name} loaded")
        return SimpleNamespace(name=name)

    monkeypatch.setattr(processes, "on_first", first_has_done)
    monkeypatch.setattr(experiment, "load_dataset", load)
    experiment._load(config, None, None, print)
    assert events == ["prepared by the first", "digits loaded"]


def test_another_checkpoint_than_the_others_is_refused(monkeypatch, tmp_path):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(3, {"a": jax.numpy.arange(2)})
        monkeypatch.setattr(processes, "first_of", lambda _: 5)
        with pytest.raises(UserError, match="has to be one folder for all of them"):
            checkpoints.restore({"a": jax.numpy.arange(2)})


def test_one_process_has_nothing_to_agree_on():
    assert not processes.several()
    assert processes.is_first()
    assert processes.on_first(lambda: {"a": 1}) == {"a": 1}
    assert (processes.first_of(3), processes.largest_of(4)) == (3, 4)
    processes.leave(7)  # which would end this one
    tree = processes.to_host({"x": jax.numpy.arange(2)})
    assert json.dumps(tree["x"].tolist()) == "[0, 1]"
    with pytest.raises(ValueError, match="mine"), processes.noticing_loss():
        raise ValueError("UNKNOWN: mine")


def test_loss_is_told_from_other_errors(monkeypatch):
    monkeypatch.setattr(processes, "several", lambda: True)
    for text in ("UNKNOWN: Gloo all-reduce failed: reset by peer", "DEADLINE_EXCEEDED: Barrier"):
        with pytest.raises(processes.Lost, match="has lost another one"), processes.noticing_loss():
            raise ValueError(text)
    for text in (
        "NaN: none",
        "OUT_OF_RANGE: Failed writing: File too large [os_error_code='27']",
        "UNKNOWN: Error writing [tensorstore_spec='{}']",
        "RESOURCE_EXHAUSTED: Out of memory",
        "INTERNAL: Autotuning failed for HLO: cuDNN graph",
    ):
        with pytest.raises(ValueError, match=re.escape(text)), processes.noticing_loss():
            raise ValueError(text)
