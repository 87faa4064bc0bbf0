"""A proxy before the store that behaves as a bad day does; what it does wrong can be changed while it runs."""

import http.client
import random
import socket
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Literal, Self

Fault = Literal["refused", "429", "500", "503", "slow", "truncated", "unheard", "cut"]
"""refused: no answer at all; truncated: half of the answer; unheard: done by the store, but the answer is lost; cut: half of the
request reaches nobody."""

SLOW_S = 2.0


class Handler(BaseHTTPRequestHandler):
    server: "FaultProxy"
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.pass_on()

    def do_POST(self) -> None:
        self.pass_on()

    def do_DELETE(self) -> None:
        self.pass_on()

    def pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.next_fault()
        if fault in ("refused", "cut"):
            self.close_connection = True
        elif fault in ("429", "500", "503"):
            self.send(int(fault), b'{"error":{"code":%s,"message":"a bad day"}}' % fault.encode())
        else:
            if fault == "slow":
                time.sleep(SLOW_S)
            self.forward(body, fault)

    def forward(self, body: bytes, fault: Fault | None) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.store_port, timeout=30)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
            connection.request(self.command, self.path, body or None, headers)
            answer = connection.getresponse()
            data = answer.read()
        except OSError:
            self.close_connection = True  # the store is not there
            return
        finally:
            connection.close()
        if fault == "unheard":
            self.close_connection = True
        else:
            self.send(answer.status, data, len(data) // 2 if fault == "truncated" else len(data))

    def send(self, code: int, data: bytes, sent: int | None = None) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[:sent])
        if sent is not None and sent < len(data):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


class FaultProxy(ThreadingHTTPServer):
    """Every request meets one of `faults`, drawn evenly; none where the list is empty. `met` counts them."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, store_port: int, seed: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.store_port = store_port
        self.faults: tuple[Fault, ...] = ()
        self.met: Counter[str] = Counter()
        self._draw = random.Random(seed)

    def next_fault(self) -> Fault | None:
        fault = self._draw.choice(self.faults) if self.faults else None
        self.met[fault or "none"] += 1
        return fault

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed in the middle of a request; any other error is told."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()
