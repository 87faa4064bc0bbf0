"""SIGTERM and SIGINT, kept until it is safe to obey them."""

import signal
import threading
from typing import Any

from pigeonhole.errors import StoppedError


class StopSignals:
    def __init__(self) -> None:
        self.received: int = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # Python takes signals nowhere else
            self._before = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def flags(self) -> tuple[bool, bool]:
        """Whether SIGINT and whether SIGTERM was the last one received here."""
        return self.received == signal.SIGINT, self.received == signal.SIGTERM

    def obey(self, agreed: int, where: str) -> None:
        """Raises KeyboardInterrupt for SIGINT, StoppedError for SIGTERM, both with `where`; 0: there was none."""
        if agreed == signal.SIGINT:
            raise KeyboardInterrupt(where)
        if agreed:
            raise StoppedError(where)

    def _receive(self, number: int, _: object) -> None:
        self.received = number
