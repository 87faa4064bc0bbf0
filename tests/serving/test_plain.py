import asyncio
import json
import socket
from collections.abc import Iterator

import pytest
from tests.conftest import wait_until
from tests.serving.conftest import Running, Start
from tests.serving.test_telemetry import samples
from uvicorn.protocols.http.flow_control import FlowControl

from pigeonhole.serving.door import Door
from pigeonhole.serving.plain import Answer, Plain, PlainCycle, is_half_a_head, read
from pigeonhole.serving.protocol import Protocol

HEADERS = {"Host": "localhost", "Content-Type": "application/json", "Accept": "*/*", "Connection": "keep-alive"}


def request(body: bytes, path: str = "/predict", **more: str) -> bytes:
    headers = {**HEADERS, "Content-Length": str(len(body)), **{name.replace("_", "-"): value for name, value in more.items()}}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + body


def test_a_whole_request_is_read_as_asgi_has_it() -> None:
    found = read(request(b"{}", X_Request_Id="a-1", X_Forwarded_For="10.0.0.1", X_Cloud_Trace_Context="0/1;o=1"))
    assert found is not None
    assert found.body == b"{}"
    assert dict(found.headers)[b"x-request-id"] == b"a-1"
    assert (b"content-length", b"2") in found.headers


@pytest.mark.parametrize(
    ("data", "missing"),
    [
        (request(b"{}"), 0),
        (request(b"{}")[:-1], 1),
        (request(b"{}")[:-2], 2),
        (request(b"{}", Content_Length="1001"), 999),
    ],
)
def test_a_plain_request_may_lack_a_part_of_its_body(data: bytes, missing: int) -> None:
    found = read(data)
    assert found is not None
    assert found.missing == missing


@pytest.mark.parametrize(
    "data",
    [
        request(b"{}")[:-3],
        request(b"{}", Expect="100-continue")[:-1],
        request(b"{}", Content_Length="9999999"),
        request(b"{}") + b"x",
        request(b"{}") + request(b"{}"),
        request(b"{}", path="/explain"),
        request(b"{}", path="/predict?a=b"),
        request(b"{}", Transfer_Encoding="chunked"),
        request(b"{}", Expect="100-continue"),
        request(b"{}", Content_Length="+2"),
        request(b"{}", Content_Length="2, 2"),
        request(b"{}", Idempotency_Key="a"),
        request(b"{}", Connection="close"),
        request(b"{}", Connection="upgrade"),
        request(b"{}").replace(b"Accept: */*", b"Content-Length: 2"),
        request(b"{}").replace(b"Accept: */*", b"accept : */*"),
        request(b"{}").replace(b"Accept: */*", b"accept: a\r\n b"),
        request(b"{}").replace(b"Accept: */*", b"accept: a\x00b"),
        request(b"{}").replace(b"Accept: */*", b"accept: a\nb"),
        request(b"{}").replace(b"Accept: */*", b"accept: \xff"),
        request(b"{}").replace(b"Host: localhost\r\n", b""),
        request(b"{}").replace(b"HTTP/1.1", b"HTTP/1.0"),
        request(b"{}").replace(b"\r\n", b"\n"),
        b" " + request(b"{}"),
        b"\r\n" + request(b"{}"),
    ],
)
def test_what_is_unusual_in_any_way_is_left_to_the_parser(data: bytes) -> None:
    assert read(data) is None


@pytest.mark.parametrize(
    ("data", "half"),
    [
        (b"P", True),
        (b"POST /pre", True),
        (b"POST /v1/predict HTTP/1.1\r\nho", True),
        (request(b"{}")[:-3], True),
        (request(b"{}")[:-2], False),
        (b"POST /explain", False),
        (b"\r\nPOST", False),
        (b"\x16\x03\x01", False),
    ],
)
def test_half_a_head_may_become_a_question(data: bytes, half: bool) -> None:
    assert is_half_a_head(data) is half


