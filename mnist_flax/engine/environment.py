"""What the bits of a result depend on besides the config, and deterministic kernels on GPU."""

import contextlib
import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from mnist_flax.core.config import UserError

# Versions and hardware by name, as `environment.json` holds them.
Environment = dict[str, str | int]

PACKAGES = (
    *("mnist-flax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets"),
    "numpy",
)

# XLA's compiler option for kernels that add in a fixed order and are chosen without timing them:
# https://github.com/openxla/xla/blob/main/docs/determinism.md
DETERMINISTIC_OPTIONS = {"xla_gpu_deterministic_ops": True}

# On CPU these jaxlib versions crash or hang over some sums (https://github.com/jax-ml/jax/issues/39257,
# #40412) and are slow at others (#37465), and 0.10.2 computes some wrongly (#39103), because XLA
# leaves reductions to YNNPACK. The option leaves it the other operations that it has by default.
FAULTY_REDUCTIONS = ("0.10.2", "0.11.0")
WITHOUT_REDUCTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,"
    "LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
}


def current_environment() -> Environment:
    """Versions and hardware, as far as the bits of a result may depend on them."""
    import jax

    affinity = getattr(os, "sched_getaffinity", None)
    cores = (len(affinity(0)) if affinity else os.cpu_count()) or 1
    chosen = os.environ.get("NPROC", "")  # XLA divides a sum among this many threads, else cores
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        **(_cuda_packages() if jax.default_backend() == "gpu" else {}),
        "backend": jax.default_backend(),
        "device_kind": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
        "cores": int(chosen) if chosen.isdecimal() else cores,
        "processor": processor_fingerprint(),
        "jit": not jax.config.values["jax_disable_jit"],
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
    }


def _cuda_packages() -> dict[str, str]:
    """NVIDIA's libraries, as far as they come from PyPI."""
    installed = importlib.metadata.distributions()
    return {x.name: x.version for x in installed if x.name.startswith("nvidia-")}


@contextlib.contextmanager
def pinned_settings() -> Iterator[None]:
    """Has programs traced with the types and random numbers that a run means, in this thread.

    JAX_ENABLE_X64 and JAX_THREEFRY_PARTITIONABLE would change them.
    """
    import jax

    with jax.enable_x64(False), jax.threefry_partitionable(True):
        yield


def describe_machine(environment: Environment) -> str:
    """`2 CPU cores`, or the devices; empty if that is not known."""
    if not {"backend", "cores", "device_count", "device_kind"} <= set(environment):
        return ""
    count, cores = environment["device_count"], environment["cores"]
    if environment["backend"] == "cpu":
        return f"{cores} CPU cores" + (f" as {count} devices" if count != 1 else "")
    return f"{count} x {environment['device_kind']}"


def diff_environments(old: Environment, new: Environment) -> list[str]:
    """One text for each entry that differs and may change the bits of a result."""
    # A change of these does not change the bits of a result.
    ignored = {"python", "orbax-checkpoint", "tensorflow-datasets"}
    if new["backend"] != "cpu":
        ignored |= {"cores", "processor"}
    return [
        f"{name} was {old.get(name)}, now {new[name]}"
        for name in new
        if name not in ignored and old.get(name) != new[name]
    ]


def compiler_options(deterministic: bool) -> dict[str, str | bool]:
    """What XLA is to do differently for the programs of a run.

    On CPU it compiles at LLVM's level 1: two thirds of the time, for programs that are as fast.
    """
    from mnist_flax.core import sharding

    options: dict[str, str | bool] = {}
    if sharding.on_cpu():
        options["xla_backend_optimization_level"] = "1"
        if importlib.metadata.version("jaxlib") in FAULTY_REDUCTIONS:
            options |= WITHOUT_REDUCTIONS
    return options | (DETERMINISTIC_OPTIONS if deterministic else {})


def require_deterministic_backend() -> None:
    """Raises a UserError if `DETERMINISTIC_OPTIONS` do not give the same bits on these devices."""
    import jax

    backend = jax.default_backend()
    version = jax.devices()[0].client.platform_version
    if backend != "cpu" and not (backend == "gpu" and "cuda" in version.lower()):
        raise UserError(
            f"--deterministic is supported on CPU and on NVIDIA GPUs, but not on {backend} "
            f"({' '.join(version.split())[:60]}); leave it out"
        )


def processor_fingerprint() -> str:
    """A hash of the processor's model and features, by which XLA chooses its instructions."""
    return hashlib.sha256(_describe_processor().encode()).hexdigest()[:12]


def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for that: AVX512-BF16, AMX, or those of Arm."""
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(_describe_processor().split()))


def _describe_processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else [platform.processor()]
    features = {line for line in lines if line.startswith(("flags", "Features", "model name"))}
    return " ".join([platform.machine(), *sorted(features)])
