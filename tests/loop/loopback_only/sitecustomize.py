"""On PYTHONPATH, lets a Python process and its children reach this machine alone: for where no network namespace is to be had."""

import ipaddress
import socket
from typing import Any

_connect = socket.socket.connect


def _connect_here(self: socket.socket, address: Any) -> None:
    if self.family in (socket.AF_INET, socket.AF_INET6) and not ipaddress.ip_address(address[0]).is_loopback:
        raise OSError(101, "Network is unreachable (only loopback is left)")
    _connect(self, address)


socket.socket.connect = _connect_here  # type: ignore[method-assign,assignment]
