"""How long the phases of a run take, and how fast it trains."""

import time


class Stopwatch:
    """Seconds of this process, divided into named phases."""

    def __init__(self, import_seconds: float):
        self._phases = {"import": import_seconds}
        self._last = time.perf_counter()

    def end_phase(self, name: str) -> None:
        """Ends the current phase, and names it."""
        now = time.perf_counter()
        self._phases[name], self._last = now - self._last, now

    @property
    def seconds(self) -> dict[str, float]:
        """Each phase, and the `total`."""
        return self._phases | {"total": sum(self._phases.values())}


class ThroughputMeter:
    """Counts images and seconds of training since the last reading."""

    def __init__(self) -> None:
        self._images, self._seconds, self._steps_per_second = 0, 0.0, 0.0

    def add(self, steps: int, images: int, seconds: float) -> None:
        """Counts one chunk of training."""
        self._images, self._seconds = self._images + images, self._seconds + seconds
        self._steps_per_second = steps / seconds

    def steps_in(self, seconds: float) -> int:
        """How many steps take that long at the speed of the last chunk; at least 1."""
        return max(1, int(self._steps_per_second * seconds))

    def read(self) -> tuple[float, float]:
        """Seconds, and images per second, since the last reading."""
        seconds, images_per_second = self._seconds, self._images / self._seconds
        self._images, self._seconds = 0, 0.0
        return seconds, images_per_second
