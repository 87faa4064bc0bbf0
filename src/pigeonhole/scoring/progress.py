"""How far a job is, for the person at the terminal: rows, rows a second, time left, cost."""

import time
from collections.abc import Callable
from datetime import timedelta

from pigeonhole.command import say

EVERY_S = 5.0


class Progress:
    """Counts rows; tells at most once in EVERY_S seconds.

    The clock starts when the first shard began: start-up is no speed, and neither are rows that an earlier run did.
    """

    def __init__(self, rows: int, done: int, core_usd_per_hour: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`core_usd_per_hour`: of all cores together."""
        self._rows = rows
        self._before = done
        self._done = done
        self._bad = 0
        self._usd_per_hour = core_usd_per_hour
        self._clock = clock
        self._told = clock()
        self._began: float | None = None

    def add(self, rows: int, bad: int, took_s: float) -> None:
        """A shard is done; `took_s` is how long its worker was at it."""
        if self._began is None:
            self._began = self._clock() - took_s
        self._done += rows
        self._bad += bad
        if self._clock() - self._told >= EVERY_S or self._done == self._rows:
            self._told = self._clock()
            say(self.line())

    @property
    def seconds(self) -> float:
        return 0.0 if self._began is None else self._clock() - self._began

    @property
    def rows_per_second(self) -> float:
        return (self._done - self._before) / self.seconds if self.seconds > 0 else 0.0

    @property
    def cost_usd(self) -> float:
        """Of this run, so far."""
        return self.seconds / 3600 * self._usd_per_hour

    def line(self) -> str:
        left = self._rows - self._done
        speed = self.rows_per_second
        left_s = left / speed if speed else 0.0
        bad = f", {self._bad:,} bad" if self._bad else ""
        return (
            f"{self._done:,} of {self._rows:,} rows{bad}, {speed:,.0f} rows/s, {left:,} left"
            f" ({timedelta(seconds=round(left_s)) if speed else 'unknown'}),"
            f" {self.cost_usd:.4f} USD so far, {self.cost_usd + left_s / 3600 * self._usd_per_hour:.4f} in all"
        )
