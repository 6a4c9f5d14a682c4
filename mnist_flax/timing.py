"""How long a run has taken, and how fast it goes."""

import time


class Clock:
    """Seconds of this process, divided into named laps."""

    def __init__(self, import_seconds: float):
        self._laps = {"import": import_seconds}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Ends the lap under way, and names it."""
        now = time.perf_counter()
        self._laps[name], self._last = now - self._last, now

    @property
    def seconds(self) -> dict[str, float]:
        """Each lap, and the `total`."""
        return self._laps | {"total": sum(self._laps.values())}


class Meter:
    """Images trained on, and the seconds that took, since the last reading; and the pace."""

    def __init__(self) -> None:
        self._images, self._seconds, self._steps_per_second = 0, 0.0, 0.0

    def add(self, steps: int, images: int, seconds: float) -> None:
        """Takes note of so much training."""
        self._images, self._seconds = self._images + images, self._seconds + seconds
        self._steps_per_second = steps / seconds

    def steps_in(self, seconds: float) -> int:
        """How many steps took that long, the last time; at least 1."""
        return max(1, int(self._steps_per_second * seconds))

    def read(self) -> dict[str, float]:
        """`seconds` and `images_per_second` since the last reading."""
        reading = {"seconds": self._seconds, "images_per_second": self._images / self._seconds}
        self._images, self._seconds = 0, 0.0
        return reading
