"""How long the event loop keeps everybody waiting: a timer that looks at the clock, and at how late it was rung."""

import asyncio
import time
from collections.abc import Callable

EVERY_S = 0.05


class StallWatch:
    """Reports each ring's lateness in seconds; belongs to the running loop."""

    def __init__(self, report: Callable[[float], None]) -> None:
        self._report = report
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(EVERY_S, self._ring, time.monotonic() + EVERY_S)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _ring(self, due: float) -> None:
        self._report(max(0.0, time.monotonic() - due))
        self.start()
