"""How long all of a kind are waited for, with one timer: who began to be waited for first is given up first.

Many who are given up at once are so at a pace: ten thousand connections that end in the same second would have the event loop for
most of it.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

AT_ONCE = 16
PAUSE_S = 0.005  # then; that makes 3,200 a second

Waited = TypeVar("Waited")


class Patience(Generic[Waited]):
    """Belongs to the running loop."""

    def __init__(self, seconds: float, give_up: Callable[[Waited], None]) -> None:
        self._seconds = seconds
        self._give_up = give_up
        self._loop = asyncio.get_running_loop()
        self._due: OrderedDict[Waited, float] = OrderedDict()  # in the order in which they are due
        self._is_armed = False

    def begin(self, waited: Waited) -> None:
        """Its clock runs from now on; who is waited for already keeps the clock."""
        if waited in self._due:
            return
        self._due[waited] = due = self._loop.time() + self._seconds
        if not self._is_armed:
            self._arm(due)

    def end(self, waited: Waited) -> None:
        self._due.pop(waited, None)

    def _arm(self, due: float) -> None:
        self._is_armed = True
        self._loop.call_at(due, self._ring)

    def _ring(self) -> None:
        self._is_armed = False
        now = self._loop.time()
        for _ in range(AT_ONCE):
            first = next(iter(self._due), None)
            if first is None or self._due[first] > now:
                break
            del self._due[first]
            self._give_up(first)
        for due in self._due.values():
            self._arm(max(due, now + PAUSE_S))
            break
