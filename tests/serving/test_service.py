"""What the routes do with one another: feedback for a prediction, the same request twice, the names that others use."""

import datetime as dt
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.serving.conftest import Running, Start, make_bundle

from pigeonhole.bundle import Windowing, open_bundle
from pigeonhole.classifier import Classifier, Prediction
from pigeonhole.prediction_log import Feedback, new_id, read_window
from pigeonhole.serving.batcher import BATCH_TEXTS


def feedback_of(service: Running) -> Sequence[Feedback]:
    now = dt.datetime.now(dt.UTC)
    return list(read_window(str(service.log), now - dt.timedelta(hours=2), now + dt.timedelta(hours=1), "feedback"))


def test_a_partial_answer_tells_what_is_wrong_with_each_text_and_answers_the_others(running: Running) -> None:
    texts = ["parcel", " ", "refund", "zebra" * 2000, "invoice"]
    answer = running.http.post("/predict", json={"texts": texts, "partial": True, "top_k": 1})
    assert answer.status_code == 200
    assert [found and found["label"] for found in answer.json()["predictions"]] == ["delivery", None, "refund", None, "billing"]
    assert answer.json()["errors"] == [
        {"index": 1, "code": "blank_text", "detail": "texts[1] is blank"},
        {"index": 3, "code": "text_too_long", "detail": "texts[3] has more than 8192 characters"},
    ]
    assert [record.text for record in running.records()] == ["parcel", "refund", "invoice"]
    assert running.http.post("/predict", json={"texts": ["parcel"], "partial": True}).json()["errors"] == []


def test_a_refusal_tells_of_every_text_that_is_wrong_up_to_a_limit(running_once: Running) -> None:
    refused = running_once.http.post("/predict", json={"texts": ["parcel", "", "refund", " "]})
    assert (refused.status_code, refused.json()["code"], refused.json()["detail"]) == (422, "blank_text", "texts[1] is blank")
    assert [(error["index"], error["code"]) for error in refused.json()["errors"]] == [(1, "blank_text"), (3, "blank_text")]
    none_good = running_once.http.post("/predict", json={"texts": [""] * 256, "partial": True})
    assert (none_good.status_code, len(none_good.json()["errors"])) == (422, 16)
    assert len(none_good.content) <= 4096
    assert "errors" not in running_once.http.post("/predict", json={"text": ""}).json()


def test_feedback_is_in_the_log_once_however_often_it_is_sent(running: Running) -> None:
    prediction_id = running.http.post("/predict", json={"text": "parcel"}).json()["prediction_id"]
    given = {"prediction_id": prediction_id, "label": "refund", "source": "agent"}
    first, again = (running.http.post("/feedback", json=given) for _ in range(2))
    assert first.status_code == 200
    assert first.json() == again.json() == {"feedback_id": first.json()["feedback_id"], **given}
    other = running.http.post("/feedback", json={**given, "source": "second-agent"}).json()
    assert other["feedback_id"] != first.json()["feedback_id"]
    found = [(each.feedback_id, each.prediction_id, each.label, each.source) for each in feedback_of(running)]
    assert found == [(each["feedback_id"], prediction_id, "refund", each["source"]) for each in (first.json(), other)]
    assert 'pigeonhole_feedback_total{label="refund"} 2.0' in running.http.get("/metrics").text


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"label": "zebra"}, "unknown_label"),
        ({"label": ""}, "invalid_request"),
        ({"label": None}, "invalid_request"),
        ({"prediction_id": "zebra"}, "invalid_request"),
        ({"prediction_id": "019CA92D-8A00-7000-8000-000000000001"}, "invalid_request"),
        ({"source": "a b"}, "invalid_request"),
        ({"source": "a" * 65}, "invalid_request"),
        ({"zebra": 1}, "invalid_request"),
    ],
)
def test_feedback_that_cannot_be_meant_is_refused(running_once: Running, changed: dict[str, object], code: str) -> None:
    given = {"prediction_id": new_id(), "label": "refund", "source": "agent", **changed}
    refused = running_once.http.post("/feedback", json=given)
    assert (refused.status_code, refused.json()["code"]) == (422, code)
    assert "zebra" not in refused.text


def test_feedback_that_cannot_be_written_is_not_acknowledged_and_may_be_sent_again(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int, data: bytes) -> int:
        return write(handle, data[:40]) if b'"feedback_id"' in data and data.startswith(b'{"schema') else write(handle, data)

    given = {"prediction_id": new_id(), "label": "refund", "source": "agent"}
    write = os.write
    with monkeypatch.context() as disk:
        disk.setattr(os, "write", full)
        refused = running.http.post("/feedback", json=given)
    assert (refused.status_code, refused.json()["code"]) == (503, "not_recorded")
    assert running.http.post("/feedback", json=given).status_code == 200
    assert len(feedback_of(running)) == 1


