"""TensorBoard's event files, without TensorFlow: scalars, pictures and hyperparameters."""

import io
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from mnist_flax.spread import mean_of


class TensorBoard:
    """Writes metrics as TensorBoard scalars, one event file per process.

    Without tensorboardX's `SummaryWriter`, whose thread dies when the disk is full, so that the
    training then waits for it for ever.
    """

    def __init__(self, folder: Path, metrics: Sequence[Mapping[str, Any]]):
        """Starts afresh from `metrics`, so that a resumed run shows no point twice.

        Raises:
          OSError: the folder cannot be written; as all of its methods may.
        """
        from tensorboardX.event_file_writer import EventsWriter

        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))
        for line in metrics:
            self.write(line)

    def write(self, line: Mapping[str, Any]) -> None:
        """Adds the numbers of one line of `metrics.jsonl` at its step; of seeds, mean and std."""
        from tensorboardX.summary import scalar

        for name, value in line.items():
            if isinstance(value, (int, float, Mapping)) and name != "step":
                self._add(scalar(name, mean_of(value)), line["step"])
            if isinstance(value, Mapping):
                self._add(scalar(f"{name}_std", value["std"]), line["step"])
        self._writer.flush()

    def finish(
        self, config: Mapping[str, Any], summary: Mapping[str, Any], pictures: Mapping[str, bytes]
    ) -> None:
        """Adds the report's pictures at the last step, and what the config led to."""
        from PIL import Image
        from tensorboardX.summary import hparams, image, scalar

        for name, picture in pictures.items():
            pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
            self._add(image(name, pixels, dataformats="HWC"), summary["steps"])
        results = {
            f"result/{name}": mean_of(summary[name]) for name in ("test_accuracy", "test_loss")
        }
        for part in hparams(dict(config), results):
            self._add(part, 0)
        for name, value in results.items():
            self._add(scalar(name, value), summary["steps"])

    def _add(self, summary: Any, step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore

        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()
