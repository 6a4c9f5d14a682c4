"""The files of a run, also when they are damaged, and its lock."""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mnist_flax.core.config import PRESETS, Config, UserError
from mnist_flax.engine import workdir
from mnist_flax.engine.seed_stats import seed_statistics

CONFIG = Config(dataset="digits", batch_size=128)  # 12 steps per epoch


def test_a_new_workdir_accepts_any_config(tmp_path):
    config = Config(seed=3)
    assert workdir.resolve_config(tmp_path / "new", config) == config
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints", "tensorboard"])
def test_files_of_another_program_are_not_touched(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=rf"holds {name}, but no config\.json; use another"):
        workdir.resolve_config(tmp_path, Config())


def test_auto_stays_the_dataset_that_the_run_chose(tmp_path):
    workdir.initialize_workdir(tmp_path, Config(dataset="digits"), {})
    assert workdir.resolve_config(tmp_path, Config(dataset="auto")).dataset == "digits"
    with pytest.raises(UserError, match="--dataset was digits, now mnist"):
        workdir.resolve_config(tmp_path, Config(dataset="mnist"))


def test_another_config_is_refused_and_its_fields_are_named(tmp_path):
    workdir.initialize_workdir(tmp_path, Config(), {})
    with pytest.raises(UserError) as error:
        workdir.resolve_config(tmp_path, Config(seed=1, batch_size=32))
    assert "(--batch-size was 64, now 32; --seed was 0, now 1)" in str(error.value)


def test_a_resumed_run_keeps_its_config_and_its_first_environment(tmp_path):
    config = Config(dataset="digits")
    assert workdir.initialize_workdir(tmp_path, config, {"jax": "1"}) == {"jax": "1"}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert workdir.initialize_workdir(tmp_path, config, {"jax": "2"}) == {"jax": "1"}
    with pytest.raises(UserError, match="holds a run with another config"):
        workdir.initialize_workdir(tmp_path, Config(seed=1), {"jax": "1"})
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert workdir.read_config(tmp_path) == config


def test_a_folder_that_cannot_be_created_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"cannot write to .*run: Not a directory"),
        workdir.lock_workdir(tmp_path / "file" / "run"),
    ):
        pass


def test_a_second_process_is_refused_and_the_holder_is_named(tmp_path):
    folder = tmp_path / "run"
    with workdir.lock_workdir(folder):
        message = f"in use by process {os.getpid()} on {re.escape(socket.gethostname())}"
        for _ in range(2):  # a refusal must not release the lock
            with pytest.raises(UserError, match=message), workdir.lock_workdir(folder):
                pass
        (folder / "kept").write_text("")
    with workdir.lock_workdir(folder):
        pass
    assert [path.name for path in folder.iterdir()] == ["kept"]


def test_the_lock_of_a_dead_process_is_released(tmp_path):
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom mnist_flax.engine import workdir\n"
        "with workdir.lock_workdir(Path(sys.argv[1])):\n    os.kill(os.getpid(), signal.SIGKILL)"
    )
    folder = tmp_path / "run"
    result = subprocess.run([sys.executable, "-c", script, str(folder)], check=False)
    assert result.returncode == -signal.SIGKILL
    assert (folder / workdir.LOCK).exists()
    with workdir.lock_workdir(folder):
        assert str(os.getpid()) in (folder / workdir.LOCK).read_text()
    assert not folder.exists()  # because nothing was written to it


@pytest.mark.parametrize(
    ("number", "operation", "message"),
    [
        (errno.EIO, fcntl.LOCK_EX, "cannot write to .*: Input/output error"),
        (errno.ENOSYS, fcntl.LOCK_EX, "its file system has no locks"),
        (errno.EIO, fcntl.LOCK_UN, None),
        (errno.ENOSYS, fcntl.LOCK_UN, None),
    ],
)
def test_a_lock_that_fails_is_reported_and_its_release_may_fail(
    tmp_path, monkeypatch, number, operation, message
):
    flock = fcntl.flock

    def fail(descriptor, requested):
        if requested & operation:
            raise OSError(number, os.strerror(number))
        flock(descriptor, requested)

    monkeypatch.setattr(fcntl, "flock", fail)
    refused = pytest.raises(UserError, match=message) if message else contextlib.nullcontext()
    with refused, workdir.lock_workdir(tmp_path / "run"):
        (tmp_path / "run" / "file").write_text("")


def test_a_link_in_a_workdir_is_refused(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "run" / "report").mkdir(parents=True)
    (tmp_path / "run" / "report" / "x").symlink_to(outside)
    with (
        pytest.raises(UserError, match="report/x is a link, which a workdir must not contain"),
        workdir.lock_workdir(tmp_path / "run"),
    ):
        pass
    (tmp_path / "link").symlink_to(outside)  # the workdir itself may be a link
    with workdir.lock_workdir(tmp_path / "link"):
        assert (outside / workdir.LOCK).exists()


