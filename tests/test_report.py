"""The page, the curves and TensorBoard's event files."""

import struct

import pytest

from mnist_flax.report import TensorBoard, draw_curves, write_report
from mnist_flax.spread import figure

METRICS = [
    {"step": 12 * epoch, "epoch": epoch, "dataset": "digits", "train_loss": 1 / epoch}
    | {"test_loss": 2 / epoch, "test_accuracy": 1 - 1 / epoch, "validation_loss": 1.0}
    | {"validation_accuracy": 0.5, "seconds": 1.0, "images_per_second": 1437.0}
    for epoch in (1, 2, 3)
]


def scalars(folder):
    """All (tag, step, value) in the event files of a folder.

    Each record is an 8-byte length, a 4-byte CRC, the event and another CRC
    (https://www.tensorflow.org/tutorials/load_data/tfrecord).
    """
    from tensorboardX.proto import event_pb2

    found = []
    for path in folder.iterdir():
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = event_pb2.Event.FromString(content[12 : 12 + length])  # pyright: ignore
            found += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
            content = content[16 + length :]
    return found


def test_tensorboard_shows_each_point_once(tmp_path):
    folder = tmp_path / "tensorboard"
    with TensorBoard(folder, []) as writer:
        for line in METRICS:
            writer.write(line)
    with TensorBoard(folder, METRICS[:2]) as writer:  # resumed after the second epoch
        writer.write(METRICS[2])
    losses = [(step, value) for tag, step, value in scalars(folder) if tag == "test_loss"]
    assert losses == [(12, 2.0), (24, 1.0), (36, pytest.approx(2 / 3))]
    assert {tag for tag, _, _ in scalars(folder)} == set(METRICS[0]) - {"step", "dataset"}


SEEDS = [
    {name: figure([value, value / 2]) if "_" in name else value for name, value in line.items()}
    | {"images_per_second": 1437.0}
    for line in METRICS
]


def test_tensorboard_shows_mean_and_spread_of_seeds(tmp_path):
    with TensorBoard(tmp_path / "tensorboard", SEEDS) as writer:
        del writer
    found = {(tag, step): value for tag, step, value in scalars(tmp_path / "tensorboard")}
    assert found["test_loss", 24] == pytest.approx(0.75)
    assert found["test_loss_std", 24] == pytest.approx(0.5 / 2**0.5)


@pytest.mark.parametrize("metrics", [METRICS, METRICS[:1], SEEDS])
def test_curves_are_a_png(metrics):
    assert draw_curves(metrics).startswith(b"\x89PNG")


def test_the_page_stands_alone_and_escapes(tmp_path):
    summary = {
        "dataset": "<b>digits</b>",
        "test_accuracy": 0.98765,
        "test_examples": 10_000,
        "epochs": 3,
        "parameters": 81_066,
        "seconds": {"total": 1.5},
    }
    write_report(tmp_path / "report", {"seed": 0}, METRICS, summary)
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "98.77% of 10,000 test images right" in page
    assert "81,066 parameters" in page
    assert "<td>seconds: total</td><td>1.5</td>" in page
    assert "<b>" not in page
    assert "http" not in page
    assert "data:image/png;base64," in page
    write_report(tmp_path / "report", {}, SEEDS, summary | {"test_accuracy": figure([0.9, 0.92])})
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "91.00% ± 1.41 of 10,000 test images right" in page
    assert "mean and standard deviation of 2 seeds" in page
    assert (tmp_path / "report" / "curves.png").stat().st_size > 1000
