"""What bits depend on, and the flag that asks a GPU for the same ones."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from mnist_flax import determinism, run, seeds
from mnist_flax.config import Config, UserError
from tests.conftest import SMALL, read_metrics, read_summary, script, without_timing

bad_data = script("bad_data")


def test_on_cpu_the_flag_changes_no_bit(small_run, tmp_path):
    assert run.main(["--workdir", str(tmp_path), *SMALL, "--deterministic"]) == 0
    assert read_summary(tmp_path)["params_sha256"] == read_summary(small_run)["params_sha256"]
    assert without_timing(read_metrics(tmp_path)) == without_timing(read_metrics(small_run))


def test_every_program_is_compiled_so(monkeypatch, config):
    lowered = jax.jit(lambda x: x + 1).lower(jnp.float32(1))
    given = []
    monkeypatch.setattr(type(lowered), "compile", lambda _, options: given.append(options))
    for deterministic in (True, False):
        seeds.compile_lowered(lowered, dataclasses.replace(config, deterministic=deterministic))
    assert [options.get("xla_gpu_deterministic_ops", False) for options in given] == [True, False]


@pytest.mark.parametrize(
    ("backend", "version", "promised"),
    [
        ("cpu", "cpu", True),
        ("gpu", "PJRT C API\ncuda 13000", True),
        ("gpu", "PJRT C API\nrocm 70000", False),
        ("tpu", "PJRT C API\nTFRT TPU v5 lite", False),
    ],
)
def test_it_is_refused_where_it_cannot_be_promised(monkeypatch, backend, version, promised):
    device = type("Device", (), {"client": type("Client", (), {"platform_version": version})})
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    if promised:
        determinism.require()
    else:
        with pytest.raises(UserError, match=rf"not on {backend} \(PJRT C API"):
            determinism.require()


def test_going_on_elsewhere_is_told_or_refused(small_run, tmp_path, capsys):
    for flags in ([], ["--deterministic"]):
        folder = tmp_path / f"run{len(flags)}"
        arguments = ["--workdir", str(folder), *SMALL, "--epochs", "1", "--no-report", *flags]
        assert run.main(arguments) == 0
        (folder / "summary.json").unlink()
        path = folder / "environment.json"
        begun = json.loads(path.read_text())
        assert begun == read_summary(small_run)["environment"]
        path.write_text(json.dumps(begun | {"jax": "0.9", "python": "3.10", "cores": 0}))
        capsys.readouterr()
        assert run.main(arguments) == (2 if flags else 0)
        told = "".join(capsys.readouterr())
        assert f"jax was 0.9, now {jax.__version__}; cores was 0, now {begun['cores']}" in told
        assert "python" not in told
        assert (folder / "summary.json").exists() == (not flags)


def test_what_cannot_change_bits_is_not_told():
    now = determinism.environment()
    assert determinism.changes(now, now) == []
    assert determinism.changes(now | {"orbax-checkpoint": "0"}, now) == []
    assert determinism.changes({}, now)
    on_gpu = now | {"backend": "gpu"}
    assert determinism.changes(on_gpu | {"cores": 0, "processor": ""}, on_gpu) == []


def test_the_flag_is_part_of_the_config():
    assert Config().deterministic is False
    assert run.parse(["--workdir", "w", "--deterministic"]).config.deterministic


def test_data_from_another_folder_changes_no_bit(tmp_path):
    bad_data.write_originals(tmp_path / "manual0", 0)
    shutil.copytree(tmp_path / "manual0", tmp_path / "manual1")
    found = set()
    with bad_data.expecting(tmp_path / "manual0"):
        for number in range(2):
            folders = {"workdir": "run", "data-dir": "data", "manual-dir": "manual"}
            flags = [f"--{flag}={tmp_path / name}{number}" for flag, name in folders.items()]
            flags += ["--dataset=mnist", "--epochs=2", "--batch-size=128", "--no-report"]
            assert run.main(flags) == 0
            found.add(read_summary(tmp_path / f"run{number}")["params_sha256"])
            assert (tmp_path / f"data{number}" / "mnist").is_dir()
    assert len(found) == 1


def test_neither_report_nor_logs_change_a_bit(small_run, tmp_path):
    folder = tmp_path / "elsewhere" / "run"
    command = [sys.executable, "-m", "mnist_flax.run", "--workdir", str(folder), *SMALL]
    ended = subprocess.run(
        [*command, "--no-report"],
        env=os.environ | {"JAX_LOG_COMPILES": "1", "PYTHONIOENCODING": "ascii", "TZ": "Asia/Tokyo"},
        capture_output=True,
        check=True,
        cwd=tmp_path,
    )
    assert b"Finished XLA compilation" in ended.stderr
    assert read_summary(folder)["params_sha256"] == read_summary(small_run)["params_sha256"]
    assert without_timing(read_metrics(folder)) == without_timing(read_metrics(small_run))
