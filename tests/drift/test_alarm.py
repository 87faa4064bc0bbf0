"""The sender against real HTTP servers on this machine."""

import base64
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from tests.drift.conftest import Receiver

from pigeonhole.drift import alarm
from pigeonhole.drift.alarm import SIGNATURE, Alarm, Delivery, Sender, alarm_url, is_signed, sign

ALARM = Alarm(id="a1", at="2026-03-01T12:00:00+00:00", model="tiny", version="v1", report=3, detectors=["confidence"], rows=100)


def sender(url: str, waited: list[float], **changes: Any) -> Sender:
    return Sender(url, "key", sleep=waited.append, **changes)


def test_a_webhook_gets_the_alarm_signed(receiver: Receiver) -> None:
    assert sender(f"{receiver.url}/alarms", []).deliver(ALARM) == Delivery(True, 1)
    ((path, headers, body),) = receiver.got
    assert (path, msgspec.json.decode(body, type=Alarm)) == ("/alarms", ALARM)
    signature = headers[SIGNATURE.lower()]
    at = int(signature.split(",")[0].removeprefix("t="))
    assert is_signed("key", body, signature, at)


def test_what_passes_is_tried_again_with_growing_waits_and_the_same_id(receiver: Receiver) -> None:
    receiver.codes = [408, 425, 503, 204]
    waited: list[float] = []
    assert sender(receiver.url, waited).deliver(ALARM) == Delivery(True, 4)
    assert waited == [0.0, 0.5, 2.0, 8.0]
    receiver.codes = [429, 204]
    assert sender(receiver.url, []).deliver(ALARM) == Delivery(True, 2)
    assert {json.loads(body)["id"] for _, _, body in receiver.got} == {"a1"}


@pytest.mark.parametrize("code", [400, 401, 302])
def test_a_refusal_is_final(receiver: Receiver, code: int) -> None:
    receiver.codes = [code]
    assert sender(receiver.url, []).deliver(ALARM) == Delivery(False, 1, f"the receiver answered {code}")
    assert len(receiver.got) == 1


def test_a_receiver_that_is_gone_is_a_reason_and_no_exception(receiver: Receiver) -> None:
    delivery = sender("http://127.0.0.1:9", []).deliver(ALARM)
    assert (delivery.sent, delivery.attempts) == (False, 4)
    assert "cannot be reached" in str(delivery.why_not)


@contextlib.contextmanager
def answering(data: bytes) -> Iterator[str]:
    """Something listens that answers every connection with the same bytes."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            with contextlib.suppress(OSError):  # the end of the test
                while True:
                    connection, _ = listening.accept()
                    with connection:
                        connection.recv(65536)
                        connection.sendall(data)

        thread = threading.Thread(target=answer)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_a_receiver_that_speaks_no_http_is_a_reason_and_no_exception() -> None:
    with answering(b"SSH-2.0-OpenSSH_9.2\r\n") as url:
        delivery = sender(url, []).deliver(ALARM)
    assert (delivery.sent, delivery.attempts) == (False, 4)
    assert "cannot be reached (SSH-2.0-OpenSSH_9.2" in str(delivery.why_not)
    assert "nonnumeric port" in str(sender("http://127.0.0.1:abc/", []).deliver(ALARM).why_not)


def test_a_receiver_that_answers_byte_by_byte_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alarm, "TIMEOUT_S", 0.3)
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip() -> None:
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\nx: ")
                while not ended.wait(0.1):
                    connection.sendall(b"x")

        thread = threading.Thread(target=drip)
        thread.start()
        watchdog = threading.Timer(60, ended.set)
        watchdog.start()
        delivery = sender(f"http://127.0.0.1:{listening.getsockname()[1]}", [], waits_s=(0.0,)).deliver(ALARM)
        assert not ended.is_set()
        watchdog.cancel()
        ended.set()
        thread.join()
    assert delivery == Delivery(False, 1, "the receiver cannot be reached (no whole answer within 0.3 s)")


@pytest.mark.parametrize("token", [b"{}", b"[]", b"no JSON"])
def test_a_machine_that_gives_no_token_is_a_reason_and_no_exception(receiver: Receiver, token: bytes) -> None:
    with answering(b"HTTP/1.0 200 OK\r\n\r\n" + token) as metadata:
        delivery = sender("pubsub://projects/p/topics/t", [], pubsub=receiver.url, metadata=metadata).deliver(ALARM)
    assert (delivery.sent, delivery.attempts, receiver.got) == (False, 4, [])


def test_a_topic_gets_the_alarm_as_the_account_of_the_machine(receiver: Receiver) -> None:
    topic = "projects/some-project/topics/drift"
    found = sender(f"pubsub://{topic}", [], pubsub=receiver.url, metadata=receiver.url).deliver(ALARM)
    assert found == Delivery(True, 1)
    ((path, headers, body),) = receiver.got
    assert (path, headers["authorization"]) == (f"/v1/{topic}:publish", "Bearer of this machine")
    (message,) = json.loads(body)["messages"]
    assert msgspec.json.decode(base64.b64decode(message["data"]), type=Alarm) == ALARM


def test_a_signature_holds_for_one_body_one_key_and_five_minutes() -> None:
    signature = sign("key", b"body", 1_000)
    assert is_signed("key", b"body", signature, 1_299)
    assert not is_signed("key", b"body", signature, 1_301)
    assert not is_signed("key", b"body", signature, 699)
    assert not is_signed("other", b"body", signature, 1_000)
    assert not is_signed("key", b"bodies", signature, 1_000)
    assert not is_signed("key", b"body", signature.replace("t=1000", "t=1001"), 1_000)
    assert not is_signed("key", b"body", "", 1_000)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8082/alarms", "https://x.example/a?b=c", "pubsub://projects/p-1/topics/drift"])
def test_urls_of_three_kinds_are_taken(url: str) -> None:
    assert alarm_url(url) == url


@pytest.mark.parametrize("url", ["ftp://x", "x.example", "pubsub://drift", "http://", "file:///x"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"pubsub://projects/PROJECT/topics/TOPIC"):
        alarm_url(url)
