"""The port: taken before the long work, listened at only after it."""

import os
import socket

from pigeonhole.errors import ConfigError


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """`shared`: with other processes of this user that ask for it too; the kernel deals out connections. Raises ConfigError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio sets TCP_NODELAY only then; without, a connection's second answer takes 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    if os.name == "posix":
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"HOST={host!r} PORT={port}: cannot listen there ({error.strerror}); set another PORT or HOST"
        ) from error
    return listener