def test_a_question_whose_caller_left_at_once_is_never_begun() -> None:
    begun: list[Plain] = []

    async def answer(request: Plain) -> Answer:
        begun.append(request)
        return Answer(200, [], b"")

    async def ask() -> bool:
        transport = asyncio.Transport()
        cycle = PlainCycle(transport, FlowControl(transport), lambda: None)
        door = Door(lambda: False, lambda: None)
        task = asyncio.get_running_loop().create_task(cycle.run(answer, Plain((), b""), [], door))
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    assert asyncio.run(ask())  # a coroutine made before would be one that nobody awaits
    assert begun == []


@pytest.fixture
def connection(running: Running) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as opened:
        yield opened


def answer(connection: socket.socket) -> tuple[int, set[str], dict[str, object]]:
    """Status, names of the headers, body."""
    stream = connection.makefile("rb")
    status = int(stream.readline().split()[1])
    headers = dict(line.decode().strip().lower().split(": ", 1) for line in iter(stream.readline, b"\r\n"))
    return status, set(headers), json.loads(stream.read(int(headers["content-length"])))


@pytest.mark.parametrize(
    "body",
    [
        b'{"text": "where is my parcel"}',
        b'{"inputs": "refund"}',
        b'{"text": 1}',
        b'{"text": ""}',
        b"{",
        b"",
        b'{"text": "\\ud800"}',
    ],
)
def test_both_ways_give_the_same_answer(connection: socket.socket, body: bytes) -> None:
    found = []
    for more in ({}, {"X_Unheard_Of": "1"}):  # a header that is not well known takes the long way
        assert (read(request(body, **more)) is None) == bool(more)
        connection.sendall(request(body, **more))
        status, names, reply = answer(connection)
        if isinstance(reply, dict):
            reply = {key: value for key, value in reply.items() if key not in ("prediction_id", "request_id")}
        found.append((status, names, reply))
    assert found[0] == found[1]


def test_requests_that_come_before_the_answer_are_answered_in_their_order(connection: socket.socket) -> None:
    for name in ("a", "b", "c"):
        connection.sendall(request(b'{"text": "where is my parcel"}', X_Request_Id=name))
    stream = connection.makefile("rb")
    found = []
    for _ in range(3):
        headers = dict(line.decode().strip().lower().split(": ", 1) for line in list(iter(stream.readline, b"\r\n"))[1:])
        stream.read(int(headers["content-length"]))
        found.append(headers["x-request-id"])
    assert found == ["a", "b", "c"]


def test_a_long_and_a_short_way_take_turns_on_one_connection(connection: socket.socket) -> None:
    for path in ("/predict", "/explain", "/v1/predict", "/predict"):
        connection.sendall(request(b'{"text": "where is my parcel"}', path=path))
        assert answer(connection)[0] == 200


def test_no_answer_is_written_behind_one_that_the_client_has_not_taken(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the answers to whoever sends and never reads would fill the memory."""
    left_over: list[int] = []
    begin = Protocol.connection_made

    def begin_with_a_small_buffer(protocol: Protocol, transport: asyncio.Transport) -> None:
        begin(protocol, transport)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        write = transport.write

        def noting(data: bytes) -> None:
            left_over.append(transport.get_write_buffer_size())
            write(data)

        monkeypatch.setattr(transport, "write", noting)

    with start() as service, socket.socket() as slow:
        monkeypatch.setattr(Protocol, "connection_made", begin_with_a_small_buffer)
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.settimeout(10)
        slow.connect(("127.0.0.1", service.port))
        for answered in (100, 200):  # 25 KB for each hundred
            slow.sendall(request(json.dumps({"texts": ["parcel"] * 100}).encode()))
            wait_until(lambda: samples(service).get("pigeonhole_answered_total{role=production}", 0) == answered)  # noqa: B023
        assert service.http.post("/predict", json={"text": "refund"}).status_code == 200  # its turn comes after the second's
        with slow.makefile("rb") as stream:
            for _ in range(2):
                head = list(iter(stream.readline, b"\r\n"))
                length = next(int(line.split()[1]) for line in head if line.startswith(b"content-length: "))
                assert len(json.loads(stream.read(length))["predictions"]) == 100
    assert set(left_over) == {0}
