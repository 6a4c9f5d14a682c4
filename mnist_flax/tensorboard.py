"""TensorBoard's event files, without TensorFlow: scalars, pictures and hyperparameters."""

import io
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from mnist_flax.spread import mean_of


class TensorBoard:
    """Writes metrics as TensorBoard scalars, one event file per process."""

    def __init__(self, folder: Path, metrics: Sequence[Mapping[str, Any]]):
        """Starts afresh from `metrics`, so that a resumed run shows no point twice."""
        from tensorboardX import SummaryWriter

        shutil.rmtree(folder, ignore_errors=True)
        self._writer: Any = SummaryWriter(str(folder))
        for line in metrics:
            self.write(line)

    def write(self, line: Mapping[str, Any]) -> None:
        """Adds the numbers of one line of `metrics.jsonl` at its step; of seeds, mean and std."""
        for name, value in line.items():
            if isinstance(value, (int, float, Mapping)) and name != "step":
                self._writer.add_scalar(name, mean_of(value), line["step"])
            if isinstance(value, Mapping):
                self._writer.add_scalar(f"{name}_std", value["std"], line["step"])
        self._writer.flush()

    def finish(
        self, config: Mapping[str, Any], summary: Mapping[str, Any], pictures: Mapping[str, bytes]
    ) -> None:
        """Adds the report's pictures at the last step, and what the config led to."""
        from PIL import Image
        from tensorboardX.summary import hparams

        for name, picture in pictures.items():
            pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
            self._writer.add_image(name, pixels, summary["steps"], dataformats="HWC")
        results = {
            f"result/{name}": mean_of(summary[name]) for name in ("test_accuracy", "test_loss")
        }
        # Not `add_hparams`: it opens a second file, which may get the first one's name.
        for part in hparams(dict(config), results):
            self._writer.file_writer.add_summary(part)
        for name, value in results.items():
            self._writer.add_scalar(name, value, summary["steps"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()
