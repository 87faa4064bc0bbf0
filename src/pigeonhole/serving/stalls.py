"""How long the event loop keeps everybody waiting: a timer that looks at the clock, and at how late it was rung."""

import asyncio
import math
import time
from collections.abc import Callable

EVERY_S = 0.05


class StallWatch:
    """Reports each ring's lateness in seconds; belongs to the running loop."""

    def __init__(self, report: Callable[[float], None]) -> None:
        self._report = report
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf  # time.monotonic()

    def start(self) -> None:
        self._due = time.monotonic() + EVERY_S
        self._timer = asyncio.get_running_loop().call_later(EVERY_S, self._ring)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    @property
    def late_s(self) -> float:
        """How late the loop is now."""
        return max(0.0, time.monotonic() - self._due)

    def _ring(self) -> None:
        self._report(self.late_s)
        self.start()
