"""The files of a run, after accidents too."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys

import pytest

from mnist_flax import workdir
from mnist_flax.config import Config, UserError


def test_a_new_workdir_takes_any_config(tmp_path):
    config = Config(seed=3)
    assert workdir.settle_config(tmp_path / "new", config) == config
    assert list(tmp_path.iterdir()) == []


def test_auto_stays_what_it_became(tmp_path):
    workdir.begin(tmp_path, Config(dataset="digits"), {})
    assert workdir.settle_config(tmp_path, Config(dataset="auto")).dataset == "digits"
    with pytest.raises(UserError, match="--dataset was digits, now mnist"):
        workdir.settle_config(tmp_path, Config(dataset="mnist"))


def test_another_config_is_refused_by_the_fields_that_differ(tmp_path):
    workdir.begin(tmp_path, Config(), {})
    with pytest.raises(UserError) as error:
        workdir.settle_config(tmp_path, Config(seed=1, batch_size=32))
    assert "(--batch-size was 64, now 32; --seed was 0, now 1)" in str(error.value)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"cannot write to .*run: Not a directory"),
        workdir.held(tmp_path / "file" / "run"),
    ):
        pass


def test_a_second_process_is_refused_with_the_holders_pid_and_host(tmp_path):
    folder = tmp_path / "run"
    with workdir.held(folder):
        message = f"in use by process {os.getpid()} on {re.escape(socket.gethostname())}"
        for _ in range(2):  # the first refusal must not have freed it
            with pytest.raises(UserError, match=message), workdir.held(folder):
                pass
        (folder / "kept").write_text("")
    with workdir.held(folder):
        pass
    assert [path.name for path in folder.iterdir()] == ["kept"]


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom mnist_flax import workdir\n"
        "with workdir.held(Path(sys.argv[1])):\n    os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path / "run")], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert (tmp_path / "run" / workdir.LOCK).exists()
    with workdir.held(tmp_path / "run"):
        assert str(os.getpid()) in (tmp_path / "run" / workdir.LOCK).read_text()
    assert not (tmp_path / "run").exists()  # nothing had begun in it


def test_a_link_in_a_workdir_is_refused(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "run" / "report").mkdir(parents=True)
    (tmp_path / "run" / "report" / "x").symlink_to(outside)
    with pytest.raises(UserError, match="report/x is a link"), workdir.held(tmp_path / "run"):
        pass
    (tmp_path / "link").symlink_to(outside)  # the workdir itself may be one
    with workdir.held(tmp_path / "link"):
        assert (outside / workdir.LOCK).exists()


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    workdir.write_text(path, "old")
    with contextlib.suppress(ZeroDivisionError), workdir.replacing(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    outside = tmp_path / "outside"
    outside.write_text("mine")
    path.with_name("file.tmp").symlink_to(outside)
    workdir.write_text(path, "new")
    assert (path.read_text(), outside.read_text()) == ("new", "mine")


def test_only_a_file_is_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileExistsError, match="not a file"):
        workdir.write_text(tmp_path / "pipe", "text")
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"epochs": 5}', "\x00"])
def test_a_damaged_config_is_named(tmp_path, content):
    (tmp_path / workdir.CONFIG).write_text(content)
    with pytest.raises(UserError, match=workdir.CONFIG):
        workdir.settle_config(tmp_path, Config())


CONFIG = Config(dataset="digits", batch_size=128)  # 12 steps an epoch


def line(epoch, **changes):
    return {"step": 12 * epoch, "epoch": epoch, **dict.fromkeys(workdir.FIGURES, 0.5)} | changes


def test_metrics_go_on_after_the_checkpoint(tmp_path):
    path = tmp_path / workdir.METRICS
    assert workdir.rewind_metrics(path, CONFIG, 0) == []
    assert not path.exists()
    for epoch in (1, 2, 3):
        workdir.append_metrics(path, line(epoch))
    with path.open("a") as file:
        file.write('{"step": 4')  # torn by a kill
    assert workdir.read_metrics(path) == [line(1), line(2), line(3)]
    assert workdir.rewind_metrics(path, CONFIG, 30) == [line(1), line(2)]
    workdir.append_metrics(path, line(3))
    assert [json.loads(text)["epoch"] for text in path.read_text().splitlines()] == [1, 2, 3]


@pytest.mark.parametrize(
    "damaged",
    ["", "{", "[]", "\x00", '{"step": 24, "epoch": 2}', json.dumps(line(2, test_loss=[]))],
)
def test_a_lost_line_is_noticed(tmp_path, damaged):
    path = tmp_path / workdir.METRICS
    path.write_text("\n".join([json.dumps(line(1)), damaged, json.dumps(line(3))]) + "\n")
    before = path.read_text()
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged: epoch 2 is missing"):
        workdir.rewind_metrics(path, CONFIG, 36)
    assert path.read_text() == before
    assert workdir.rewind_metrics(path, CONFIG, 12) == [line(1)]


@pytest.mark.parametrize(("every", "lost"), [(2, 3), (5, 3), (2, 2)])
def test_a_lost_line_is_noticed_where_not_every_epoch_has_one(tmp_path, every, lost):
    config = dataclasses.replace(CONFIG, epochs=3, eval_every=every)
    path = tmp_path / workdir.METRICS
    evaluated = {epoch for epoch in (1, 2, 3) if epoch == 3 or epoch % every == 0}
    for epoch in sorted(evaluated - {lost}):
        workdir.append_metrics(path, line(epoch))
    with pytest.raises(UserError, match=f"epoch {lost} is missing"):
        workdir.rewind_metrics(path, config, 36)


def test_where_all_checkpoints_are_gone_nothing_starts_over(tmp_path):
    path = tmp_path / workdir.METRICS
    workdir.append_metrics(path, line(1))
    workdir.note_saved(tmp_path)
    with pytest.raises(UserError, match="has had checkpoints, but all of them are gone"):
        workdir.rewind_metrics(path, CONFIG, 0)
    assert len(workdir.read_metrics(path)) == 1
    (tmp_path / workdir.SAVED).unlink()  # killed before the first checkpoint was complete
    assert workdir.rewind_metrics(path, CONFIG, 0) == []


@pytest.mark.parametrize("text", ['{"a": ["\\ud800"]}', '{"\\ud800": 1}', "[" * 9 + "]" * 9])
def test_json_that_nobody_can_show_is_refused(tmp_path, text):
    path = tmp_path / "summary.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"summary\.json is damaged"):
        workdir.read_json(path)