VALUES = json.dumps(dataclasses.asdict(CONFIG))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "[1]",
        '{"epochs": 5}',
        "\x00",
        "[" * 9**5,
        VALUES.replace('"epochs": 5', '"epochs": "5"'),
        VALUES.replace('"epochs": 5', '"epochs": NaN'),
        VALUES.replace('"epochs": 5', f'"epochs": {2**63}'),
        VALUES.replace('"epochs": 5', '"epochs": {"mean": 5}'),
        VALUES.replace('"epochs": 5', '"epoch": 5'),
        VALUES.replace('"digits"', '"\\ud800"'),
        VALUES.replace("}", ', "extra": 1}'),
    ],
)
def test_a_damaged_config_is_refused_in_one_line(tmp_path, content):
    (tmp_path / workdir.CONFIG).write_text(content)
    for read in (workdir.read_config, lambda folder: workdir.resolve_config(folder, CONFIG)):
        with pytest.raises(UserError, match=r"config\.json is ") as error:
            read(tmp_path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["{", "[]", '{"jax": null}', '{"jax": 1.5}', '{"jax": NaN}'])
def test_a_damaged_environment_is_refused(tmp_path, content):
    (tmp_path / workdir.ENVIRONMENT).write_text(content)
    with pytest.raises(UserError, match=r"environment\.json is damaged"):
        workdir.initialize_workdir(tmp_path, CONFIG, {"jax": "1"})
    assert (tmp_path / workdir.ENVIRONMENT).read_text() == content


def metrics_row(epoch, **changes) -> workdir.MetricsRow:
    row: workdir.MetricsRow = {
        "step": 12 * epoch,
        "epoch": epoch,
        "dataset": "digits",
        "learning_rate": 0.5,
        "train_loss": 0.5,
        "test_loss": 0.5,
        "test_accuracy": 0.5,
        "seconds": 0.5,
        "images_per_second": 0.5,
    }
    return row | changes  # pyright: ignore[reportReturnType]


def test_metrics_continue_after_the_checkpoint(tmp_path):
    path = tmp_path / workdir.METRICS
    assert workdir.truncate_metrics(tmp_path, CONFIG, 0) == []
    assert not path.exists()
    for epoch in (1, 2, 3):
        workdir.append_metrics(tmp_path, metrics_row(epoch))
    with path.open("a") as file:
        file.write('{"step": 4')  # as a killed process leaves it
    assert workdir.read_metrics(tmp_path) == [metrics_row(epoch) for epoch in (1, 2, 3)]
    assert workdir.truncate_metrics(tmp_path, CONFIG, 30) == [metrics_row(1), metrics_row(2)]
    workdir.append_metrics(tmp_path, metrics_row(3))
    assert [json.loads(line)["epoch"] for line in path.read_text().splitlines()] == [1, 2, 3]


ROW = json.dumps(metrics_row(2))


@pytest.mark.parametrize(
    "damaged",
    [
        "",
        "{",
        "[]",
        "\x00",
        "[" * 9**5,
        '{"step": 24, "epoch": 2}',
        ROW.replace('"step": 24', '"step": 24.0'),
        ROW.replace('"step": 24', '"step": "24"'),
        ROW.replace('"step": 24', f'"step": {2**63}'),
        ROW.replace('"digits"', "1"),
        ROW.replace('"digits"', '"\\ud800"'),
        ROW.replace('"test_loss": 0.5', '"test_loss": []'),
        ROW.replace('"test_loss": 0.5', '"test_loss": null'),
        ROW.replace('"test_loss": 0.5', '"test_loss": NaN'),
        ROW.replace('"test_loss": 0.5', '"test_loss": Infinity'),
        ROW.replace('"test_loss": 0.5', '"test_loss": {"mean": 0.5, "std": 0.1}'),
        ROW.replace('"test_loss": 0.5', f'"test_loss": {json.dumps(seed_statistics([0.4, 0.6]))}'),
        ROW.replace('"test_loss": 0.5, ', ""),
        ROW.replace("}", ', "extra": 0.5}'),
        ROW.replace("}", ', "validation_loss": 0.5}'),  # no other row has it
    ],
)
def test_a_damaged_row_is_detected(tmp_path, damaged):
    path = tmp_path / workdir.METRICS
    path.write_text("\n".join([json.dumps(metrics_row(1)), damaged, json.dumps(metrics_row(3))]))
    before = path.read_text()
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged: epoch 2 is missing"):
        workdir.truncate_metrics(tmp_path, CONFIG, 36)
    assert path.read_text() == before
    assert workdir.truncate_metrics(tmp_path, CONFIG, 12) == [metrics_row(1)]


