import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send
from tests.serving.conftest import Running

from pigeonhole.classifier import Classifier
from pigeonhole.prediction_log import Backlog
from pigeonhole.serving.edge import MAX_BODY_BYTES, Accounts, Edge
from pigeonhole.serving.telemetry import Telemetry

App = Callable[[Scope, Receive, Send], Any]


def answers(app: App, classifier: Classifier, *messages: Message, **scope: object) -> list[Message]:
    """What goes out when a request goes through the edge to `app`."""
    incoming = iter(messages or ({"type": "http.request", "body": b"", "more_body": False},))
    sent: list[Message] = []

    async def receive() -> Message:
        return next(incoming)

    async def send(message: Message) -> None:
        sent.append(message)

    telemetry = Telemetry(classifier.manifest, lambda: Backlog(0, 0.0, 0))
    full = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "path": "/x",
        "raw_path": b"/x",
        "query_string": b"",
        "headers": [],
        **scope,
    }
    asyncio.run(Edge(app, Accounts(telemetry))(full, receive, send))
    return sent


async def fail(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("secret: /srv/model.onnx")


async def fail_half_way(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    raise RuntimeError("secret")


async def read_all(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["state"]["request_id"].encode()})


def test_an_unforeseen_error_is_a_500_that_keeps_the_stack_in_the_log(
    classifier: Classifier, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        start, body = answers(fail, classifier, headers=[(b"x-request-id", b"r-77")])
    assert start["status"] == 500
    assert b"secret" not in body["body"]
    assert b'"request_id":"r-77"' in body["body"]
    assert "request r-77 failed" in caplog.text
    assert "secret: /srv/model.onnx" in caplog.text


def test_after_half_an_answer_there_is_no_second_one(classifier: Classifier) -> None:
    assert [message["type"] for message in answers(fail_half_way, classifier)] == ["http.response.start"]


def test_a_body_of_exactly_the_cap_passes_and_a_byte_more_does_not(classifier: Classifier) -> None:
    half = {"type": "http.request", "body": b"a" * (MAX_BODY_BYTES // 2), "more_body": True}
    last = {"type": "http.request", "body": b"", "more_body": False}
    assert answers(read_all, classifier, half, half, last)[0]["status"] == 200
    assert answers(read_all, classifier, half, half, {**last, "body": b"a"})[0]["status"] == 413


def test_two_request_ids_are_none(classifier: Classifier) -> None:
    twice = [(b"x-request-id", b"one"), (b"x-request-id", b"two")]
    assert answers(read_all, classifier, headers=twice)[1]["body"] not in (b"one", b"two")
    assert answers(read_all, classifier, headers=twice[:1])[1]["body"] == b"one"


def test_what_is_not_http_passes_untouched(classifier: Classifier) -> None:
    async def lifespan(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "lifespan.startup.complete"})

    assert answers(lifespan, classifier, type="lifespan") == [{"type": "lifespan.startup.complete"}]


@pytest.mark.parametrize("target", ["http://a.example", "HTTP://a.example:80"])
def test_a_target_may_name_the_host_as_for_a_proxy(running_once: Running, target: str) -> None:
    """RFC 9112 3.2.2: a server has to take it."""
    for path, status in (("/health", b"200"), ("", b"200"), ("/nothing", b"404")):
        answer = running_once.raw(f"GET {target}{path} HTTP/1.1\r\nhost: a.example\r\nconnection: close\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 " + status)
