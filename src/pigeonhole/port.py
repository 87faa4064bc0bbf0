"""The port: taken before the long work, listened at only after it; its URL; and who can lead a request to it."""

import os
import re
import socket

from pigeonhole.errors import ConfigError

# What nobody on the internet can lead here by a DNS entry: addresses, names without a dot, names kept for private use.
_OWN_NAME = re.compile(r"(\[.*\]|[0-9.]+|[^.]*|.*\.(localhost|local|internal))\.?(:[0-9]*)?", re.IGNORECASE)


def is_own(host: str) -> bool:
    """Whether this machine alone reaches what listens at this address."""
    return host.startswith("127.") or host in ("localhost", "::1")


def is_own_name(host: str) -> bool:
    """Whether a request's Host is no name of the internet.

    A page of the web may have a name that its DNS leads to this machine (DNS rebinding): to a browser all that answers there is
    of the page's own site, which may ask and read it.
    """
    return _OWN_NAME.fullmatch(host) is not None


def free_port() -> int:
    """One that was free a moment ago; PORT=0 would leave whoever starts a server to guess."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def url_of(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


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
