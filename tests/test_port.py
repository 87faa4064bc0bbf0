import contextlib
import socket

import pytest

from pigeonhole.errors import ConfigError
from pigeonhole.port import bind


def test_an_ipv6_address_can_be_listened_at() -> None:
    with contextlib.suppress(ConfigError), bind("::1", 0) as listener:  # refused by name on a host without IPv6
        assert listener.family == socket.AF_INET6


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"HOST='192\.0\.2\.1' PORT=8081: cannot listen there"):
        bind("192.0.2.1", 8081)
