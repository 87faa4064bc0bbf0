import json
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from frontend.batch import CHUNK, BatchJob
from frontend.client import Down, Refused, Service, Timed


class Scripted(Service):
    """The client, with its last step replaced: no network, so that a failure comes when the test wants it."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:9")
        self.chunks: list[list[str]] = []
        self.failures: list[Exception] = []
        self.gate = threading.Event()
        self.gate.set()

    def predict_many(self, texts: Sequence[str]) -> Timed:
        assert self.gate.wait(10)
        if self.failures:
            raise self.failures.pop(0)
        self.chunks.append(list(texts))
        answers = [{"label": text[:1], "score": 0.5, "decision": "review", "truncated": "long" in text} for text in texts]
        return Timed({"predictions": answers, "model_version": "7"}, 0.0)


@pytest.fixture
def service() -> Iterator[Scripted]:
    made = Scripted()
    yield made
    made.close()


def finished(job: BatchJob) -> BatchJob:
    assert job.wait(30)
    return job


def test_every_text_has_its_row_in_the_order_of_the_file(service: Scripted) -> None:
    texts = [f"{number % 10} text" for number in range(2 * CHUNK + 3)]
    job = finished(BatchJob(service, texts, 100))
    assert job.results()["label"].tolist() == [text[0] for text in texts]
    assert [len(chunk) for chunk in service.chunks] == [CHUNK, CHUNK, 3]
    assert (job.finished, job.done, job.error, job.model_version) == (True, len(texts), "", "7")


def test_long_texts_are_asked_in_bodies_that_the_service_takes(service: Scripted) -> None:
    texts = [f"{letter}" * 8192 for letter in "aü中" for _ in range(CHUNK)]
    job = finished(BatchJob(service, texts, 8192))
    assert job.results()["label"].tolist() == [text[0] for text in texts]
    assert max(len(json.dumps({"texts": chunk, "top_k": 1})) for chunk in service.chunks) <= 1 << 20
    assert [text for chunk in service.chunks for text in chunk] == texts


def test_what_cannot_be_asked_is_a_row_with_a_note(service: Scripted) -> None:
    job = finished(BatchJob(service, ["a", " ", "c" * 30, "d long"], 10))
    assert job.results()["note"].tolist() == ["", "blank", "cut", "cut"]
    assert service.chunks == [["a", "c" * 10, "d long"]]


def test_a_chunk_of_blanks_is_not_asked(service: Scripted) -> None:
    assert finished(BatchJob(service, [""] * 3, 10)).done == 3
    assert service.chunks == []


def test_cancel_keeps_what_is_done(service: Scripted) -> None:
    service.gate.clear()
    job = BatchJob(service, ["a"] * 3 * CHUNK, 10)
    job.cancel()
    service.gate.set()
    finished(job)
    assert job.cancelled
    assert job.done == len(job.results()) <= CHUNK


def test_a_job_that_nobody_watches_asks_nothing_more_and_ends(service: Scripted) -> None:
    """A closed tab: whoever opens the page again is somebody new, and finds no job."""
    asked = [True, False]
    job = BatchJob(service, ["a"] * 3 * CHUNK, 10, is_watched=lambda: asked.pop(0) if asked else False, absence_s=0.2)
    assert finished(job).cancelled
    assert (job.done, len(service.chunks)) == (CHUNK, 1)


def test_a_job_whose_watcher_comes_back_in_time_goes_on_where_it_was(service: Scripted) -> None:
    asked = [True, False, False]
    job = BatchJob(service, ["a"] * 3 * CHUNK, 10, is_watched=lambda: asked.pop(0) if asked else True, absence_s=30)
    assert not finished(job).cancelled
    assert (job.done, len(service.chunks), asked) == (3 * CHUNK, 3, [])


def test_a_service_that_comes_back_is_asked_again(service: Scripted) -> None:
    service.failures = [Down("not now")]
    assert finished(BatchJob(service, ["a"], 10)).results()["label"].tolist() == ["a"]


@pytest.mark.parametrize("failure", [Refused(422, "no"), Down("away")])
def test_a_service_that_stays_away_ends_the_job_with_its_words(service: Scripted, failure: Exception) -> None:
    service.failures = [failure]
    job = finished(BatchJob(service, ["a"], 10, patience=0))
    assert job.error == str(failure)
    assert job.results().empty


@pytest.mark.parametrize("answer", [{}, {"predictions": None, "model_version": "7"}, {"predictions": [], "model_version": "7"}])
def test_an_answer_of_another_shape_ends_the_job_with_words(
    service: Scripted, answer: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "predict_many", lambda *_: Timed(answer, 0.0))
    job = finished(BatchJob(service, ["text"], 100))
    assert (job.done, job.error) == (0, "the service gave an answer that this page does not know: are both of one release?")


def test_the_time_left_follows_the_pace(service: Scripted) -> None:
    service.gate.clear()
    job = BatchJob(service, ["a"] * CHUNK, 10)
    assert job.seconds_left is None
    service.gate.set()
    assert finished(job).seconds_left == 0


def test_all_labels_of_a_text_stand_in_its_cell(service: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = {"label": "a", "labels": ["a", "b"], "score": 0.5, "decision": "accept", "truncated": False}
    monkeypatch.setattr(service, "predict_many", lambda texts: Timed({"predictions": [answer], "model_version": "7"}, 0.0))
    assert finished(BatchJob(service, ["x"], 100)).results()["label"].tolist() == ["a; b"]


def test_the_seconds_of_a_job_stand_still_once_it_has_ended(service: Scripted) -> None:
    job = finished(BatchJob(service, ["a"], 100))
    took = job.seconds
    time.sleep(0.02)
    assert job.seconds == took
