"""SIGTERM and Ctrl-C while training: they are noted here, and the loop stops soon after.

`loop.stop_on_signal` looks for a noted signal about once a second, saves the state and raises
TrainingInterrupted, whose exit code is the usual 128 plus the number of the signal.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator

from mnist_flax.core.config import ExpectedError
from mnist_flax.engine import distributed


class TrainingInterrupted(ExpectedError):
    """A signal ended the training early, after the state had been saved."""

    prefix = ""
    raised_everywhere = True

    def __init__(self, signum: int, step: int):
        name = signal.Signals(signum).name
        super().__init__(
            f"stopped by {name}, saved at step {step:,}; the same command resumes from there"
        )
        self.exit_code = 128 + signum


def first_signal(signals: list[int]) -> int:
    """The number of a signal that one of the processes has received; 0 if none has."""
    return distributed.allreduce_max(signals[0] if signals else 0)


@contextlib.contextmanager
def capture_signals() -> Iterator[list[int]]:
    """Collects SIGTERM and Ctrl-C instead of dying from them; a second one kills."""
    signals: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return

    def restore_handlers() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def handle(signum: int, _: object) -> None:
        signals.append(signum)
        restore_handlers()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield signals
    finally:
        restore_handlers()