def test_rows_of_several_seeds_must_agree_in_their_number(tmp_path):
    rows = [
        metrics_row(epoch, test_loss=seed_statistics([0.5] * seeds))
        for epoch, seeds in ((1, 3), (2, 3), (3, 2))
    ]
    for row in rows:
        workdir.append_metrics(tmp_path, row)
    assert workdir.read_metrics(tmp_path) == rows[:2]


@pytest.mark.parametrize(("eval_every", "missing"), [(2, 3), (5, 3), (2, 2)])
def test_a_missing_row_is_detected_if_only_some_epochs_are_evaluated(tmp_path, eval_every, missing):
    config = dataclasses.replace(CONFIG, epochs=3, eval_every_epochs=eval_every)
    evaluated = {epoch for epoch in (1, 2, 3) if epoch == 3 or epoch % eval_every == 0}
    for epoch in sorted(evaluated - {missing}):
        workdir.append_metrics(tmp_path, metrics_row(epoch))
    with pytest.raises(UserError, match=f"epoch {missing} is missing"):
        workdir.truncate_metrics(tmp_path, config, 36)


def test_metrics_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / workdir.METRICS).touch()
    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(UserError, match=r"cannot read .*metrics\.jsonl: Permission denied"):
        workdir.read_metrics(tmp_path)


def test_a_run_whose_checkpoints_are_all_gone_is_not_started_again(tmp_path):
    workdir.append_metrics(tmp_path, metrics_row(1))
    workdir.mark_checkpointed(tmp_path)
    with pytest.raises(UserError, match="has had checkpoints, but all of them are gone"):
        workdir.truncate_metrics(tmp_path, CONFIG, 0)
    assert len(workdir.read_metrics(tmp_path)) == 1
    (tmp_path / workdir.CHECKPOINTED).unlink()  # killed before the first checkpoint was complete
    assert workdir.truncate_metrics(tmp_path, CONFIG, 0) == []


SUMMARY: workdir.Summary = {
    "dataset": "digits",
    "parameters": 81_066,
    "test_examples": 360,
    "test_accuracy": 0.5,
    "test_loss": seed_statistics([1.0, 2.0]),
    "epochs": 4,
    "steps": 48,
    "params_sha256": "0",
    "seconds": {"total": 1.0},
    "environment": {"jax": "1", "cores": 2},
}


def test_a_summary_that_was_written_is_read_again(tmp_path):
    assert workdir.read_summary(tmp_path) is None
    workdir.write_summary(tmp_path, SUMMARY)
    assert workdir.read_summary(tmp_path) == SUMMARY


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": 1},
        {"dataset": "\ud800"},
        {"parameters": "81066"},
        {"epochs": None},
        {"steps": 2**63},
        {"test_accuracy": float("nan")},
        {"test_accuracy": [0.5]},
        {"test_loss": {"mean": 1.0}},
        {"test_loss": {**seed_statistics([1.0, 2.0]), "per_seed": 1.0}},
        {"test_loss": {**seed_statistics([1.0, 2.0]), "per_seed": [1.0, "2"]}},
        {"validation_accuracy": "high"},
        {"seconds": {"total": "1"}},
        {"seconds": 1.0},
        {"environment": {"jax": ["1"]}},
        {"extra": 1},
    ],
)
def test_a_damaged_summary_is_refused_in_one_line(tmp_path, changes):
    (tmp_path / workdir.SUMMARY).write_text(json.dumps({**SUMMARY, **changes}))
    message = r"summary\.json is damaged: .*; remove it, and the command that trained the run"
    with pytest.raises(UserError, match=message) as error:
        workdir.read_summary(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", sorted(SUMMARY))
def test_a_summary_that_lacks_an_entry_is_refused(tmp_path, name):
    summary = {key: value for key, value in SUMMARY.items() if key != name}
    (tmp_path / workdir.SUMMARY).write_text(json.dumps(summary))
    with pytest.raises(UserError, match=rf"summary\.json is damaged: .*{name}"):
        workdir.read_summary(tmp_path)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_a_config_survives_json(preset):
    assert workdir.from_dict(json.loads(json.dumps(dataclasses.asdict(preset)))) == preset


def test_missing_and_unknown_fields_are_named():
    values = dataclasses.asdict(Config())
    del values["seed"]
    message = r"not a config of this version \(missing or unknown: color, seed\)"
    with pytest.raises(UserError, match=message):
        workdir.from_dict(values | {"color": 1})


def test_differences_name_the_field_and_both_values():
    assert workdir.diff_configs(Config(), Config()) == []
    assert workdir.diff_configs(Config(), Config(batch_size=32)) == ["--batch-size was 64, now 32"]
