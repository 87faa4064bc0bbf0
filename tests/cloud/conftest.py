import json
import threading
from collections.abc import Callable, Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

Answer = Callable[[str, str, Any], tuple[int, Any]]


class StandIn:
    """A local HTTP server in the place of a Google API: it keeps what was asked, and answers as the test says."""

    def __init__(self, answer: Answer) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self.headers: list[Message] = []
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def _any(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                is_form = self.headers.get("content-type", "").startswith("application/x-www-form-urlencoded")
                asked = (self.command, self.path, body.decode() if is_form else json.loads(body) if body else None)
                stand_in.asked.append(asked)
                stand_in.headers.append(self.headers)
                status, found = answer(*asked)
                data = json.dumps(found).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PATCH = _any  # noqa: N815  http.server's names

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def stand_in() -> Iterator[Callable[[Answer], StandIn]]:
    made: list[StandIn] = []

    def make(answer: Answer) -> StandIn:
        made.append(StandIn(answer))
        return made[-1]

    yield make
    for one in made:
        one.server.shutdown()
        one.server.server_close()
