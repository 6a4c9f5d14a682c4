"""The command that compares two runs."""

import json

import pytest

from mnist_flax import compare, run
from mnist_flax.compare import describe
from tests.conftest import SMALL


def test_a_run_does_not_differ_from_itself(small_run, capsys):
    assert compare.main([str(small_run), str(small_run)]) == 0
    assert capsys.readouterr().out.rstrip().endswith("No difference at all.")


@pytest.mark.nightly
def test_accuracies_equal_those_in_the_summaries(small_run, tmp_path, capsys):
    flags = ("--num-seeds", "2", "--seed", "4", "--no-report")
    assert run.main(["--workdir", str(tmp_path), *SMALL, *flags]) == 0
    capsys.readouterr()
    assert compare.main([str(small_run), str(tmp_path), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    for side, folder in (("a", small_run), ("b", tmp_path)):
        summary = json.loads((folder / "summary.json").read_text())
        assert result[f"accuracy_{side}"] == summary["test_accuracy"]
    assert (result["a"]["seeds"], result["b"]["seeds"]) == ([0], [4, 5])
    text = describe(result)
    assert result["verdict"] in text
    assert f"2 seeds  {tmp_path}" in text


@pytest.mark.nightly
def test_only_shared_seeds_are_compared(tmp_path):
    workdirs = []
    for name, seed, count in (("a", 0, 3), ("b", 1, 4), ("c", 3, 2)):
        workdirs.append(tmp_path / name)
        flags = ("--num-seeds", str(count), "--seed", str(seed), "--epochs", "1", "--no-report")
        assert run.main(["--workdir", str(workdirs[-1]), *SMALL[:2], *flags]) == 0
    result = compare.compare_runs(*workdirs[:2])
    assert result["paired"]
    assert result["a"]["seeds"] == result["b"]["seeds"] == [1, 2]
    assert result["difference"] == 0  # the same config and the same seeds
    unpaired = compare.compare_runs(workdirs[0], workdirs[2])
    assert not unpaired["paired"]
    assert (unpaired["a"]["seeds"], unpaired["b"]["seeds"]) == ([0, 1, 2], [3, 4])


def test_a_page_is_written_besides_the_text(small_run, tmp_path, capsys):
    page = tmp_path / "comparison.html"
    assert compare.main([str(small_run), str(small_run)]) == 0
    text = capsys.readouterr().out
    assert compare.main([str(small_run), str(small_run), "--html", str(page)]) == 0
    output, errors = capsys.readouterr()
    assert output == text
    assert errors.endswith(f"wrote {page}\n")
    assert "<h1>2 runs on scikit-learn&#39;s digits</h1>" in page.read_text(encoding="utf-8")
    missing = tmp_path / "missing" / "page.html"
    assert compare.main([str(small_run), str(small_run), "--html", str(missing)]) == 2
    message = f"error: cannot write to {missing}: No such file or directory\n"
    assert capsys.readouterr().err.endswith(message)


def test_more_than_two_runs_are_compared_with_the_first(small_run, capsys):
    folders = [str(small_run)] * 3
    assert compare.main(folders) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:3] for line in lines] == [
        "run",
        "A  ",
        "B  ",
        "C  ",
        "",
        "B -",
        "No ",
        "",
        "C -",
        "No ",
    ]
    assert compare.main([*folders, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in result["leaderboard"]] == ["A", "B", "C"]
    accuracy = json.loads((small_run / "summary.json").read_text())["test_accuracy"]
    assert {row["test_accuracy"] for row in result["leaderboard"]} == {accuracy}
    assert [x["difference"] for x in result["comparisons"]] == [0, 0]


def test_runs_that_cannot_be_compared_are_refused_in_one_line(small_run, tmp_path, capsys):
    untrained, other = tmp_path / "untrained", tmp_path / "other"
    stored = json.loads((small_run / "config.json").read_text())
    for folder, dataset in ((untrained, "digits"), (other, "mnist")):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(stored | {"dataset": dataset}))
    (other / "checkpoints").symlink_to(small_run / "checkpoints")
    cases = {
        (str(small_run), str(tmp_path / "missing")): "holds no run",
        (str(small_run), str(untrained)): "nothing has been trained",
        (str(small_run), str(other)): "cannot be compared",
        (str(small_run), str(small_run), str(other)): "cannot be compared",
        (str(small_run),): "--help",
    }
    for arguments, message in cases.items():
        assert compare.main(arguments) == 2
        errors = capsys.readouterr().err
        assert message in errors
        assert errors.count("\n") == 1
