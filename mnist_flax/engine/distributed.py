"""Several processes that compute one run together. A single process needs none of this.

JAX's distributed runtime does the work: https://docs.jax.dev/en/latest/multi_process.html. JAX and
NumPy are imported where they are needed, so that reading options stays instant.
"""

import contextlib
import functools
import json
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from mnist_flax.core.config import UserError

if TYPE_CHECKING:
    import jax
    import numpy as np

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class PrimaryError(UserError):
    """A mistake that the primary process reports."""

    raised_everywhere = True


def initialize(address: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the other processes of the run; call it before anything uses a device.

    Process 0 of `num_processes` listens at `address` (HOST:PORT). If all are None, JAX finds the
    others as Slurm, Open MPI, Cloud TPU or GKE started them. Raises a UserError if the arguments
    are not valid, or the others cannot be joined.
    """
    import jax

    arguments = (address, num_processes, process_id)
    if arguments != (None, None, None):
        _check_arguments(*arguments)
    # The service would take SIGTERM away from this program.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            *arguments,
            initialization_timeout=300,
            heartbeat_timeout_seconds=30,  # JAX ends the others when one is silent for this long
        )
    except (ValueError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        flags = "--coordinator-address, --num-processes and --process-id"
        raise UserError(f"cannot join the other processes: {reason}; set {flags}") from error


def _check_arguments(address: str | None, count: int | None, index: int | None) -> None:
    if address is None or count is None or index is None:
        raise UserError("--coordinator-address, --num-processes and --process-id go together")
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator-address must be HOST:PORT, but is {address!r}")
    if not 0 <= index < count:
        limits = f"from 0 to below --num-processes {count}"
        raise UserError(f"--process-id must be {limits}, but is {index}")


def is_distributed() -> bool:
    """Whether this is one of several processes. Uses no device if it is the only one."""
    jax = sys.modules.get("jax")
    return bool(jax and jax.distributed.is_initialized() and jax.process_count() > 1)


def is_primary() -> bool:
    """Whether this is the process that prints and writes."""
    return not is_distributed() or sys.modules["jax"].process_index() == 0


def run_on_primary(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Decorates a function that all processes call, but only the primary one executes.

    All of them return its result, which must be representable as JSON. If it raises a UserError or
    an OSError, the others raise a PrimaryError.
    """

    @functools.wraps(function)
    def wrapper(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        if not is_distributed():
            return function(*args, **kwargs)
        if not is_primary():
            answer = json.loads(_broadcast_text(""))
            if "error" in answer:
                raise PrimaryError(answer["error"])
            return answer["result"]
        try:
            result = function(*args, **kwargs)
        except (UserError, OSError) as error:
            _broadcast_text(json.dumps({"error": str(error)}))
            raise
        _broadcast_text(json.dumps({"result": result}))
        return result

    return wrapper


def _broadcast_text(text: str) -> str:
    """The primary process's text, on all of them."""
    import numpy as np

    content = np.frombuffer(text.encode(), np.uint8)
    size = broadcast_from_primary(len(content))
    content = content if is_primary() else np.zeros(size, np.uint8)
    return bytes(_multihost_utils().broadcast_one_to_all(content)).decode()


def broadcast_from_primary(value: int) -> int:
    """The primary process's value (int32), on all of them."""
    if not is_distributed():
        return value
    return int(_multihost_utils().broadcast_one_to_all(_int32(value)))


def allreduce_max(value: int) -> int:
    """The largest value (int32) of all processes."""
    if not is_distributed():
        return value
    return int(_multihost_utils().process_allgather(_int32(value)).max())


def put_global(array: "np.ndarray", sharding: "jax.sharding.NamedSharding") -> "jax.Array":
    """Puts an array that every process holds onto the devices of all of them."""
    import jax

    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def gather_to_host(tree: Any) -> Any:
    """The whole arrays of a pytree as NumPy's, including parts that other processes hold."""
    import jax
    import numpy as np

    def gather(leaf: Any) -> np.ndarray:
        if getattr(leaf, "is_fully_addressable", True) or leaf.is_fully_replicated:
            return np.asarray(leaf)
        return np.asarray(_multihost_utils().process_allgather(leaf, tiled=True))

    return jax.tree.map(gather, tree)


def exit_now(code: int) -> None:
    """Ends one of several processes at once, which would otherwise wait for the others forever."""
    if not is_distributed():
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # the reader may be gone
            stream.flush()
    if is_primary():
        time.sleep(1)  # it coordinates the others, which would crash without it
    os._exit(code)


def _int32(value: int) -> "np.ndarray":
    import numpy as np

    return np.asarray(value, np.int32)


def _multihost_utils() -> Any:
    from jax.experimental import multihost_utils

    return multihost_utils
