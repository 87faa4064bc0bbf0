import gc
import socket
import threading
import time

import h11
import httpx
import pytest
from tests.conftest import wait_until
from tests.serving.conftest import Running, Start

from pigeonhole.serving import protocol
from pigeonhole.serving.protocol import MAX_PIECES, Pieces

HEAD = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 20\r\n\r\n"
QUESTION = HEAD.replace(b"20", b"17") + b'{"text":"parcel"}'
CHUNKED = HEAD.replace(b"content-length: 20", b"transfer-encoding: chunked") + b'11\r\n{"text":"parcel"}\r\n0\r\n\r\n'


@pytest.fixture
def _short_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "RECEIVE_TIMEOUT_S", 0.3)


def read_all(connection: socket.socket) -> bytes:
    connection.settimeout(30)
    found = b""
    while part := connection.recv(65536):
        found += part
    return found


@pytest.mark.usefixtures("_short_deadline")
@pytest.mark.parametrize("sent", [b"", b"POST /pre", HEAD[:-2], HEAD, HEAD + b"{"])
def test_a_request_that_does_not_come_is_answered_408_and_the_connection_closed(start: Start, sent: bytes) -> None:
    with start() as service, socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.sendall(sent)
        found = read_all(connection)
        assert found.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert b"application/problem+json" in found
        assert b'"code":"request_timeout"' in found
        assert service.http.get("/health").status_code == 200


@pytest.mark.usefixtures("_short_deadline")
def test_a_byte_now_and_then_does_not_wind_the_clock_up_again(start: Start) -> None:
    with start() as service, socket.create_connection(("127.0.0.1", service.port)) as connection:
        began = time.monotonic()
        connection.settimeout(0.05)
        found = b""
        for byte in HEAD:
            connection.sendall(bytes([byte]))
            try:
                found = connection.recv(65536)
                break
            except TimeoutError:
                continue
        assert found.startswith(b"HTTP/1.1 408")
        assert time.monotonic() - began < 3  # a clock wound up by each byte would run for four


@pytest.mark.usefixtures("_short_deadline")
def test_an_answer_that_nobody_takes_is_not_kept_for_ever(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "SEND_TIMEOUT_S", 0.3)
    body = b'{"texts": [%s"parcel"]}' % (b'"parcel",' * 255)
    request = HEAD.replace(b"20", b"%d" % len(body)) + body
    with start() as service, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(10)
        connection.connect(("127.0.0.1", service.port))
        with pytest.raises(ConnectionError):
            connection.sendall(request * 10_000)
        assert service.http.post("/predict", json={"text": "parcel"}).status_code == 200


@pytest.mark.usefixtures("_short_deadline")
def test_an_answer_that_is_taken_slowly_comes_whole(start: Start) -> None:
    body = b'{"texts": [%s"parcel"]}' % (b'"parcel",' * 255)
    request = HEAD.replace(b"20", b"%d" % len(body), 1) + body
    with start() as service, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(20)
        connection.connect(("127.0.0.1", service.port))
        sender = threading.Thread(target=connection.sendall, args=(request * 60,))
        sender.start()
        time.sleep(0.5)
        found = b""
        while found.count(b"HTTP/1.1 200 OK") < 60 or not found.endswith(b"}"):
            piece = connection.recv(65536)
            assert piece
            found += piece
        sender.join()


@pytest.mark.usefixtures("_short_deadline")
def test_slow_sockets_by_the_hundred_do_not_slow_the_others(start: Start) -> None:
    with start() as service:
        slow = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(200)]
        for number, connection in enumerate(slow):
            connection.sendall(HEAD if number % 2 else b"")
        assert {service.http.post("/predict", json={"text": "parcel"}).status_code for _ in range(20)} == {200}
        assert {read_all(connection)[:12] for connection in slow} == {b"HTTP/1.1 408"}
        for connection in slow:
            connection.close()


@pytest.mark.usefixtures("_short_deadline")
def test_a_connection_may_rest_between_requests_and_work_longer_than_the_clock(start: Start) -> None:
    with start() as service:
        for _ in range(3):
            assert service.http.post("/predict", json={"text": "parcel"}).status_code == 200
            time.sleep(0.4)


@pytest.mark.usefixtures("_short_deadline")
def test_a_body_that_goes_on_after_its_refusal_is_cut_off_without_a_second_answer(start: Start) -> None:
    with start() as service, socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.sendall(HEAD.replace(b"20", b"99999999") + b"{")
        found = read_all(connection)
        assert found.startswith(b"HTTP/1.1 413")
        assert found.count(b"HTTP/1.1") == 1


def test_a_body_without_a_length_is_counted_and_refused_while_it_is_sent(running: Running) -> None:
    head = HEAD.replace(b"content-length: 20", b"transfer-encoding: chunked")
    chunk = b"10000\r\n" + b"a" * 0x10000 + b"\r\n"
    found = running.raw(head, *[chunk] * 17)
    assert found.startswith(b"HTTP/1.1 413")
    assert b'"detail":"a body has at most 1048576 bytes"' in found


