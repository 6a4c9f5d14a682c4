"""MNIST-C (https://arxiv.org/abs/1906.02337): MNIST's test images, corrupted in 15 ways.

TFDS downloads it and knows its checksum. Its own builder would also write each of a million
images to disk, with TensorFlow's help; here the test images are read from the archive.
"""

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mnist_flax.config import UserError
from mnist_flax.download import alone, bounded_downloads, check_original, probe
from mnist_flax.tfds_source import Arrays, quiet_tfds

FILE = "mnist_c.zip"


def load_mnist_c(
    data_dir: Path | None, manual_dir: Path | None, log: Callable[[str], None]
) -> dict[str, Arrays]:
    """Test images uint8 [10,000, 28, 28, 1] and labels int32 [10,000] of each corruption.

    Args:
      data_dir: TFDS's data folder; its own default where None.
      manual_dir: a read-only folder that may hold `mnist_c.zip`; or None.
      log: told about the download before it starts.

    Raises:
      DataUnavailable: neither downloaded before, nor in `manual_dir`, nor downloadable.
      UserError: the archive is damaged, or a folder cannot be used.
    """
    try:
        with quiet_tfds():
            path = _download(data_dir, manual_dir, log)
        with zipfile.ZipFile(path) as archive:
            folders = {Path(name).parent.name for name in archive.namelist()}
            kinds = sorted(folders - {"identity", "mnist_c", ""})
            return {kind: _read(archive, f"mnist_c/{kind}") for kind in kinds}
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError) as error:
        raise UserError(f"MNIST-C's archive is damaged: {error}") from error
    except OSError as error:
        raise UserError(f"cannot use the data folder: {error}") from error


def _download(data_dir: Path | None, manual_dir: Path | None, log: Callable[[str], None]) -> Path:
    """The path of the archive, whose checksum is right."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import constants
    from tensorflow_datasets.core.download.resource import get_dl_fname
    from tensorflow_datasets.image_classification import mnist_corrupted

    url, infos = mnist_corrupted._DOWNLOAD_URL, mnist_corrupted.MNISTCorrupted.url_infos or {}
    downloads = Path(data_dir or constants.DATA_DIR).expanduser() / "downloads"
    folder = downloads / "mnist_corrupted"
    with alone(log, folder), bounded_downloads("MNIST-C"):
        manager = tfds.download.DownloadManager(
            download_dir=downloads,
            manual_dir=manual_dir,
            url_infos=infos,
            dataset_name=folder.name,
            force_checksums_validation=True,
        )
        here = manual_dir is not None and (manual_dir / FILE).exists()
        if not here and not any(downloads.rglob(get_dl_fname(url, infos[url].checksum))):
            probe(url, "MNIST-C", FILE)
            log(f"downloading MNIST-C (247 MB) to {downloads}")
        path = Path(manager.download(url))
    check_original(path, infos[url].checksum)
    return path


def _read(archive: zipfile.ZipFile, folder: str) -> Arrays:
    with (
        archive.open(f"{folder}/test_images.npy") as images,
        archive.open(f"{folder}/test_labels.npy") as labels,
    ):
        found = np.load(images), np.load(labels).astype(np.int32)
    if found[0].shape != (len(found[1]), 28, 28, 1) or found[0].dtype != np.uint8:
        raise ValueError(f"{folder} holds {found[0].dtype}{found[0].shape}")
    return found
