"""Connections are taken from the kernel a few a turn of the event loop and, once a burst is over, so many a second at most.

One costs half of what an answer costs around the model: ten thousand that come within a second would have the core for most of
it, and who is connected already would wait. Those that are not taken yet wait in the kernel. Where a crowd waits for the
model there is no such limit: who comes now has a question, and hears at once if it is turned away.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import NoReturn

AT_ONCE = 8  # 0.1 ms each
BURST = 128
PER_S = 2500
FULL_S = 1.0  # until it is tried again where no file can be opened any more

logger = logging.getLogger(__name__)


class Listener:
    """From its making until it is closed."""

    def __init__(self, listening: socket.socket, make: Callable[[], asyncio.Protocol], in_haste: Callable[[], bool]) -> None:
        """On the running loop. The socket listens already, and stays its maker's to close. `in_haste`: there is no limit now."""
        listening.setblocking(False)
        self._listening = listening
        self._make = make
        self._in_haste = in_haste
        self._opening: set[asyncio.Task[object]] = set()
        self._taking = asyncio.get_running_loop().create_task(self._take())

    async def close(self) -> None:
        self._taking.cancel()
        await asyncio.wait([self._taking])

    async def _take(self) -> NoReturn:
        loop = asyncio.get_running_loop()
        allowed, counted_at = float(BURST), loop.time()
        while True:
            for _ in range(AT_ONCE):
                await self._take_one(loop)
            now = loop.time()
            allowed, counted_at = min(BURST, allowed + (now - counted_at) * PER_S) - AT_ONCE, now
            if self._in_haste():
                allowed = max(allowed, 0)
            await asyncio.sleep(AT_ONCE / PER_S if allowed < 0 else 0)

    async def _take_one(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            connection, _ = await loop.sock_accept(self._listening)
        except ConnectionAbortedError:
            return
        except OSError as error:
            logger.warning("no connection can be taken: %s", error.strerror)
            await asyncio.sleep(FULL_S)
            return
        task: asyncio.Task[object] = loop.create_task(loop.connect_accepted_socket(self._make, connection))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