@pytest.mark.parametrize("cut", [3, 40, len(HEAD) - 1, len(HEAD), len(HEAD) + 5])
def test_a_question_in_two_pieces_costs_no_parser(start: Start, monkeypatch: pytest.MonkeyPatch, cut: int) -> None:
    def parse(*_: object) -> None:
        raise AssertionError("no plain request should come here")

    body = b'{"text":"parcel"}'
    request = HEAD.replace(b"20", str(len(body)).encode()) + body
    with start() as service, socket.create_connection(("127.0.0.1", service.port), timeout=5) as connection:
        monkeypatch.setattr(protocol.Pieces, "receive_data", parse)
        for _ in range(2):
            connection.sendall(request[:cut])
            time.sleep(0.05)
            connection.sendall(request[cut:])
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_a_request_in_many_pieces_is_answered(running: Running) -> None:
    body = b'{"text":"parcel"}'
    with socket.create_connection(("127.0.0.1", running.port), timeout=5) as connection:
        for piece in (HEAD.replace(b"20", str(len(body)).encode()), body[:3], body[3:9], body[9:]):
            connection.sendall(piece)
            time.sleep(0.02)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_requests_in_one_packet_are_answered_one_after_the_other(running: Running) -> None:
    body = b'{"text":"parcel"}'
    request = HEAD.replace(b"20", str(len(body)).encode()) + body
    found = running.raw(request + request + b"nonsense\r\n\r\n")
    assert found.count(b"HTTP/1.1 200") == 2
    assert found.count(b"HTTP/1.1 400") == 1
    assert len(running.records()) == 2


@pytest.mark.parametrize("before", [b"", QUESTION, CHUNKED], ids=["first", "after the short way", "after the long way"])
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("after", [b"GET /ready HTTP/1.1\r\nhost: x\r\n\r\n", QUESTION])
def test_an_empty_line_before_a_request_is_nothing(running: Running, before: bytes, apart: bool, after: bytes) -> None:
    parts = (before, b"\r\n", after) if apart else (before + b"\r\n" + after,)
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(0.05)
        answers = b""
        while answers.count(b"HTTP/1.1 200 OK") < 1 + bool(before):
            came = connection.recv(65536)
            assert came
            answers += came
    assert b" 400 " not in answers


@pytest.mark.usefixtures("_short_deadline")
def test_a_connection_with_an_empty_line_rests_as_any_other(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pigeonhole.serving.protocol.REST_S", 0.3)
    with start() as service:
        answers = service.raw(QUESTION, b"\r\n", patience_s=5)
    assert answers.count(b"HTTP/1.1") == 1  # and no 408


def test_two_empty_lines_are_no_request(running: Running) -> None:
    assert running.raw(b"\r\n\r\n\r\n" + QUESTION).startswith(b"HTTP/1.1 400 ")


def test_a_closed_connection_leaves_nothing_to_the_garbage_collector(start: Start) -> None:
    def connections() -> int:
        # By type alone: isinstance asks an object for its class, and some of torch's warn when they are asked.
        return sum(issubclass(type(found), protocol.Protocol) for found in gc.get_objects())

    with start() as service, httpx.Client(base_url=service.http.base_url) as other:
        gc.collect()
        gc.disable()
        try:
            assert other.get("/health").status_code == 200
            assert other.post("/predict", json={"text": "parcel"}).status_code == 200
            before = connections()
            other.close()
            wait_until(lambda: connections() < before)
            assert connections() == before - 1
        finally:
            gc.enable()


def test_a_head_that_came_at_once_is_not_parsed_where_it_is_too_long() -> None:
    """20,000 headers held up the loop for 0.09 s; one that the edge refuses by its own measure still comes to it."""

    def head(lines: int) -> bytes:
        return b"GET /health HTTP/1.1\r\nhost: x\r\n" + b"x: a\r\n" * lines + b"\r\n"

    short, long = Pieces(h11.SERVER), Pieces(h11.SERVER)
    short.receive_data(head(5_000))
    assert isinstance(short.next_event(), h11.Request)
    long.receive_data(b"\r\n" + head(6_000))
    with pytest.raises(h11.RemoteProtocolError, match="the head is too long"):
        long.next_event()
    body = b"a" * 100_000
    whole = Pieces(h11.SERVER)
    whole.receive_data(b"POST / HTTP/1.1\nhost: x\ncontent-length: 100000\n\n" + body)
    assert isinstance(whole.next_event(), h11.Request)
    data = whole.next_event()
    assert isinstance(data, h11.Data)
    assert data.data == body


@pytest.mark.parametrize(
    ("head", "code"),
    [
        (b"GET /health HTTP/1.1\r\nhost: x\r\n" + b"x: a\r\n" * 3_000, b"431 Request Header Fields Too Large"),
        (b"GET /health?" + b"a" * 18_000, b"414 "),
    ],
)
def test_a_head_that_is_too_long_is_told_what_is_allowed_before_it_is_whole(start: Start, head: bytes, code: bytes) -> None:
    """More than is read is never sent: what nobody reads resets the connection, and the answer with it."""
    with start() as service, socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.sendall(head)
        found = read_all(connection)
    assert found.startswith(b"HTTP/1.1 " + code)
    assert b'"code":"headers_too_large"' in found or b'"code":"url_too_long"' in found


def test_pieces_are_counted_for_each_body_and_as_many_as_are_allowed_pass() -> None:
    def request(pieces: int) -> bytes:
        head = b"POST /predict HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
        return head + b"1\r\na\r\n" * pieces + b"0\r\n\r\n"

    connection = Pieces(h11.SERVER)
    for _ in range(2):
        connection.receive_data(request(MAX_PIECES))
        while not isinstance(connection.next_event(), h11.EndOfMessage):
            pass
        connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
        connection.send(h11.EndOfMessage())
        connection.start_next_cycle()
    connection.receive_data(request(MAX_PIECES + 1))
    with pytest.raises(h11.RemoteProtocolError, match="too many pieces"):
        list(iter(connection.next_event, None))
