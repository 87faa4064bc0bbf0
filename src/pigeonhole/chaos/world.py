"""The actors: a server process, a store process, and clients that remember what they were promised."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from pigeonhole.errors import RunError
from pigeonhole.port import free_port
from pigeonhole.prediction_log import Counts, read_window

START_S = 300.0  # on a machine that does much else
QUIET_S = 60.0
CLIENTS = 2
TEXTS = ["where is my parcel", "the invoice is wrong", "I want a refund", "my card was charged twice"]


class Process:
    """A child that can be killed at any moment, and is gone at the end."""

    def __init__(self, command: list[str], environment: dict[str, str] | None = None) -> None:
        self._child = subprocess.Popen(
            command, env={**os.environ, **(environment or {})}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self._said: list[str] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._child.stderr is not None
        for line in self._child.stderr:
            self._said.append(line)
            del self._said[:-20]

    @property
    def alive(self) -> bool:
        return self._child.poll() is None

    def said(self) -> str:
        return "".join(self._said)

    def send(self, number: signal.Signals) -> None:
        if self.alive:
            self._child.send_signal(number)

    def wait(self, patience_s: float = 60.0) -> None:
        """Raises RunError where it does not end, as it was told to."""
        try:
            self._child.wait(patience_s)
        except subprocess.TimeoutExpired as error:
            self.end()
            raise RunError(f"a process did not end within {patience_s:g} s: {self.said()}") from error
        if self._child.stderr is not None:
            self._child.stderr.close()

    def end(self) -> None:
        """Kill -9, if it is still there."""
        self.send(signal.SIGKILL)
        self.wait()


class Store:
    """`gs://bucket`, in a process of its own at one port; it comes back with what it had acknowledged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._start()

    def _start(self) -> None:
        self._process = Process([sys.executable, "-m", "pigeonhole.chaos.bucket", str(self.folder), str(self.port)])
        until_open(self.port, self._process)

    def kill(self) -> None:
        """Kill -9, and another one in its place."""
        self.stop()
        self._start()

    def stop(self) -> None:
        self._process.end()


def until_open(port: int, process: Process) -> None:
    """Raises RunError where the process ends instead."""
    deadline = time.monotonic() + START_S
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if not process.alive or time.monotonic() > deadline:
            process.end()
            raise RunError(f"a process did not start: {process.said()}")
        time.sleep(0.02)


class Server(Process):
    """`uv run serve` over a log."""

    def __init__(self, bundle: str, log: str, spool: Path, store_port: int, durability: str = "process", **more: str) -> None:
        self.port = free_port()
        environment = {
            "PORT": str(self.port),
            "PIGEONHOLE_BUNDLE": bundle,
            "PIGEONHOLE_LOG": log,
            "PIGEONHOLE_SPOOL": str(spool),
            "PIGEONHOLE_DURABILITY": durability,
            "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{store_port}",
            "FSSPEC_GS_TOKEN": "anon",
            **more,
        }
        super().__init__([sys.executable, "-c", "from pigeonhole.serving.serve import main; main()"], environment)
        until_open(self.port, self)

    def gauge(self, name: str) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as answer:
            found = re.search(rf"^{name} (\S+)$", answer.read().decode(), re.MULTILINE)
        assert found is not None, name
        return float(found[1])


@dataclass
class Acknowledged:
    """What clients were told: the id of each prediction and when its 200 was read, and how all requests ended."""

    at: dict[str, float] = field(default_factory=dict)
    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)  # of each answered request
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, outcome: str, ids: list[str], began: float) -> None:
        now = time.monotonic()
        with self.lock:
            self.outcomes[outcome] += 1
            if ids:
                self.seconds.append(now - began)
                self.at.update(dict.fromkeys(ids, now))


class Clients:
    """CLIENTS threads that ask a server without pause, until they are stopped or it is gone."""

    def __init__(self, server: Server, told: Acknowledged, batch: int = 256, pause_s: float = 0.0) -> None:
        self._server = server
        self._told = told
        self._pause_s = pause_s
        self._body = json.dumps({"texts": (TEXTS * batch)[:batch], "top_k": 1}).encode()
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        connection = HTTPConnection("127.0.0.1", self._server.port, timeout=60)
        while not self._stopped.is_set():
            began = time.monotonic()
            try:
                connection.request("POST", "/predict", self._body, {"content-type": "application/json"})
                answer = connection.getresponse()
                body = answer.read()
            except (OSError, HTTPException):
                self._told.add("cut off", [], began)
                connection.close()
                if not self._server.alive:
                    return
                time.sleep(0.01)
                continue
            ids = [each["prediction_id"] for each in json.loads(body)["predictions"]] if answer.status == 200 else []
            self._told.add(str(answer.status), ids, began)
            self._stopped.wait(self._pause_s)


@contextlib.contextmanager
def asked(server: Server, told: Acknowledged, batch: int = 256, pause_s: float = 0.0) -> Iterator[None]:
    """Traffic, while the context lasts."""
    clients = Clients(server, told, batch, pause_s)
    try:
        yield
    finally:
        clients.stop()


def until_told(told: Acknowledged, records: int, server: Process) -> None:
    """Raises RunError where the server ends, or gives nobody a new answer for QUIET_S."""
    known, since = len(told.at), time.monotonic()
    while len(told.at) < records:
        if len(told.at) > known:
            known, since = len(told.at), time.monotonic()
        if not server.alive or time.monotonic() - since > QUIET_S:
            raise RunError(f"the server answered {len(told.at)} of {records}: {dict(told.outcomes)} {server.said()}")
        time.sleep(0.005)


@dataclass(frozen=True)
class Audit:
    """Acknowledged ids against the log."""

    missing: list[str]
    found: int
    counts: Counts


def audit(log: str, told: Acknowledged) -> Audit:
    """Of the last day; no trial takes so long."""
    now = datetime.now(UTC)
    window = read_window(log, now - timedelta(days=1), now + timedelta(hours=1))
    found = {record.prediction_id for record in window}
    return Audit([id_ for id_ in told.at if id_ not in found], len(found), window.counts)
