"""A service whose model, disk or worker fails: nobody gets an answer that is not written down, and everybody gets an answer."""

import json
import os
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from tests.conftest import wait_until
from tests.serving.conftest import WEIGHTS, WORDS, Running, Start
from tests.serving.test_telemetry import samples

from pigeonhole.classifier import Classifier, Prediction


class Held(Classifier):
    """A classifier that waits until it is let go."""

    def __init__(self, inner: Classifier) -> None:
        self.__dict__.update(inner.__dict__)
        self.entered = threading.Event()
        self.let_go = threading.Event()
        self.texts: list[str] = []

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        self.entered.set()
        assert self.let_go.wait(60)
        self.texts += texts
        return super().predict(texts)


def test_a_question_whose_caller_has_gone_is_not_computed(start: Start, classifier: Classifier) -> None:
    held = Held(classifier)
    body = b'{"text":"zebra"}'
    head = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    with start(held) as service, ThreadPoolExecutor(1) as pool:
        first = pool.submit(service.http.post, "/predict", json={"text": "parcel"})
        assert held.entered.wait(60)
        with socket.create_connection(("127.0.0.1", service.port)) as connection:
            connection.sendall(head + body)
            wait_until(lambda: samples(service)["pigeonhole_waiting_texts{}"] == 1)
        wait_until(lambda: samples(service).get("pigeonhole_requests_total{code=499,route=/predict}") == 1)
        held.let_go.set()
        assert first.result().status_code == 200
        assert service.http.post("/predict", json={"text": "invoice"}).status_code == 200
        assert held.texts == ["parcel", "invoice"]
        assert len(service.records()) == 2


def test_a_full_queue_answers_503_with_retry_after_at_once(start: Start, classifier: Classifier) -> None:
    held = Held(classifier)
    with start(held, max_waiting=256) as service, ThreadPoolExecutor(4) as pool:
        first = pool.submit(service.http.post, "/predict", json={"text": "parcel"})
        assert held.entered.wait(60)
        waiting = pool.submit(service.http.post, "/predict", json={"texts": ["parcel"] * 256})
        wait_until(lambda: samples(service)["pigeonhole_waiting_texts{}"] == 256)
        refused = service.http.post("/predict", json={"text": "parcel"})
        assert (refused.status_code, refused.json()["code"], refused.headers["retry-after"]) == (503, "overloaded", "1")
        assert service.http.get("/health").status_code == 200
        held.let_go.set()
        assert (first.result().status_code, waiting.result().status_code) == (200, 200)
        assert "pigeonhole_shed_total 1.0" in service.http.get("/metrics").text
        assert len(service.records()) == 257


@pytest.mark.parametrize("deadline_ms", ["1", "50"])
def test_an_answer_that_comes_too_late_is_a_503_and_is_not_computed(
    deadline_ms: str, start: Start, classifier: Classifier
) -> None:
    held = Held(classifier)
    with start(held) as service, ThreadPoolExecutor(2) as pool:
        first = pool.submit(service.http.post, "/predict", json={"text": "first"})
        assert held.entered.wait(60)
        second = pool.submit(service.http.post, "/predict", json={"text": "second"})
        wait_until(lambda: samples(service)["pigeonhole_waiting_texts{}"] == 1)
        late = service.http.post("/predict", json={"text": "late"}, headers={"x-request-timeout-ms": deadline_ms})
        assert (late.status_code, late.json()["code"], late.headers["retry-after"]) == (503, "deadline_passed", "1")
        held.let_go.set()
        assert (first.result().status_code, second.result().status_code) == (200, 200)
        assert service.http.post("/predict", json={"text": "next"}).status_code == 200
        assert held.texts == ["first", "second", "next"]
        assert [record.text for record in service.records()] == ["first", "second", "next"]


def test_a_deadline_of_a_millisecond_is_no_way_to_make_an_idle_service_fail(running_once: Running) -> None:
    """No input alone may be answered 5xx."""
    for body in ({"text": "parcel"}, {"texts": ["parcel"] * 100}):
        assert running_once.http.post("/predict", json=body, headers={"x-request-timeout-ms": "1"}).status_code == 200


