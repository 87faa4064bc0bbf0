"""A server to measure: `serve` in a process of its own, on cores of its own, and the least client that speaks to it."""

import asyncio
import contextlib
import json
import math
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pigeonhole.errors import ConfigError, RunError
from pigeonhole.port import free_port

PROGRAM = "from pigeonhole.serving.entry import main; main()"


@dataclass(frozen=True)
class Served:
    process: subprocess.Popen[bytes]
    port: int

    def scrape(self) -> dict[str, float]:
        """`name{labels}` of /metrics -> value."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=20) as answer:
            lines = [line for line in answer.read().decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def cpu_s(self) -> float:
        ticks = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")

    def resident_mb(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1000


def cores_of(numbers: str) -> set[int]:
    """`0,1` as a set. Raises ConfigError, also for a core that this process may not run on."""
    allowed = os.sched_getaffinity(0)
    if not set(numbers.split(",")) <= set(map(str, allowed)):
        raise ConfigError(f"client_cores={numbers}: expected some of {','.join(map(str, sorted(allowed)))}")
    return set(map(int, numbers.split(",")))


@contextlib.contextmanager
def served(folder: Path, cores: str | None = None, **environment: str) -> Iterator[Served]:
    """Until the block ends; then SIGTERM, and its exit code has to be 0. `cores`: as taskset has them."""
    port = free_port()
    place = ["taskset", "-c", cores] if cores else []
    variables = {**os.environ, "PORT": str(port), "PIGEONHOLE_LOG": str(folder / "log"), **environment}
    said = folder / "stderr"  # a pipe that nobody reads would stop a server that says much
    with said.open("wb") as stderr:
        process = subprocess.Popen([*place, sys.executable, "-c", PROGRAM], env=variables, stderr=stderr)
    try:
        _wait_until_ready(process, port)
        yield Served(process, port)
    except RunError as error:
        refused = process.returncode == ConfigError.exit_code  # what it was given: a bundle that is not there, for instance
        raise (ConfigError if refused else RunError)(f"{error}{_end_of(said)}") from error
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.returncode:
        raise RunError(f"serve ended with {process.returncode}{_end_of(said)}")


def _end_of(said: Path) -> str:
    return f": {told[-500:]}" if (told := said.read_text(encoding="utf-8", errors="replace").strip()) else ""


def _wait_until_ready(process: "subprocess.Popen[bytes]", port: int) -> None:
    soon = time.monotonic() + 60
    while time.monotonic() < soon:
        if process.poll() is not None:
            raise RunError(f"serve ended with {process.returncode}")
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5).close()
            return
        time.sleep(0.02)
    raise RunError("serve is not ready after 60 s")


@dataclass(frozen=True)
class Reply:
    """`began` and `ended` are time.perf_counter(); status 0: the connection broke."""

    status: int
    began: float
    ended: float


class Connection(asyncio.Protocol):
    """One keep-alive connection and one question at a time; cheap enough to ask faster than a server can answer."""

    def __init__(self) -> None:
        self.body = b""  # of the latest answer
        self._buffer = b""
        self._waiter: asyncio.Future[int] | None = None
        self._transport: asyncio.Transport | None = None
        self.is_lost = False

    @classmethod
    async def open(cls, port: int) -> "Connection":
        return (await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port))[1]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found or self._waiter is None:
            return
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if len(body) >= length:
            self._buffer, self.body = b"", body
            self._settle(int(head[9:12]))

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self._settle(0)

    def _settle(self, status: int) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(status)

    async def ask(self, request: bytes, began: float | None = None) -> Reply:
        """`began`: when it ought to have been asked, so that a client that falls behind does not flatter the server."""
        assert self._transport is not None
        began = began or time.perf_counter()
        self._waiter = asyncio.get_running_loop().create_future()
        if self.is_lost:
            self._settle(0)
        self._transport.write(request)
        status = await self._waiter
        return Reply(status, began, time.perf_counter())

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def predict_request(text: str, *headers: str) -> bytes:
    body = json.dumps({"text": text}).encode()
    head = ["POST /predict HTTP/1.1", "host: x", "content-type: application/json", f"content-length: {len(body)}", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


def percentile(values: list[float], share: float) -> float:
    """Nearest rank: the least value that so large a share does not exceed; NaN of none."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else math.nan
