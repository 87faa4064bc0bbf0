"""What becomes of the words on predictions."""

import asyncio
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from tests.serving.conftest import Running, Start

from pigeonhole.classifier import Classifier
from pigeonhole.errors import LogError
from pigeonhole.prediction_log import LogWriter, moment_of, new_id, read_window
from pigeonhole.prediction_log.spool import Appended, Spool
from pigeonhole.serving import feedback
from pigeonhole.serving.feedback import FeedbackDesk
from pigeonhole.serving.replies import Replies
from pigeonhole.serving.schemas import FeedbackRequest
from pigeonhole.serving.telemetry import Telemetry


def outcomes(service: Running) -> dict[str, int]:
    line = r'^pigeonhole_feedback_outcomes_total\{outcome="(\w+)"\} (\S+)$'
    found = re.findall(line, service.http.get("/metrics").text, re.MULTILINE)
    return {name: int(float(count)) for name, count in found if float(count)}


def say(service: Running, prediction_id: str, label: str, source: str = "agent") -> str:
    answered = service.http.post("/feedback", json={"prediction_id": prediction_id, "label": label, "source": source})
    assert answered.status_code == 200
    return str(answered.json()["feedback_id"])


def logged(service: Running) -> list[str]:
    now = datetime.now(UTC)
    window = read_window(str(service.log), now - timedelta(hours=1), now + timedelta(hours=1), "feedback")
    return [word.label for word in sorted(window, key=lambda word: word.at)]


def test_who_changes_their_mind_and_changes_it_back_is_written_down_each_time_and_who_repeats_is_not(running: Running) -> None:
    prediction_id = running.http.post("/predict", json={"text": "parcel"}).json()["prediction_id"]
    ids = [say(running, prediction_id, label) for label in ("refund", "refund", "billing", "refund", "refund")]
    assert ids[0] == ids[1]
    assert ids[3] == ids[4]
    assert len(set(ids)) == 3
    assert logged(running) == ["refund", "billing", "refund"]
    assert outcomes(running) == {"new": 1, "repeated": 2, "changed": 2}


def test_who_repeats_it_after_the_reply_was_forgotten_is_written_down_no_more(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pigeonhole.serving.service.Replies", lambda: Replies(keep_s=0.0))
    with start() as running:
        prediction_id = new_id()
        assert say(running, prediction_id, "refund") == say(running, prediction_id, "refund")
        assert outcomes(running) == {"new": 1, "repeated": 1}
        assert 'pigeonhole_feedback_total{label="refund"} 1.0' in running.http.get("/metrics").text
        window = read_window(str(running.log), datetime.now(UTC) - timedelta(hours=1), datetime.now(UTC), "feedback")
        assert (len(list(window)), window.counts.duplicates) == (1, 0)


def test_two_sources_have_a_word_each(running: Running) -> None:
    prediction_id = new_id()
    say(running, prediction_id, "refund", "agent")
    say(running, prediction_id, "billing", "review")
    assert sorted(logged(running)) == ["billing", "refund"]
    assert outcomes(running) == {"new": 2}


@pytest.mark.parametrize("labels", [[], ["billing", "refund"]])
def test_of_a_model_that_gives_one_label_no_other_number_is_right(running: Running, labels: list[str]) -> None:
    """A harvest would make rows of them that no training of such a model reads."""
    prediction_id = running.http.post("/predict", json={"text": "parcel"}).json()["prediction_id"]
    answered = running.http.post("/feedback", json={"prediction_id": prediction_id, "labels": labels, "source": "agent"})
    assert (answered.status_code, answered.json()["code"]) == (422, "invalid_request")
    assert "a text has one here" in answered.json()["detail"]
    only = running.http.post("/feedback", json={"prediction_id": prediction_id, "labels": ["refund"], "source": "agent"})
    assert only.status_code == 200
    assert len(logged(running)) == 1


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("prediction_id", "zebra", "Expected the `prediction_id` of an answer - at `prediction_id`"),
        ("source", "zebra crossing", "Expected 1 to 64 letters, digits, '.', '_' and '-' - at `source`"),
    ],
)
def test_what_has_a_form_is_told_in_words(running: Running, field: str, value: str, said: str) -> None:
    body = {"prediction_id": new_id(), "label": "refund", "source": "agent", field: value}
    answered = running.http.post("/feedback", json=body)
    assert (answered.status_code, answered.json()["detail"]) == (422, said)


