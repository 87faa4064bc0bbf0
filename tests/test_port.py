import socket

import pytest

from pigeonhole.errors import ConfigError
from pigeonhole.port import bind, url_of


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def test_an_ipv6_address_can_be_listened_at() -> None:
    if _has_ipv6():
        with bind("::1", 0) as listener:
            assert listener.family == socket.AF_INET6
    else:
        with pytest.raises(ConfigError, match="HOST='::1' PORT=0: cannot listen there"):
            bind("::1", 0)


def test_a_url_has_an_ipv6_address_in_brackets() -> None:
    assert (url_of("::1", 8081), url_of("127.0.0.1", 8081)) == ("http://[::1]:8081", "http://127.0.0.1:8081")


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"HOST='192\.0\.2\.1' PORT=8081: cannot listen there"):
        bind("192.0.2.1", 8081)
