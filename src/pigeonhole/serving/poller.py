"""A thread that looks at something now and then: an alias, a list of keys. What it looks at is the caller's."""

import logging
import random
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)


class Poller:
    """Calls `look` at least every `every_s` seconds until it is stopped; jittered, so that replicas keep out of step."""

    def __init__(self, name: str, look: Callable[[], None], every_s: float) -> None:
        self._look = look
        self._every_s = every_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Does not wait: a look at a store that hangs must not hold up the end of the process."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(self._every_s * random.uniform(0.6, 1.0)):
            try:
                self._look()
            except Exception:
                logger.exception("%s: a look failed", self._thread.name)