def test_the_same_key_and_body_give_the_same_prediction(running: Running) -> None:
    def ask(_: int) -> dict[str, object]:
        found: dict[str, object] = running.http.post(
            "/predict", json={"text": "parcel"}, headers={"idempotency-key": "k-1"}
        ).json()
        return found

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(20)))
    assert all(answer == answers[0] for answer in answers)
    assert [record.prediction_id for record in running.records()] == [answers[0]["prediction_id"]]
    other = running.http.post("/predict", json={"text": "refund"}, headers={"idempotency-key": "k-1"})
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert running.http.post("/predict", json={"text": "refund"}, headers={"idempotency-key": "k-2"}).status_code == 200
    odd = running.http.post("/predict", json={"text": "refund"}, headers={"idempotency-key": "a b"})
    assert (odd.status_code, odd.json()["code"]) == (400, "invalid_header")


def test_every_route_has_its_name_under_v1_too(running: Running) -> None:
    answer = running.http.post("/v1/predict", json={"text": "parcel"}).json()
    given = {"prediction_id": answer["prediction_id"], "label": "delivery", "source": "agent"}
    assert running.http.post("/v1/feedback", json=given).status_code == 200
    assert running.http.post("/v1/explain", json={"text": "parcel"}).status_code == 200
    for path in ("model", "health", "ready", "metrics", "docs", "openapi.json"):
        assert running.http.get(f"/v1/{path}").status_code == 200
    assert 'pigeonhole_requests_total{code="200",route="/predict"} 1.0' in running.http.get("/metrics").text


def test_every_path_of_a_route_is_counted_as_one_whatever_the_answer(running: Running) -> None:
    for path in ("/predict/batch", "/v1/predict/batch"):
        assert running.http.post(path, json={"text": "a"}).status_code == 200
        assert running.http.get(path).status_code == 405
    metrics = running.http.get("/metrics").text
    for code in (200, 405):
        assert f'pigeonhole_requests_total{{code="{code}",route="/predict"}} 2.0' in metrics


def test_vertex_ai_asks_in_its_own_shape_by_its_own_paths(start: Start) -> None:
    routes = {"predict_route": "/v1/endpoints/7/deployedModels/8:predict", "health_route": "/v1/endpoints/7/deployedModels/8"}
    with start(**routes) as service:
        assert service.http.get(routes["health_route"]).json()["status"] == "ready"
        body = {"instances": [{"text": "my parcel"}, "refund"], "parameters": {"top_k": 1}}
        answer = service.http.post(routes["predict_route"], json=body).json()
        assert [found["label"] for found in answer["predictions"]] == ["delivery", "refund"]
        assert [list(found["probabilities"]) for found in answer["predictions"]] == [["delivery"], ["refund"]]
        assert answer["model_version"] == "20260301-120000"
        assert [record.text for record in service.records()] == ["my parcel", "refund"]
        blank = service.http.post(routes["predict_route"], json={"instances": ["a", {"text": " "}]})
        assert blank.json()["detail"] == "instances[1] is blank"
        metrics = service.http.get("/metrics").text
        assert 'pigeonhole_requests_total{code="200",route="/predict"} 1.0' in metrics  # whose alerts are for it as well
        assert 'pigeonhole_requests_total{code="200",route="/ready"} 1.0' in metrics
        assert "deployedModels" not in metrics
        misspelt = service.http.post("/predict", json={"instances": ["a"], "top_k": 1})
        assert misspelt.json()["detail"] == "unknown field; allowed beside instances is parameters.top_k"


def test_a_batch_holds_no_more_windows_than_it_may_hold_texts(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bundle(tmp_path / "long", max_length=8, windowing=Windowing(rule="mean", overlap=2, most=50))
    batches: list[int] = []
    predict = Classifier.predict

    def count(classifier: Classifier, texts: Sequence[str]) -> list[Prediction]:
        batches.append(sum(len(encoding.windows) for encoding in classifier._encoder.encode(texts)))
        return predict(classifier, texts)

    opened = Classifier.open(open_bundle(str(tmp_path / "long")))
    monkeypatch.setattr(Classifier, "predict", count)
    with start(opened) as running:
        texts = ["parcel " * 60] * 8 + ["parcel"] * 8
        answered = running.http.post("/predict", json={"texts": texts}).json()
    assert [each["label"] for each in answered["predictions"]] == ["delivery"] * 16
    assert len(running.records()) == 16
    assert max(batches) <= BATCH_TEXTS
