"""Connections are taken from the kernel a few a turn of the event loop and, once a burst is over, so many a second at most.

One costs half of what an answer costs around the model: ten thousand that come within a second would have the core for most of
it, and who is connected already would wait. Those that are not taken yet wait in the kernel. Where a crowd waits for the
model there is no such limit: who comes now has a question, and hears at once if it is turned away.

At the end all are taken that the kernel still holds: it has told them that they are connected, so their questions may be on
their way.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import NoReturn

AT_ONCE = 8  # 0.1 ms each
BACKLOG = 2048  # that the kernel holds until they are taken
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
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[object]] = set()
        self._taking = self._loop.create_task(self._take())

    async def close(self) -> None:
        """With all taken, and made known to their protocols, that the kernel held."""
        self._taking.cancel()
        await asyncio.wait([self._taking])
        try:
            for _ in range(BACKLOG):  # not for as long as others come
                if not self._take_one():
                    if not self._opening:
                        return  # and in this turn of the loop the socket is closed
                    await asyncio.wait(self._opening)
        except OSError as error:
            logger.warning("connections are left in the kernel: %s", error.strerror)
        while self._opening:
            await asyncio.wait(self._opening)

    async def _take(self) -> NoReturn:
        allowed, counted_at = float(BURST), self._loop.time()
        while True:
            for _ in range(AT_ONCE):
                try:
                    while not self._take_one():
                        await self._wait_for_one()
                except OSError as error:
                    logger.warning("no connection can be taken: %s", error.strerror)
                    await asyncio.sleep(FULL_S)
            now = self._loop.time()
            allowed, counted_at = min(BURST, allowed + (now - counted_at) * PER_S) - AT_ONCE, now
            if self._in_haste():
                allowed = max(allowed, 0)
            await asyncio.sleep(AT_ONCE / PER_S if allowed < 0 else 0)

    def _take_one(self) -> bool:
        """Whether there was one. Not the loop's sock_accept: cancelled in the turn in which one comes, it loses it.

        Raises OSError where no file can be opened any more.
        """
        try:
            connection, _ = self._listening.accept()
        except BlockingIOError:
            return False
        except ConnectionAbortedError:
            return True
        connection.setblocking(False)
        task: asyncio.Task[object] = self._loop.create_task(self._loop.connect_accepted_socket(self._make, connection))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        return True

    async def _wait_for_one(self) -> None:
        comes = asyncio.Event()
        self._loop.add_reader(self._listening, comes.set)
        try:
            await comes.wait()
        finally:
            self._loop.remove_reader(self._listening)
