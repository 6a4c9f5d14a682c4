"""Settings of JAX and XLA in the environment: the same bits, a report, or one line."""

from collections.abc import Iterator
from pathlib import Path

from experiments.faults import fault, storage
from experiments.faults.fault import ARGUMENTS, Fault, Outcome, check_refusal
from experiments.faults.storage import first_of

# What a user may have set for another program, and what must not matter.
HARMLESS = (
    "JAX_ENABLE_X64=1",
    "JAX_DEFAULT_PRNG_IMPL=rbg",
    "JAX_DEFAULT_PRNG_IMPL=unsafe_rbg",
    "JAX_THREEFRY_PARTITIONABLE=0",
    "JAX_RANDOM_SEED_OFFSET=1",
    "JAX_DEBUG_NANS=1",
    "JAX_DEFAULT_MATMUL_PRECISION=bfloat16",
)
# What changes bits is reported by this name, and refused with --deterministic.
REPORTED = {
    "NPROC=1": "cores",
    "XLA_FLAGS=--xla_cpu_enable_fast_math=true": "XLA_FLAGS",
}
NO_DEVICE = ("JAX_PLATFORMS=cuda", "JAX_PLATFORMS=cpuu")


def switches(folder: Path) -> Iterator[Outcome]:
    """Each setting, from the start or in the middle of a run."""
    fault.baseline(*ARGUMENTS)
    for number, setting in enumerate(HARMLESS):
        workdir = folder / f"harmless{number}"
        code, _, errors = fault.train(workdir, *ARGUMENTS, prefix=("env", setting))
        problem = errors if code or errors else fault.compare(workdir, *ARGUMENTS)
        yield problem and f"{setting}: {problem}"
    for setting, name in REPORTED.items():
        workdir = storage.unfinished_copy(folder / name)
        code, output, errors = fault.train(workdir, *ARGUMENTS, prefix=("env", setting))
        is_reported = f"{name} was " in output and not code and not errors
        yield None if is_reported else f"{setting}: code {code}, {output[-300:]}{errors[-300:]}"
        workdir = storage.unfinished_copy(folder / f"deterministic {name}", "--deterministic")
        prefix = ("env", setting)
        yield storage.check_refused(workdir, *prefix, arguments=(*ARGUMENTS, "--deterministic"))
    for setting in NO_DEVICE:
        code, _, errors = fault.train(folder / "none", *ARGUMENTS, prefix=("env", setting))
        yield check_refusal(code, errors) and f"{setting}: {errors[-300:]}"


COUNT = len(HARMLESS) + 2 * len(REPORTED) + len(NO_DEVICE)
FAULTS = (Fault("a setting of JAX in the environment", first_of(switches), COUNT, COUNT),)