def test_a_deadline_of_the_service_holds_without_the_header(start: Start, classifier: Classifier) -> None:
    held = Held(classifier)
    with start(held, deadline_s=0.2) as service:
        assert service.http.post("/predict", json={"text": "late"}).json()["code"] == "deadline_passed"
        held.let_go.set()


def fill_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the log's records; pipes and sockets go on."""
    write = os.write

    def full(handle: int, data: bytes) -> int:
        return write(handle, data[:40]) if data.startswith(b'{"schema_version"') else write(handle, data)

    monkeypatch.setattr(os, "write", full)


@pytest.mark.parametrize("level", ["none", "process", "host", "remote"])
def test_an_answer_names_the_level_of_its_records(level: str, start: Start) -> None:
    with start(durability=level) as service:
        answered = service.http.post("/predict", json={"text": "parcel"})
        said = {"prediction_id": answered.json()["prediction_id"], "label": "refund", "source": "agent"}
        assert answered.headers["x-log-durability"] == level
        assert service.http.post("/feedback", json=said).headers["x-log-durability"] == level
        assert "x-log-durability" not in service.http.post("/explain", json={"text": "parcel"}).headers


def test_an_answer_says_that_only_a_share_is_written_down(start: Start) -> None:
    with start(sample=0.25) as service:
        assert service.http.post("/predict", json={"text": "parcel"}).headers["x-log-durability"] == "process; sample=0.25"


