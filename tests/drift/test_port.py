import socket

import pytest

from pigeonhole.drift.service import watch
from pigeonhole.drift.settings import Settings
from pigeonhole.errors import ConfigError
from pigeonhole.port import bind


def test_a_port_that_is_taken_is_refused_in_one_line_before_anything_is_said(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        variables = {"PORT": str(port), "PIGEONHOLE_REPORTS": settings.reports, "PIGEONHOLE_LOG": settings.log}
        with pytest.raises(ConfigError, match=rf"HOST='127\.0\.0\.1' PORT={port}: cannot listen there \(.+\); set another"):
            watch(variables)
    assert capsys.readouterr().err == ""


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"HOST='192\.0\.2\.1' PORT=8081: cannot listen there"):
        bind("192.0.2.1", 8081)