def id_of(at: datetime) -> str:
    milliseconds = f"{int(at.timestamp() * 1000):012x}"
    return f"{milliseconds[:8]}-{milliseconds[8:]}-7000-8000-000000000001"


def test_a_late_word_is_taken_and_counted(running: Running) -> None:
    long_ago = id_of(datetime.now(UTC) - timedelta(days=40))
    for label in ("refund", "refund", "billing"):  # the second says nothing new, and is not late either
        say(running, long_ago, label)
    assert outcomes(running) == {"new": 1, "repeated": 1, "changed": 1, "late": 2}


def test_an_id_from_the_future_is_refused_but_for_a_clock_that_is_a_day_ahead(running: Running) -> None:
    ahead, beyond = (id_of(datetime.now(UTC) + timedelta(hours=hours)) for hours in (23, 25))
    say(running, ahead, "refund")
    refused = running.http.post("/feedback", json={"prediction_id": beyond, "label": "refund", "source": "agent"})
    assert (refused.status_code, refused.json()["code"]) == (422, "unknown_prediction")
    assert outcomes(running) == {"new": 1, "unknown_prediction": 1}


@pytest.mark.parametrize("wrong", [{"source": "agent\n"}, {"source": "a gent"}, {"prediction_id": new_id() + "\n"}])
def test_a_line_break_at_the_end_is_no_part_of_an_id_or_of_a_source(running_once: Running, wrong: dict[str, str]) -> None:
    body = {"prediction_id": new_id(), "label": "refund", "source": "agent"} | wrong
    assert running_once.http.post("/feedback", json=body).status_code == 422


@pytest.mark.parametrize("text", ["", "no id", "019ca92d-8a00-4000-8000-000000000001"])
def test_only_an_id_of_ours_has_a_moment(text: str) -> None:
    assert moment_of(text) is None
    assert abs((moment_of(new_id()) or datetime.min.replace(tzinfo=UTC)) - datetime.now(UTC)) < timedelta(minutes=1)


def test_a_word_that_was_dropped_is_written_down_when_it_is_repeated(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Spool.append
    full = [True]

    def fail(spool: Spool, lines: Sequence[bytes]) -> Appended:
        if full[0]:
            raise LogError("the disk is full")
        return write(spool, lines)

    monkeypatch.setattr(Spool, "append", fail)
    with start(spool_full="drop") as running:
        given = {"prediction_id": new_id(), "label": "refund", "source": "agent"}
        levels, ids = [], []
        for full[0] in (True, True, False, False):
            answered = running.http.post("/feedback", json=given)
            levels.append(answered.headers["x-log-durability"])
            ids.append(answered.json()["feedback_id"])
        assert levels == ["none", "none", "process", "process"]
        assert len(set(ids)) == 1
        assert logged(running) == ["refund"]
        assert outcomes(running) == {"new": 3, "repeated": 1}
        assert 'pigeonhole_feedback_total{label="refund"} 1.0' in running.http.get("/metrics").text


def test_only_the_latest_words_are_remembered(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedback, "REMEMBERED", 2)
    with start() as running:
        first, *others = [new_id() for _ in range(3)]
        for prediction_id in (first, others[0], first, others[1], first, others[0]):
            say(running, prediction_id, "refund")
        assert outcomes(running) == {"new": 4, "repeated": 2}  # the first was spoken of again in time


def test_a_version_with_one_label_leaves_the_predictions_before_it_their_several(classifier: Classifier, tmp_path: Path) -> None:
    one = classifier.manifest
    several = msgspec.structs.replace(one, task="multi_label", accept_score=0.4)
    given = FeedbackRequest(prediction_id=new_id(), labels=["billing", "refund"], source="agent")
    with LogWriter(str(tmp_path / "log"), "feedback") as log:
        desk = FeedbackDesk(several, log, Replies(), Telemetry(several, log.backlog))
        desk.add(one)
        assert json.loads(asyncio.run(desk.take(given)))["labels"] == ["billing", "refund"]