def test_a_dropped_record_is_counted_and_its_answer_says_so(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    with start(spool_full="drop") as service:
        with monkeypatch.context() as disk:
            fill_disk(disk)
            dropped = service.http.post("/predict", json={"texts": ["parcel", "refund"]})
        assert (dropped.status_code, dropped.headers["x-log-durability"]) == (200, "none")
        assert service.http.post("/predict", json={"text": "parcel"}).headers["x-log-durability"] == "process"
        assert "pigeonhole_log_dropped_total 2.0" in service.http.get("/metrics").text
        assert len(service.records()) == 1


def test_who_asks_again_is_told_the_level_that_the_first_answer_was_given_at(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start(spool_full="drop", sample=1.0) as service:
        first: dict[str, Any] = {"json": {"text": "parcel"}, "headers": {"idempotency-key": "k-1"}}
        second: dict[str, Any] = {**first, "headers": {"idempotency-key": "k-2"}}
        with monkeypatch.context() as disk:
            fill_disk(disk)
            dropped = service.http.post("/predict", **first)
        kept = service.http.post("/predict", **second)
        for answered, asked, level in ((dropped, first, "none"), (kept, second, "process")):
            again = service.http.post("/predict", **asked)
            assert (again.content, again.headers["x-log-durability"]) == (answered.content, level)


def test_a_prediction_that_cannot_be_written_down_is_not_given_out(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as disk:
        fill_disk(disk)
        refused = running.http.post("/predict", json={"text": "parcel"})
    assert (refused.status_code, refused.json()["code"], refused.headers["retry-after"]) == (503, "not_recorded", "1")
    assert running.http.post("/predict", json={"text": "refund"}).status_code == 200
    assert [record.text for record in running.records()] == ["refund"]


class Poisoned(Held):
    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        found = super().predict(texts)
        if "poison" in texts:
            raise RuntimeError("a stack that no caller may see")
        return found


def test_one_bad_text_does_not_fail_the_others_of_its_batch(start: Start, classifier: Classifier) -> None:
    poisoned = Poisoned(classifier)
    with start(poisoned) as service, ThreadPoolExecutor(8) as pool:
        first = pool.submit(service.http.post, "/predict", json={"text": "first"})
        assert poisoned.entered.wait(60)
        texts = ["one", "two", "poison", "three"]
        others = [pool.submit(service.http.post, "/predict", json={"text": text}) for text in texts]
        wait_until(lambda: samples(service)["pigeonhole_waiting_texts{}"] == 4)
        poisoned.let_go.set()
        assert [other.result().status_code for other in [first, *others]] == [200, 200, 200, 500, 200]
        assert "stack" not in others[2].result().text
        assert others[2].result().json()["code"] == "internal_error"
        assert sorted(record.text or "" for record in service.records()) == ["first", "one", "three", "two"]


def test_a_model_that_gives_no_number_is_an_error_and_not_an_answer(
    start: Start, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def run(self, _: object, inputs: dict[str, np.ndarray[tuple[int, int], np.dtype[np.int64]]], __: object) -> list[object]:
            rows = len(inputs["input_ids"])
            return [np.full((rows, 3), np.nan, np.float32), np.zeros((rows, 3), np.float32)]

    session = classifier._session
    monkeypatch.setattr(classifier, "_session", Broken())
    with start(classifier) as service:
        for ready in (200, 200, 503):
            refused = service.http.post("/predict", json={"text": "parcel"})
            assert (refused.status_code, refused.json()["code"]) == (500, "no_usable_answer")
            assert service.http.get("/ready").status_code == ready
            assert service.http.get("/health").status_code == 200
        assert service.records() == []
        assert "pigeonhole_model_failures_total 3.0" in service.http.get("/metrics").text
        monkeypatch.setattr(classifier, "_session", session)
        assert service.http.post("/predict", json={"text": "parcel"}).status_code == 200
        assert service.http.get("/ready").status_code == 200
    assert WEIGHTS[WORDS.index("parcel"), 1] == 4


class Deadly(Held):
    """Dies of one word, as a bug below Python's exceptions would have it."""

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        if "die" in texts:
            assert self.let_go.wait(60)
            raise SystemExit(len(texts))
        return super().predict(texts)


def test_a_dead_worker_fails_all_who_wait_at_once_and_is_replaced(start: Start, classifier: Classifier) -> None:
    deadly = Deadly(classifier)
    with start(deadly, max_waiting=256) as service, ThreadPoolExecutor(4) as pool:
        first = pool.submit(service.http.post, "/predict", json={"text": "parcel"})
        assert deadly.entered.wait(60)
        others = []
        for text, waiting in (("die", 32), ("is my parcel", 64)):
            others.append(pool.submit(service.http.post, "/predict", json={"texts": [text] * 32}))
            wait_until(lambda waiting=waiting: samples(service)["pigeonhole_waiting_texts{}"] == waiting)  # type: ignore[misc]
        deadly.let_go.set()
        assert first.result().status_code == 200
        refused = [other.result() for other in others]
        assert [(answer.status_code, answer.json()["code"]) for answer in refused] == [(503, "worker_died")] * 2
        assert refused[0].headers["retry-after"] == "1"
        assert service.http.get("/health").json()["code"] == "not_alive"
        assert service.http.get("/ready").json()["code"] == "not_ready"
        assert service.http.post("/predict", json={"text": "parcel"}).json()["code"] == "worker_died"
        wait_until(lambda: service.http.get("/health").status_code == 200)
        assert service.http.post("/predict", json={"text": "parcel"}).status_code == 200
        assert service.http.get("/ready").status_code == 200
        assert "pigeonhole_worker_deaths_total 1.0" in service.http.get("/metrics").text
        assert samples(service)["pigeonhole_waiting_texts{}"] == 0


def test_a_worker_that_hangs_is_no_life(start: Start, classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pigeonhole.serving.batcher.STUCK_S", 0.1)
    held, rings = Held(classifier), "pigeonhole_event_loop_stall_seconds_count{}"
    told: list[bool] = []
    with start(held, tell=lambda: told.append(True)) as service, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(service.http.post, "/predict", json={"text": "parcel"})
        assert held.entered.wait(60)
        time.sleep(0.2)
        assert service.http.get("/health").json()["code"] == "not_alive"
        before, rung = len(told), samples(service)[rings]
        wait_until(lambda: samples(service)[rings] > rung + 3)
        assert len(told) == before > 0  # of several workers, the parent hears no more of this one
        held.let_go.set()
        assert waiting.result().status_code == 200
        assert service.http.get("/health").status_code == 200
        wait_until(lambda: len(told) > before)


def test_clients_that_leave_in_the_middle_hurt_nobody(running: Running) -> None:
    body = json.dumps({"text": "parcel"})
    head = f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    for length in (10, len(head), len(head) + 5, len(head + body)):
        for _ in range(10):
            running.raw((head + body)[:length].encode(), patience_s=0.001)
    assert running.http.post("/predict", json={"text": "refund"}).status_code == 200
    texts = [record.text for record in running.records()]
    assert texts.count("refund") == 1
    assert texts.count("parcel") <= 10
    assert "pigeonhole_in_flight 1.0" in running.http.get("/metrics").text
