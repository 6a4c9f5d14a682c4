"""Data sets of MNIST's format in TFDS's folders, written and read without TensorFlow.

Importing TFDS takes a second: import this module only where it is needed.
"""

import contextlib
import io
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tqdm import tqdm

from mnist_flax.data import Arrays

Examples = Iterator[tuple[int, dict[str, Image.Image | int]]]


class _Builder(tfds.dataset_builders.AdhocBuilder, skip_registration=True):
    """TFDS's builder, without TensorFlow and without a download."""

    def __init__(self, splits: Mapping[str, Arrays], **arguments: Any):
        self.splits = splits
        super().__init__(split_datasets={}, **arguments)

    def _info(self) -> tfds.core.DatasetInfo:
        info = super()._info()
        # It would look for more on the internet, and leave an empty temporary folder behind.
        info.initialize_from_bucket = lambda: None
        return info

    # The base class imports TensorFlow to look at the type of `split_datasets`.
    def _split_generators(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, dl_manager: object
    ) -> dict[str, Examples]:
        return {split: _examples(*arrays) for split, arrays in self.splits.items()}


def prepare(name: str, version: str, splits: Mapping[str, Arrays], root: Path) -> None:
    """Writes all examples as TFDS's builder of MNIST does, in its shuffled order, or nothing."""
    image = tfds.features.Image(shape=(28, 28, 1))
    label = tfds.features.ClassLabel(num_classes=10)
    builder = _Builder(
        splits,
        name=name,
        version=version,
        features=tfds.features.FeaturesDict({"image": image, "label": label}),
        data_dir=root,
        description=f"{name}, prepared by mnist-flax from the original files",
        file_format="array_record",
    )
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_config=config)


def _examples(images: np.ndarray, labels: np.ndarray) -> Examples:
    for index, (image, label) in enumerate(zip(images[..., 0], labels, strict=True)):
        yield index, {"image": Image.fromarray(image), "label": int(label)}


def read_split(folder: Path, split: str) -> Arrays:
    """Images uint8 [N, 28, 28, 1] and labels int32 [N] of a split in a prepared folder."""
    builder: Any = tfds.builder_from_directory(folder)
    decoders = {"image": tfds.decode.SkipDecoding()}  # TFDS warns if OpenCV is missing
    source = builder.as_data_source(split, decoders=decoders)
    images, labels = [], []
    indices = range(len(source))
    with tqdm(indices, desc=f"reading {split}", disable=not sys.stderr.isatty()) as progress:
        for start in indices[::1_000]:
            batch = indices[start : start + 1_000]
            for example in source.__getitems__(batch):  # in half the time of one by one
                images.append(np.asarray(Image.open(io.BytesIO(example["image"]))))
                labels.append(example["label"])
            progress.update(len(batch))
    return np.stack(images)[..., np.newaxis], np.array(labels, np.int32)
