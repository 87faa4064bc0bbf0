import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.conftest import wait_until
from tests.serving.conftest import Running, Start
from tests.serving.test_failures import Held
from tests.serving.test_telemetry import samples

from pigeonhole.classifier import Classifier
from pigeonhole.prediction_log import LogWriter
from pigeonhole.serving import listener
from pigeonhole.serving.door import is_question
from pigeonhole.serving.listener import AT_ONCE
from pigeonhole.serving.service import MAX_LATE_S, Service
from pigeonhole.serving.settings import Settings

BODY = b'{"text":"parcel"}'
HEAD = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 17\r\n\r\n"


def with_header(line: bytes) -> bytes:
    return HEAD[:-2] + line + b"\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "whole"),
    [
        (HEAD + BODY, True),
        (HEAD.replace(b"content-length", b"Content-Length") + BODY, True),
        (HEAD.replace(b"th: 17", b"th:17") + BODY, True),
        (HEAD, False),
        (HEAD + BODY[:-1], False),
        (HEAD + BODY + HEAD, False),
        (HEAD[:-4], False),
        (with_header(b"content-length: 17") + BODY, False),
        (with_header(b"content-length: 5") + BODY, False),
        (with_header(b"x: content-length: 5") + BODY, False),
        (with_header(b"transfer-encoding: chunked") + BODY, False),
        (with_header(b"expect: 100-continue") + BODY, False),
        (with_header(b"connection: close") + BODY, False),
        (HEAD.replace(b"17", b"+17") + BODY, False),
        (HEAD.replace(b"17", b"17 ") + BODY, False),
        (b"POST /predict HTTP/1.1\r\nhost: x\r\n\r\n", False),
        (b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n", False),
        ((HEAD + BODY).replace(b"/predict", b"/feedback"), False),
    ],
)
def test_only_a_whole_question_that_nobody_could_read_otherwise_is_refused_unread(data: bytes, whole: bool) -> None:
    assert is_question(data) is whole


def read_answers(connection: socket.socket, count: int) -> bytes:
    found = b""
    while found.count(b"HTTP/1.1") < count or not found.endswith(b"}"):
        part = connection.recv(65536)
        assert part, found
        found += part
    return found


def fill(service: Running, held: Held, pool: ThreadPoolExecutor) -> None:
    """One text holds the model, and 256 wait for it."""
    pool.submit(service.http.post, "/predict", json={"text": "parcel"})
    assert held.entered.wait(5)
    pool.submit(service.http.post, "/predict", json={"texts": ["parcel"] * 256})
    wait_until(lambda: samples(service)["pigeonhole_waiting_texts{}"] == 256)


def test_a_full_service_refuses_at_the_door_and_the_connection_goes_on(start: Start, classifier: Classifier) -> None:
    held = Held(classifier)
    with start(held, max_waiting=256) as service, ThreadPoolExecutor(2) as pool:
        fill(service, held, pool)
        with socket.create_connection(("127.0.0.1", service.port), timeout=10) as connection:
            for _ in range(3):
                connection.sendall(HEAD + BODY)
                answer = read_answers(connection, 1)
                assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\n")
                assert b"\r\nretry-after: 1\r\n" in answer
                assert b'"code":"overloaded"' in answer
            connection.sendall(HEAD)  # in two pieces it takes the long way, to the same answer
            connection.sendall(BODY)
            assert b'"code":"overloaded"' in read_answers(connection, 1)
            connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            assert read_answers(connection, 1).startswith(b"HTTP/1.1 200")
            found = samples(service)
            assert found["pigeonhole_shed_total{}"] == 4
            assert found["pigeonhole_requests_total{code=503,route=/predict}"] == 4
            held.let_go.set()
            wait_until(lambda: samples(service)["pigeonhole_waiting_texts{}"] == 0)
            connection.sendall(HEAD + BODY)
            assert read_answers(connection, 1).startswith(b"HTTP/1.1 200")
            (told,) = service.http.get("/history?hours=1&steps=1").json()["steps"]
            assert (told["turned_away"], told["failed"]) == (4, 0)


def test_where_a_crowd_waits_connections_are_taken_as_fast_as_they_come(
    start: Start, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "BURST", AT_ONCE)
    monkeypatch.setattr(listener, "PER_S", AT_ONCE / 60)
    held = Held(classifier)
    with start(held, max_waiting=256) as service, ThreadPoolExecutor(2) as pool:
        fill(service, held, pool)
        for _ in range(4 * AT_ONCE):  # the pace would take minutes for them
            with socket.create_connection(("127.0.0.1", service.port), timeout=5) as connection:
                connection.sendall(HEAD + BODY)
                assert read_answers(connection, 1).startswith(b"HTTP/1.1 503")
        held.let_go.set()


def test_a_late_loop_lets_in_what_the_model_needs_and_no_more(classifier: Classifier, tmp_path: Path) -> None:
    with LogWriter(str(tmp_path)) as log:
        service = Service(Settings(), classifier, log, log)
    for waiting, late_s, full in [
        (511, 10.0, False),
        (512, MAX_LATE_S, False),
        (512, 2 * MAX_LATE_S, True),
        (Settings().max_waiting, 0.0, True),
    ]:
        service.batcher._waiting_texts = waiting
        assert service.is_full(late_s) is full


def test_a_connection_that_was_refused_at_the_door_rests_no_longer_than_others(
    start: Start, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pigeonhole.serving.protocol.REST_S", 0.3)
    held = Held(classifier)
    with start(held, max_waiting=256) as service, ThreadPoolExecutor(2) as pool:
        fill(service, held, pool)
        with socket.create_connection(("127.0.0.1", service.port), timeout=5) as connection:
            connection.sendall(HEAD + BODY)
            assert read_answers(connection, 1).startswith(b"HTTP/1.1 503 ")
            try:
                assert connection.recv(1) == b""
            finally:
                held.let_go.set()
