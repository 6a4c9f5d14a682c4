"""What the bits of a result depend on, besides the config, and asking a GPU for the same ones."""

import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mnist_flax import __version__
from mnist_flax.config import UserError

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")

# XLA's compiler option for kernels that add in a fixed order, chosen without trying which is
# fastest; https://github.com/openxla/xla/blob/main/docs/determinism.md
COMPILER_OPTIONS = {"xla_gpu_deterministic_ops": True}


def environment() -> dict[str, Any]:
    """Versions and hardware, as far as bits may depend on them."""
    import jax

    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "mnist-flax": __version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "backend": jax.default_backend(),
        "device_kind": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
        # XLA divides a sum among the cores.
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "processor": processor_fingerprint(),
    }


def changes(begun: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One text for each part of two environments that differs and may change bits."""
    idle = {"python", "orbax-checkpoint", "tensorflow-datasets"}
    if now["backend"] != "cpu":
        idle |= {"cores", "processor"}
    return [
        f"{name} was {begun.get(name)}, now {now[name]}"
        for name in now
        if name not in idle and begun.get(name) != now[name]
    ]


def require() -> None:
    """Lets `COMPILER_OPTIONS` be relied on.

    Raises:
      UserError: nobody promises the same bits on these devices.
    """
    import jax

    backend = jax.default_backend()
    version = jax.devices()[0].client.platform_version
    if backend != "cpu" and not (backend == "gpu" and "cuda" in version.lower()):
        raise UserError(
            f"--deterministic can be promised on CPU and on GPUs of NVIDIA, but not on {backend} "
            f"({' '.join(version.split())[:60]}); leave it out"
        )


def processor_fingerprint() -> str:
    """Stands for this kind of processor, for which XLA chooses other instructions."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else [platform.processor()]
    features = {line for line in lines if line.startswith(("flags", "Features", "model name"))}
    text = " ".join([platform.machine(), *sorted(features)])
    return hashlib.sha256(text.encode()).hexdigest()[:12]
