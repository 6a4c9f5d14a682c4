"""The command that lists runs."""

import json

from mnist_flax import list as list_command
from tests.conftest import read_summary


def test_runs_are_listed_as_a_table_or_as_json(small_run, capsys):
    assert list_command.main([str(small_run.parent)]) == 0
    lines = capsys.readouterr().out.splitlines()
    accuracy = read_summary(small_run)["test_accuracy"]
    (line,) = [line for line in lines if line.startswith("run  ") and "preset" in line]
    assert f"digits   {accuracy:.2%} (" in line
    assert line.endswith("preset default with --epochs 4 --batch-size 128")
    assert list_command.main([str(small_run), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["test_accuracy"] == accuracy
    assert row["state"] == "finished"
    assert row["saved"]


def test_folders_without_runs_are_reported(tmp_path, capsys):
    assert list_command.main([str(tmp_path)]) == 0
    output, errors = capsys.readouterr()
    assert (output, errors) == ("", f"there is no run below {tmp_path}\n")
    assert list_command.main([str(tmp_path / "missing")]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_hostile_names_cannot_control_the_terminal(small_run, tmp_path, capsys):
    (tmp_path / "\x1b[2J").symlink_to(small_run)  # links are not followed
    folder = tmp_path / "\x1b[3J"
    folder.mkdir()
    (folder / "config.json").write_text((small_run / "config.json").read_text())
    assert list_command.main([str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert r"\x1b[3J" in output
    assert "\x1b" not in output
    assert "2J" not in output
