"""Every page before another program at the services' address: its page, or JSON of its own."""

import http.server
import threading
from collections.abc import Callable, Iterator

import pytest
from streamlit.testing.v1 import AppTest

OpenPage = Callable[..., AppTest]
ANSWERS = {
    "text/html": b"<!doctype html><html>a login</html>",
    "application/json": b'{"model": 5, "labels": "x", "steps": {}, "versions": 3}',
}


@pytest.fixture(params=ANSWERS)
def stranger(request: pytest.FixtureRequest) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", request.param)
            self.end_headers()
            self.wfile.write(ANSWERS[request.param])

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("page", ["", "batch", "review", "model", "traffic"])
def test_a_page_before_another_program_asks_whether_the_address_is_right(open_page: OpenPage, stranger: str, page: str) -> None:
    app = open_page(stranger, page, drift=stranger)
    assert not app.exception
    assert any("is this the address of the service?" in found.value for found in [*app.error, *app.info])
