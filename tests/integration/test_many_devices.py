"""One program on many simulated devices, in new processes because the number is fixed at start."""

import functools
import signal
import time
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from experiments import multi_device
from mnist_flax.core import sharding
from tests.conftest import SMALL, read_metrics, read_summary, start


def test_nothing_is_divided_on_one_device():
    mesh = sharding.device_mesh(6)
    assert dict(mesh.shape) == {"seed": 1, "data": 1}
    x = jax.numpy.arange(3.0)
    assert sharding.shard_axis(x, 0) is x
    assert sharding.psum_over_data(lambda scale, x: x * scale, 2.0, x).tolist() == [0, 2, 4]


def test_collectives_in_a_program_are_counted_with_their_loops():
    text = """HloModule jit_alone, entry_computation_layout={()->f32[]}

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%micro_batch (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %x = bf16[2,8]{1,0} all-gather(%d), dimensions={1}
}

%step (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %w.2 = (s32[]) while(%t), condition=%c, body=%micro_batch, backend_config={LOOP}
  %r = (f32[64]{0}, /*index=1*/f32[3,3,1,64]{3,2,1,0}, f32[]) all-reduce(%a, %b), to_apply=%add
}

ENTRY %main (p: f32[]) -> f32[] {
  %y = (u8[16]{0}, u8[32]{0}, u32[], u32[]) collective-permute-start(%e)
  %w.1 = (s32[]) while(%t), condition=%c, body=%step
  ROOT %z = f32[4]{0} add(%all-reduce.1, %x)
}
"""
    assert multi_device.collectives(text.replace("LOOP", '"known_trip_count":{"n":"3"}')) == [
        {"kind": "collective-permute", "bytes": 32, "times": 1},
        {"kind": "all-gather", "bytes": 32, "times": 3},
        {"kind": "all-reduce", "bytes": 4 * (64 + 576 + 1), "times": 1},
    ]
    with pytest.raises(ValueError, match="unknown length within the steps"):
        multi_device.collectives(text.replace("LOOP", ""))


simulate = functools.cache(multi_device.simulate)
FOUR_DEVICES = (1, 64, 1, {"seed": 1, "data": 4})
SLOW, NIGHTLY = pytest.mark.slow, pytest.mark.nightly


@pytest.mark.parametrize(
    ("num_seeds", "batch_size", "processes", "mesh"),
    [
        pytest.param(*case, marks=SLOW if case == FOUR_DEVICES else NIGHTLY)
        for case in (
            FOUR_DEVICES,
            (1, 64, 2, {"seed": 1, "data": 4}),
            (2, 64, 1, {"seed": 2, "data": 2}),
            (2, 64, 2, {"seed": 2, "data": 2}),
            (4, 64, 1, {"seed": 4, "data": 1}),
            (1, 90, 1, {"seed": 1, "data": 4}),  # padded to 92
            (3, 90, 1, {"seed": 1, "data": 4}),
        )
    ],
)
def test_four_devices_train_like_one_and_communicate_only_the_gradient(
    num_seeds, batch_size, processes, mesh
):
    single = simulate(num_seeds, batch_size, 1)
    four = simulate(num_seeds, batch_size, 4, processes)
    assert (single["mesh"], four["mesh"]) == ({"seed": 1, "data": 1}, mesh)
    assert (four["devices"], four["processes"]) == (4, processes)
    assert np.shape(single["losses"]) == np.shape(four["losses"]) == (20, num_seeds)
    np.testing.assert_allclose(four["losses"], single["losses"], atol=1e-4)
    np.testing.assert_allclose(four["test_loss"], single["test_loss"], rtol=1e-3)
    assert single["collectives_per_step"] == []
    if mesh["data"] == 1:
        assert four["collectives_per_step"] == []
    else:
        assert_communicates_only_the_gradient(four, num_seeds // mesh["seed"])


def assert_communicates_only_the_gradient(measured, networks):
    (collective,) = measured["collectives_per_step"]
    assert (collective["kind"], collective["times"]) == ("all-reduce", networks)
    # Besides the gradient, the loss and the number of images.
    assert 0 <= collective["bytes"] - measured["gradient_bytes"] <= 8


@pytest.mark.nightly
def test_micro_batches_are_summed_before_devices_communicate():
    # Two micro-batches of 64 on each device.
    assert_communicates_only_the_gradient(simulate(1, 512, 4), 1)


@pytest.mark.parametrize("nodes", [1, 2])
def test_nodes_without_a_fast_link_form_one_mesh(monkeypatch, nodes):
    """Such nodes have different slice indices."""
    devices = [SimpleNamespace(id=i, slice_index=i * nodes // 8, platform="gpu") for i in range(8)]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    grids: list[Any] = []
    monkeypatch.setattr(sharding, "Mesh", lambda array, *_, **__: grids.append(array))
    sharding.device_mesh(6)
    assert [[x.id for x in row] for row in grids[0]] == [[0, 1, 2, 3], [4, 5, 6, 7]]


ONE_EPOCH = ("--dataset", "mnist", "--preset", "quick", "--no-report")


def start_on_devices(count, *arguments):
    return start(*arguments, XLA_FLAGS=f"--xla_force_host_platform_device_count={count}")


@pytest.mark.nightly
@pytest.mark.mnist
def test_four_devices_are_as_accurate_as_one(manual_dir, tmp_path):
    for count in (1, 4):
        process = start_on_devices(count, "--workdir", str(tmp_path / f"{count}"), *ONE_EPOCH)
        assert process.communicate()[1] == ""
    one, four = (read_summary(tmp_path / f"{count}")["test_accuracy"] for count in (1, 4))
    assert abs(one - four) < 0.002


@pytest.mark.nightly
def test_a_run_resumes_with_another_number_of_devices(small_run, tmp_path):
    """From 4 to 2 to 1 to 2, one epoch on each."""
    arguments = ("--workdir", str(tmp_path / "run"), *SMALL, "--no-report")
    outputs = []
    for epoch, count in enumerate((4, 2, 1), start=1):
        process = start_on_devices(count, *arguments)
        metrics = tmp_path / "run" / "metrics.jsonl"
        while process.poll() is None and not (
            metrics.exists() and metrics.read_text().count("\n") >= epoch
        ):
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate()
        assert process.returncode in (0, 128 + signal.SIGTERM), errors
        outputs.append(output)
    process = start_on_devices(2, *arguments)
    output, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    for output, count in ((outputs[1], 2), (outputs[2], 1)):
        (note,) = [line for line in output.splitlines() if line.startswith("NOTE: ")]
        assert note.startswith(f"NOTE: device_count was 4, now {count}; XLA_FLAGS was ")
        assert note.endswith(", so the last bits of the result may differ from now on")
    rows, single_rows = read_metrics(tmp_path / "run"), read_metrics(small_run)
    assert [row["step"] for row in rows] == [row["step"] for row in single_rows]
    np.testing.assert_allclose(rows[0]["test_loss"], single_rows[0]["test_loss"], rtol=1e-3)
    assert abs(rows[-1]["test_accuracy"] - single_rows[-1]["test_accuracy"]) < 0.03
