"""What bits depend on, and the flag for the same bits on a GPU."""

import dataclasses
import os
import shutil
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from experiments.faults import datasets
from mnist_flax import run
from mnist_flax.core.config import UserError
from mnist_flax.engine import environment, multi_seed
from mnist_flax.engine.environment import describe_machine
from mnist_flax.run import experiment
from tests.conftest import SMALL, read_metrics, read_summary, without_timing


@pytest.mark.nightly
def test_on_cpu_the_flag_changes_no_bit(small_run, tmp_path):
    assert run.main(["--workdir", str(tmp_path), *SMALL, "--no-report", "--deterministic"]) == 0
    assert read_summary(tmp_path)["params_sha256"] == read_summary(small_run)["params_sha256"]
    assert without_timing(read_metrics(tmp_path)) == without_timing(read_metrics(small_run))


def test_the_flag_decides_the_compiler_options(monkeypatch, config):
    function = jax.jit(lambda x: x + 1)
    lowered = function.lower(jnp.float32(1))
    calls = []
    monkeypatch.setattr(type(lowered), "compile", lambda _, options: calls.append(options))
    for deterministic in (True, False):
        changed = dataclasses.replace(config, deterministic=deterministic)
        multi_seed.make_compiler(changed)(function, lowered)
    assert [options.get("xla_gpu_deterministic_ops", False) for options in calls] == [True, False]


@pytest.mark.parametrize(
    ("processor", "supported"),
    [
        ("x86_64 flags : fpu avx512f avx512_bf16", True),
        ("x86_64 flags : amx_bf16 amx_tile", True),
        ("aarch64 Features : fp asimd bf16", True),
        ("x86_64 flags : fpu avx2 avx512f", False),
    ],
)
def test_a_run_reports_that_the_processor_does_not_multiply_bfloat16(
    monkeypatch, tmp_path, config, processor, supported
):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    monkeypatch.setattr(environment, "_describe_processor", lambda: processor)
    lines = []
    for precision in ("bfloat16", "float32"):
        changed = dataclasses.replace(config, precision=precision)
        (tmp_path / precision).mkdir()
        experiment._check_environment(tmp_path / precision, changed, lines.append)
    note = "NOTE: this processor does not multiply bfloat16; --precision float32 is faster here"
    assert lines == ([] if supported else [note])


@pytest.mark.parametrize(
    ("backend", "version", "supported"),
    [
        ("cpu", "cpu", True),
        ("gpu", "PJRT C API\ncuda 13000", True),
        ("gpu", "PJRT C API\nrocm 70000", False),
        ("tpu", "PJRT C API\nTFRT TPU v5 lite", False),
    ],
)
def test_the_flag_is_refused_where_it_is_not_supported(monkeypatch, backend, version, supported):
    device = type("Device", (), {"client": type("Client", (), {"platform_version": version})})
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    if supported:
        environment.require_deterministic_backend()
    else:
        message = rf"supported on CPU and on NVIDIA GPUs, but not on {backend} \(PJRT C API"
        with pytest.raises(UserError, match=message):
            environment.require_deterministic_backend()


def test_only_changes_that_may_change_bits_are_reported():
    current = environment.current_environment()
    assert environment.diff_environments(current, current) == []
    assert environment.diff_environments(current | {"orbax-checkpoint": "0"}, current) == []
    assert environment.diff_environments({}, current)
    on_gpu = current | {"backend": "gpu"}
    assert environment.diff_environments(on_gpu | {"cores": 0, "processor": ""}, on_gpu) == []


def test_settings_that_change_bits_are_part_of_the_environment(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    before = environment.current_environment()
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    monkeypatch.setenv("NPROC", "7")
    with jax.disable_jit():
        changes = environment.diff_environments(before, environment.current_environment())
    names = [change.split(" was ")[0] for change in changes]
    assert names == ["cores", "jit", "XLA_FLAGS"]
    assert "cores was" in changes[0]
    assert "now 7" in changes[0]


def test_on_gpu_the_environment_has_the_versions_of_cuda(monkeypatch, tmp_path):
    (tmp_path / "nvidia_cublas-13.1.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: nvidia-cublas\nVersion: 13.1\n"
    (tmp_path / "nvidia_cublas-13.1.dist-info" / "METADATA").write_text(metadata)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert environment.current_environment()["nvidia-cublas"] == "13.1"


@pytest.mark.nightly
def test_the_folder_of_the_data_changes_no_bit(tmp_path):
    datasets.write_originals(tmp_path / "manual0", 0)
    shutil.copytree(tmp_path / "manual0", tmp_path / "manual1")
    hashes = set()
    with datasets.expecting(tmp_path / "manual0"):
        for number in range(2):
            folders = {"workdir": "run", "data-dir": "data", "manual-dir": "manual"}
            flags = [f"--{flag}={tmp_path / name}{number}" for flag, name in folders.items()]
            flags += ["--dataset=mnist", "--epochs=2", "--batch-size=128", "--no-report"]
            assert run.main(flags) == 0
            hashes.add(read_summary(tmp_path / f"run{number}")["params_sha256"])
            assert (tmp_path / f"data{number}" / "mnist").is_dir()
    assert len(hashes) == 1


@pytest.mark.nightly
def test_report_logs_encoding_time_zone_and_folder_change_no_bit(small_run, tmp_path):
    folder = tmp_path / "elsewhere" / "run"
    arguments = [sys.executable, "-m", "mnist_flax.run", "--workdir", str(folder), *SMALL]
    result = subprocess.run(
        [*arguments, "--no-report"],
        env=os.environ | {"JAX_LOG_COMPILES": "1", "PYTHONIOENCODING": "ascii", "TZ": "Asia/Tokyo"},
        capture_output=True,
        check=True,
        cwd=tmp_path,
    )
    assert b"Finished XLA compilation" in result.stderr
    assert read_summary(folder)["params_sha256"] == read_summary(small_run)["params_sha256"]
    assert without_timing(read_metrics(folder)) == without_timing(read_metrics(small_run))


def test_the_machine_is_named_by_its_devices():
    known: Any = {"backend": "cpu", "cores": 2, "device_count": 1, "device_kind": "cpu"}
    assert describe_machine(known) == "2 CPU cores"
    assert describe_machine(known | {"device_count": 4}) == "2 CPU cores as 4 devices"
    gpu = known | {"backend": "gpu", "device_kind": "NVIDIA H100"}
    assert describe_machine(gpu) == "1 x NVIDIA H100"
    assert describe_machine({}) == ""
