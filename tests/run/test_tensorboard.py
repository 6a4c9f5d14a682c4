"""Event files, read by TensorBoard itself."""

from typing import Any

import pytest

from mnist_flax.engine.seed_stats import aggregate
from mnist_flax.run.tensorboard import TensorBoard
from tests.conftest import read_metrics, read_summary

accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
hparams = pytest.importorskip("tensorboard.plugins.hparams.metadata")

METRICS: list[Any] = [
    {"step": 12 * epoch, "epoch": epoch, "dataset": "digits", "train_loss": 1 / epoch}
    | {"test_loss": 2 / epoch, "test_accuracy": 1 - 1 / epoch, "learning_rate": 0.1}
    | {"seconds": 1.0, "images_per_second": 1437.0}
    for epoch in (1, 2, 3)
]


def read(folder):
    accumulator = accumulators.EventAccumulator(
        str(folder), size_guidance={"scalars": 0, "images": 0}
    )
    return accumulator.Reload()


def scalars(folder, name):
    return [(event.step, event.value) for event in read(folder).Scalars(name)]


def test_a_resumed_run_shows_each_point_once(tmp_path):
    with TensorBoard(tmp_path, []) as board:
        for row in METRICS:
            board.write(row)
    with TensorBoard(tmp_path, METRICS[:2]) as board:  # resumed after the second epoch
        board.write(METRICS[2])
    assert scalars(tmp_path, "test_loss") == [(12, 2.0), (24, 1.0), (36, pytest.approx(2 / 3))]
    assert set(read(tmp_path).Tags()["scalars"]) == set(METRICS[0]) - {"step", "dataset"}


def test_several_seeds_are_shown_as_mean_and_deviation(tmp_path):
    row = METRICS[0] | {"test_loss": aggregate([1.0, 0.5])}
    with TensorBoard(tmp_path, [row]):
        pass
    assert scalars(tmp_path, "test_loss") == [(12, 0.75)]
    assert scalars(tmp_path, "test_loss_std") == [(12, pytest.approx(0.5 / 2**0.5))]


def test_the_event_file_of_a_run_holds_metrics_pictures_and_hyperparameters(small_run):
    folder = small_run / "tensorboard"
    board = read(folder)
    for row in read_metrics(small_run):
        for name in ("train_loss", "test_loss", "test_accuracy", "learning_rate"):
            assert (row["step"], pytest.approx(row[name])) in scalars(folder, name)
    assert scalars(folder, "result/test_accuracy") == [
        (read_summary(small_run)["steps"], pytest.approx(read_summary(small_run)["test_accuracy"]))
    ]
    pictures = {"confusion", "filters", "misclassified", "saliency"}
    assert set(board.Tags()["images"]) == pictures
    (event,) = board.Images("confusion")
    assert event.step == read_summary(small_run)["steps"]
    assert event.encoded_image_string.startswith(b"\x89PNG")
    tags = board.summary_metadata
    content = tags["_hparams_/session_start_info"].plugin_data.content
    start: Any = hparams.parse_session_start_info_plugin_data(content)
    assert start.hparams["batch_size"].number_value == 128
    assert start.hparams["dataset"].string_value == "digits"
