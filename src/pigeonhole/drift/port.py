"""The port of a small service, taken before it says that it listens. The server has a door of its own, which processes share."""

import os
import socket

from pigeonhole.errors import ConfigError


def bind(host: str, port: int) -> socket.socket:
    """Raises ConfigError naming both."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    if os.name == "posix":
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"HOST={host!r} PORT={port}: cannot listen there ({error.strerror}); set another PORT or HOST"
        ) from error
    return listener
