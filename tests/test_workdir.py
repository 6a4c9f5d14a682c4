"""The files of a run, after accidents too."""

import json

import pytest

from mnist_flax import workdir
from mnist_flax.config import Config, UserError


def test_a_new_workdir_takes_any_config(tmp_path):
    config = Config(seed=3)
    assert workdir.settle_config(tmp_path / "new", config) == config
    assert list(tmp_path.iterdir()) == []


def test_auto_stays_what_it_became(tmp_path):
    workdir.begin(tmp_path, Config(dataset="digits"))
    assert workdir.settle_config(tmp_path, Config(dataset="auto")).dataset == "digits"
    with pytest.raises(UserError, match="--dataset was digits, now mnist"):
        workdir.settle_config(tmp_path, Config(dataset="mnist"))


def test_another_config_is_refused_by_the_fields_that_differ(tmp_path):
    workdir.begin(tmp_path, Config())
    with pytest.raises(UserError) as error:
        workdir.settle_config(tmp_path, Config(seed=1, batch_size=32))
    assert "(--batch-size was 64, now 32; --seed was 0, now 1)" in str(error.value)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*run: Not a directory"):
        workdir.begin(tmp_path / "file" / "run", Config())


@pytest.mark.parametrize("content", ["", "{", "[]", '{"epochs": 5}', "\x00"])
def test_a_damaged_config_is_named(tmp_path, content):
    (tmp_path / workdir.CONFIG).write_text(content)
    with pytest.raises(UserError, match=workdir.CONFIG):
        workdir.settle_config(tmp_path, Config())


def test_metrics_go_on_after_the_checkpoint(tmp_path):
    path = tmp_path / workdir.METRICS
    assert workdir.rewind_metrics(path, 100) == []
    assert not path.exists()
    for step in (10, 20, 30):
        workdir.append_metrics(path, {"step": step})
    with path.open("a") as file:
        file.write('{"step": 4')  # torn by a kill
    assert workdir.read_metrics(path) == [{"step": 10}, {"step": 20}, {"step": 30}]
    assert workdir.rewind_metrics(path, 20) == [{"step": 10}, {"step": 20}]
    workdir.append_metrics(path, {"step": 30})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [10, 20, 30]
