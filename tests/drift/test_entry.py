import contextlib
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator

import pytest
from tests.conftest import wait_until

from pigeonhole.drift.settings import Settings
from pigeonhole.port import free_port

PROGRAM = "from pigeonhole.drift.entry import main; main()"


@contextlib.contextmanager
def started(settings: Settings) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The process, and the address at which it will listen."""
    port = free_port()
    variables = {**os.environ, "PORT": str(port), "PIGEONHOLE_REPORTS": settings.reports, "PIGEONHOLE_LOG": settings.log}
    with subprocess.Popen([sys.executable, "-c", PROGRAM], env=variables, stderr=subprocess.PIPE) as process:
        try:
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGTERM, not Windows")
def test_the_command_listens_says_what_is_missing_and_sigterm_ends_it_with_0(settings: Settings) -> None:
    with started(settings) as (process, address):
        wait_until(lambda: _answers(f"{address}/health"))
        process.terminate()
        _, said = process.communicate(timeout=20)
        assert process.returncode == 0
    assert f"PIGEONHOLE_LOG={settings.log}: there is no log here yet" in said.decode()


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGINT, not Windows")
def test_ctrl_c_ends_it_with_130_as_it_does_the_service(settings: Settings) -> None:
    with started(settings) as (process, address):
        wait_until(lambda: _answers(f"{address}/health"))
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: /proc says which signals a process handles")
def test_sigterm_while_libraries_load_ends_it_with_0(settings: Settings) -> None:
    with started(settings) as (process, _):
        wait_until(lambda: _handles_sigterm(process.pid))
        process.terminate()
        assert process.wait(20) == 0


def _handles_sigterm(pid: int) -> bool:
    with open(f"/proc/{pid}/status", encoding="utf-8") as stream:
        (caught,) = (line.split()[1] for line in stream if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> 14 & 1)


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
        return bool(answer.status == 200)
    return False
