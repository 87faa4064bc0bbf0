"""The event loop's server: a quiet uvicorn, with our protocol, with an end to its patience, and no SIGTERM that it misses."""

import functools
import os
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from pigeonhole.serving.listener import BACKLOG, Listener
from pigeonhole.serving.protocol import Protocol

GRACE_S = 8  # Cloud Run kills ten seconds after SIGTERM; the rest is for the last records


def run(app: Starlette, listener: socket.socket) -> None:
    """Until SIGTERM or SIGINT."""
    server = make_server(app)
    signal.signal(signal.SIGTERM, functools.partial(_on_sigterm, server))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # uvicorn raises it again at the end: then the logs are closed
    server.run(sockets=[listener])


class Server(uvicorn.Server):
    """uvicorn that takes connections as listener.py does; asyncio takes them as fast as they come."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._listeners: list[Listener] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        for listening in sockets or []:
            listening.listen(BACKLOG)
        await super().startup([])
        if not self.should_exit:
            in_haste: Callable[[], bool] = self.lifespan.state["is_crowded"]
            self._listeners = [Listener(listening, self._connection, in_haste) for listening in sockets or []]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for listener in self._listeners:
            await listener.close()
        await super().shutdown(sockets)

    def _connection(self) -> Protocol:
        return Protocol(self.config, self.server_state, self.lifespan.state)


def make_server(app: Starlette) -> uvicorn.Server:
    """A quiet uvicorn, with our protocol and with an end to its patience."""
    config = uvicorn.Config(
        app,
        http=Protocol,
        loop="asyncio",  # the image has no other; uvloop was no faster here
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nothing here asks where a request came from
        timeout_graceful_shutdown=GRACE_S,
    )
    return Server(config)


def _on_sigterm(server: uvicorn.Server, _: int, __: FrameType | None) -> None:
    """Before uvicorn listens to signals, and when it raises again those that it has heard, with all requests answered."""
    if not server.should_exit:
        os._exit(0)  # nothing was answered yet
