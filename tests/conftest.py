"""What several tests share."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filelock import FileLock

from mnist_flax import run
from mnist_flax.core import model
from mnist_flax.core.config import PRESETS, Config
from mnist_flax.data.dataset import Dataset, load_dataset
from mnist_flax.engine.trained_model import TrainedModel
from tests.installed import clean, source, wheel  # noqa: F401  (fixtures)

ROOT = Path(__file__).parent.parent

SMALL = ("--dataset", "digits", "--epochs", "4", "--batch-size", "128")


def pytest_configure(config: pytest.Config) -> None:
    """All but the nightly tests compile in a fifth of the time, to slower programs.

    On GPU all compile to programs that give the same bits again, and compute what is not the
    package's in float32 too.
    """
    jax.config.update("jax_default_matmul_precision", "float32")
    flags = ["--xla_gpu_deterministic_ops=true"]
    if config.option.markexpr not in ("", "nightly"):
        flags.append("--xla_backend_optimization_level=0")
        if jax.__version_info__ < (0, 11):  # later ones end the process over an unknown flag
            flags.append("--xla_cpu_use_fusion_emitters=false")
    os.environ.setdefault("XLA_FLAGS", " ".join(flags))


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.fixture
def config() -> Config:
    return Config(dataset="digits")


@pytest.fixture(scope="session")
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a finished, uninterrupted run of `SMALL`, one for all of xdist's workers."""
    folder = tmp_path_factory.getbasetemp()
    workdir = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "small" / "run"
    with FileLock(f"{workdir.parent}.lock"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("mnist_flax.evaluate.report.SALIENCY_IMAGES", 10)  # as it is slow here
        assert run.main(["--workdir", str(workdir), *SMALL]) == 0  # at once if it is finished
    return workdir


def random_network(input_size: Any) -> TrainedModel:
    """A network of 24 channels whose biases are not zero."""
    config = Config(dataset="digits", input_size=input_size, channels=24)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), config))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype("f4"), shapes)
    return TrainedModel(config, 1, params)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, for Playwright."""
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("there is no Chromium")
    with sync_api.sync_playwright() as playwright:
        flags = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def manual_dir() -> Path:
    """The folder with the four MNIST files."""
    folder = os.environ.get("MNIST_FLAX_MANUAL_DIR")
    if not folder:
        pytest.skip("MNIST_FLAX_MANUAL_DIR is not set")
    return Path(folder)


def start(*args: str, **environment: str) -> subprocess.Popen[str]:
    """Starts the command in a subprocess."""
    return subprocess.Popen(
        [sys.executable, "-m", "mnist_flax.run", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=os.environ | environment,
    )


def with_biases(params: Any) -> Any:
    """Moves all biases away from zero, where a blank image has ReLU exactly at its kink.

    There rounding decides whether the derivative is 0 or 1.
    """
    return {
        layer: leaves | {"bias": leaves["bias"] + jnp.float32(0.01)}
        for layer, leaves in params.items()
    }


def read_summary(workdir: Path) -> dict[str, Any]:
    return json.loads((workdir / "summary.json").read_text())


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def without_timing(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in line.items() if k not in ("seconds", "images_per_second")}
        for line in metrics
    ]


def to_device(arrays: tuple[Any, Any]) -> tuple[jax.Array, jax.Array]:
    return jnp.asarray(arrays[0]), jnp.asarray(arrays[1])


def reference_config(**changes: Any) -> Config:
    return dataclasses.replace(PRESETS["reference"], **changes)
