"""Several processes as one run: found, kept in step, ended together. A single one needs nothing.

JAX's distributed runtime does the work: https://docs.jax.dev/en/latest/multi_process.html.
"""

import contextlib
import importlib.util
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from mnist_flax.config import UserError

# A process that has not been heard of for so long is taken for dead, and JAX ends the others.
HEARTBEAT_SECONDS = 30

# How an error of the network between processes begins: with one of these states, of which the
# latter may also be a fault of a kernel or of the compiler.
TRANSPORT = re.compile(
    "(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED): |"
    "(UNKNOWN|INTERNAL|FAILED_PRECONDITION): (?=.*(gloo|nccl|coordinat|heartbeat|barrier|connect|"
    "peer|socket|remote))",
    re.IGNORECASE | re.DOTALL,
)

# How long processes wait at the start for those that are still missing.
START_SECONDS = 300


class Told(UserError):
    """A mistake that the first process tells."""


class Lost(Exception):
    """Another process has died, or cannot be reached any more."""


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Joins the other processes of this run, before anything touches a device.

    Without arguments, joins those that Slurm, Open MPI, Cloud TPU or GKE started with this one;
    `num_processes` 1 forbids that.

    Args:
      coordinator_address: HOST:PORT where process 0 listens; the same in all processes.
      num_processes: how many there are.
      process_id: which one this is, from 0.

    Raises:
      UserError: the arguments are not valid, or the others cannot be joined.
    """
    given = (coordinator_address, num_processes, process_id)
    to_be_found, launched = given == (None,) * 3, _launched_together()
    if given == (None, 1, None) or (to_be_found and not launched and not _may_be_in_a_slice()):
        return
    if not to_be_found:
        _check(*given)
    # It would take SIGTERM away from us.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            *given,
            initialization_timeout=START_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (ValueError, RuntimeError, OSError) as error:
        none_found = "should be defined" in str(error) or isinstance(error, OSError)
        if to_be_found and none_found and not launched:
            return  # a TPU of a single host
        raise UserError(
            f"cannot join the other processes: {' '.join(str(error).split())[:200]}; name them by "
            "--coordinator-address, --num-processes and --process-id, or run this one alone by "
            "--num-processes 1"
        ) from error


def _check(address: str | None, count: int | None, number: int | None) -> None:
    if address is None or count is None or number is None:
        raise UserError("--coordinator-address, --num-processes and --process-id go together")
    if not address.rpartition(":")[0] or not address.rpartition(":")[2].isdecimal():
        raise UserError(f"--coordinator-address must be HOST:PORT, but is {address!r}")
    if not 0 <= number < count:
        raise UserError(
            f"--process-id must be from 0 to below --num-processes {count}, but is {number}"
        )


def _launched_together() -> bool:
    """Whether Slurm, Open MPI or GKE says that this is one of several processes."""

    def number(name: str) -> int:
        text = os.environ.get(name, "")
        return int(text) if text.isdecimal() else 1

    return (
        ("SLURM_STEP_NODELIST" in os.environ and number("SLURM_NTASKS") > 1)
        or number("OMPI_COMM_WORLD_SIZE") > 1
        or {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= os.environ.keys()
    )


def _may_be_in_a_slice() -> bool:
    """Whether there is a TPU; asking for its slice takes seconds elsewhere."""
    accelerators = [*Path("/dev").glob("accel0"), *Path("/dev/vfio").glob("[0-9]")]
    return bool(accelerators and importlib.util.find_spec("libtpu"))


def several() -> bool:
    """Whether this is one of several processes."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this is the one that prints and writes."""
    return jax.process_index() == 0


def on_first(action: Callable[[], Any]) -> Any:
    """What the first process's `action` returns, on all of them; it must be JSON.

    Raises:
      UserError: the action raised one, or an OSError.
    """
    if not several():
        return action()
    answer: dict[str, Any] = {}
    if is_first():
        try:
            answer = {"value": action()}
        except (UserError, OSError) as error:
            _broadcast(json.dumps({"error": str(error)}))
            raise
    answer = json.loads(_broadcast(json.dumps(answer)))
    if "error" in answer:
        raise Told(answer["error"])
    return answer["value"]


def _broadcast(text: str) -> str:
    """The first process's text, on all of them."""
    content = np.frombuffer(text.encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    content = np.resize(content, size) if not is_first() else content
    return np.asarray(multihost_utils.broadcast_one_to_all(content)).tobytes().decode()


def first_of(value: int) -> int:
    """The first process's value."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(value))) if several() else value


def largest_of(value: int) -> int:
    """The largest value of any process."""
    return int(multihost_utils.process_allgather(np.int32(value)).max()) if several() else value


def place(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """An array that every process has, on the devices of all of them."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def to_host(tree: Any) -> Any:
    """The whole arrays of a pytree, as numpy's, also those that others hold parts of."""

    def whole(leaf: Any) -> np.ndarray:
        if getattr(leaf, "is_fully_addressable", True) or leaf.is_fully_replicated:
            return np.asarray(leaf)
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))

    return jax.tree.map(whole, tree)


def is_loss(error: BaseException | None) -> bool:
    """Whether it was raised because another process is gone; JAX has no class for that.

    TensorStore, beneath Orbax, tells of the disk in the same form.
    """
    text = str(error)
    of_disk = "os_error_code" in text or "tensorstore" in text
    return several() and not of_disk and TRANSPORT.match(text) is not None


@contextlib.contextmanager
def noticing_loss() -> Iterator[None]:
    """Turns what is raised when another process is gone into `Lost`."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if not is_loss(error):
            raise
        raise Lost(
            f"process {jax.process_index()} has lost another one "
            f"({' '.join(str(error).split())[:160]}); start all of them again, and they go on from "
            "the last checkpoint"
        ) from error


def leave(code: int) -> None:
    """Ends one of several processes at once: waiting for the others, it may wait for ever."""
    if several():
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # nobody may read it any more
                stream.flush()
        if is_first():
            time.sleep(1)  # it coordinates them: without it those that end too would crash
        os._exit(code)
