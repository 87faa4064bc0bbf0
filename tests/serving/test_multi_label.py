"""A model that may give a text several labels, or none: the words bundle, sealed as one."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np
import pytest
from tests.serving.conftest import LABELS, WEIGHTS, WORDS, Running, make_bundle, run_service

from pigeonhole.bundle import open_bundle
from pigeonhole.classifier import Classifier
from pigeonhole.client import Client
from pigeonhole.decision import to_probabilities
from pigeonhole.prediction_log import Feedback, Record, read_window
from pigeonhole.serving.settings import Settings


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    folder = tmp_path_factory.mktemp("several") / "bundle"
    make_bundle(folder, task="multi_label", thresholds=dict.fromkeys(LABELS, 0.6), accept_score=0.4)
    return Classifier.open(open_bundle(str(folder)))


@pytest.fixture(scope="module")
def service(several: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with run_service(several, tmp_path_factory.mktemp("several-log") / "log", Settings()) as running:
        yield running


def probabilities_of(*words: str) -> np.ndarray:
    """By the formula: sigmoid of the mean over [CLS], the words and [SEP], at temperature 0.5."""
    logits = sum(WEIGHTS[WORDS.index(word)] for word in words) / (len(words) + 2)
    return np.asarray(1 / (1 + np.exp(-logits.astype(np.float64) / 0.5)))


def test_each_label_is_given_by_its_own_sigmoid_and_threshold(several: Classifier) -> None:
    both, one, none = several.predict(["invoice parcel", "parcel", "where"])
    assert both.probabilities == pytest.approx(probabilities_of("invoice", "parcel"))
    assert (both.labels, one.labels, none.labels) == (("billing", "delivery"), ("delivery",), ())
    assert both.label == "billing"


def test_the_score_is_the_probability_of_exactly_these_labels_and_decides(several: Classifier) -> None:
    both, none = several.predict(["invoice parcel", "where"])
    billing, delivery, refund = probabilities_of("invoice", "parcel")
    assert both.score == pytest.approx(billing * delivery * (1 - refund))
    assert none.score == pytest.approx(0.5**3)
    assert (both.decision, none.decision) == ("accept" if both.score >= 0.4 else "review", "review")
    sure = several.predict(["invoice parcel refund"])[0]
    assert sure.score == pytest.approx(probabilities_of("invoice", "parcel", "refund").prod())
    assert (sure.labels, sure.decision) == (LABELS, "accept")


def test_a_probability_at_its_threshold_is_enough(several: Classifier) -> None:
    """Of a text that says nothing each label has one half, exactly."""
    at = msgspec.structs.replace(several.manifest, thresholds=dict.fromkeys(LABELS, 0.5), accept_score=0.125)
    found = several.under(at, None).predict(["where"])[0]
    assert (found.labels, found.score, found.decision) == (LABELS, 0.125, "accept")


def test_a_logit_without_bounds_is_a_probability_and_no_warning(several: Classifier) -> None:
    assert to_probabilities(several.manifest, np.array([-1e4, 0, 1e4], np.float32)).tolist() == [0.0, 0.5, 1.0]


def test_every_shape_tells_the_labels(service: Running) -> None:
    one = service.http.post("/predict", json={"text": "invoice parcel", "top_k": 1}).json()
    assert (one["labels"], one["label"], list(one["probabilities"])) == (["billing", "delivery"], "billing", ["billing"])
    for body in ({"texts": ["where", "parcel"]}, {"instances": ["where", {"text": "parcel"}]}):
        many = service.http.post("/predict", json=body).json()["predictions"]
        assert [answer["labels"] for answer in many] == [[], ["delivery"]]
    nested = service.http.post("/predict", json={"inputs": "invoice parcel"}).json()
    assert [row["label"] for row in nested[0]] == ["billing", "delivery", "refund"]
    assert sum(row["score"] for row in nested[0]) > 1


def test_a_single_label_model_says_nothing_of_labels(running_once: Running) -> None:
    assert "labels" not in running_once.http.post("/predict", json={"text": "parcel"}).json()
    assert all(record.labels is msgspec.UNSET for record in running_once.records())


def test_the_log_keeps_the_labels_and_the_metrics_count_each(service: Running) -> None:
    def counted(label: str) -> float:
        [line] = [
            line for line in service.http.get("/metrics").text.splitlines() if f'predictions_total{{label="{label}"' in line
        ]
        return float(line.split()[-1])

    before = [counted(label) for label in LABELS]
    asked = service.http.post("/predict", json={"text": "invoice parcel"}).json()
    [record] = [record for record in service.records() if record.prediction_id == asked["prediction_id"]]
    assert record.labels == ["billing", "delivery"]
    assert record.given == {"billing", "delivery"}
    assert [counted(label) - earlier for label, earlier in zip(LABELS, before, strict=True)] == [1, 1, 0]


def test_feedback_names_any_number_of_labels(service: Running) -> None:
    with Client(service.url) as client:
        asked = client.predict("invoice parcel")
        assert asked.labels == ["billing", "delivery"]
        first = client.feedback(asked.prediction_id, ["refund", "billing"], "agent")
        assert client.feedback(asked.prediction_id, ["billing", "refund"], "agent") == first
        assert client.feedback(asked.prediction_id, [], "agent") != first
    now = datetime.now(UTC)
    words = read_window(str(service.log), now - timedelta(hours=1), now + timedelta(hours=1), "feedback")
    said = [word.given for word in sorted(words, key=lambda word: word.at) if word.prediction_id == asked.prediction_id]
    assert said == [{"billing", "refund"}, frozenset()]


@pytest.mark.parametrize(
    ("said", "detail"),
    [
        ({}, "exactly one of the fields label, labels"),
        ({"label": "refund", "labels": []}, "exactly one of the fields label, labels"),
        ({"labels": ["refund", "refund"]}, "labels names a label twice"),
        ({"labels": ["refund", "sales"]}, "label is none of the model's labels"),
        ({"labels": "refund"}, "Expected `array`"),
    ],
)
def test_feedback_that_says_nothing_certain_is_refused(service: Running, said: dict[str, object], detail: str) -> None:
    asked = service.http.post("/predict", json={"text": "parcel"}).json()
    refused = service.http.post("/feedback", json={"prediction_id": asked["prediction_id"], "source": "agent", **said})
    assert refused.status_code == 422
    assert detail in refused.json()["detail"]


def test_a_word_weighs_what_the_label_asked_for_loses_without_it(service: Running) -> None:
    found = service.http.post("/explain", json={"text": "invoice parcel", "label": "delivery"}).json()
    whole, alone = probabilities_of("invoice", "parcel")[1], probabilities_of("invoice")[1]
    assert found["words"][1]["weight"] == pytest.approx(whole - alone)


def test_the_model_page_says_what_decides(service: Running) -> None:
    about = service.http.get("/model").json()
    assert (about["task"], about["accept_score"], about["thresholds"]["billing"]) == ("multi_label", 0.4, 0.6)


def test_a_record_of_an_earlier_release_has_one_label(service: Running) -> None:
    record = msgspec.to_builtins(service.records()[0])
    assert msgspec.convert({key: value for key, value in record.items() if key != "labels"}, Record).given == {record["label"]}
    word = {"feedback_id": "f", "at": record["at"], "prediction_id": "p", "label": "refund", "source": "agent"}
    assert msgspec.convert(word, Feedback).given == {"refund"}
