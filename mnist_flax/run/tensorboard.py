"""TensorBoard's event files, without TensorFlow: scalars, pictures and hyperparameters."""

import dataclasses
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from mnist_flax.core.config import Config
from mnist_flax.engine.distributed import is_primary
from mnist_flax.engine.seed_stats import mean_of
from mnist_flax.engine.workdir import MetricsRow, Summary


class TensorBoard:
    """Writes metrics as TensorBoard scalars. Only the primary process writes.

    The thread of tensorboardX's `SummaryWriter` dies when the disk is full, and the training would
    wait for it forever; its events writer raises an OSError, as all methods here may.
    """

    def __init__(self, folder: Path, metrics: Sequence[MetricsRow]):
        """Starts again from `metrics`, so that a resumed run shows no point twice."""
        self._writer: Any = None
        if not is_primary():
            return
        from tensorboardX.event_file_writer import EventsWriter

        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))
        for row in metrics:
            self.write(row)

    def write(self, row: MetricsRow) -> None:
        """Adds the values of one row at its step; of several seeds, mean and std."""
        if self._writer is None:
            return
        from tensorboardX.summary import scalar

        values: dict[str, Any] = {**row}
        for name, value in values.items():
            if name in ("step", "dataset"):
                continue
            self._add(scalar(name, mean_of(value)), row["step"])
            if isinstance(value, dict) and value["std"] is not None:
                self._add(scalar(f"{name}_std", value["std"]), row["step"])
        self._writer.flush()

    def finish(self, config: Config, summary: Summary, pictures: Mapping[str, np.ndarray]) -> None:
        """Adds pictures, RGB, at the last step, and the config with its results."""
        if self._writer is None:
            return
        from tensorboardX.summary import hparams, image, scalar

        for name, pixels in pictures.items():
            self._add(image(name, pixels, dataformats="HWC"), summary["steps"])
        results = {
            "result/test_accuracy": mean_of(summary["test_accuracy"]),
            "result/test_loss": mean_of(summary["test_loss"]),
        }
        for part in hparams(dataclasses.asdict(config), results):
            self._add(part, 0)
        for name, value in results.items():
            self._add(scalar(name, value), summary["steps"])

    def _add(self, summary: object, step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore

        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()
