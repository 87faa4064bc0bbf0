import json
import os
import re
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tests.serving.conftest import LABELS, WEIGHTS, WORDS, Running, Start


def probabilities_of(text: str) -> dict[str, float]:
    """What the tiny model has to answer, by its formula: the mean of the words' weights, softmax at temperature 0.5."""
    ids = [2, *(WORDS.index(word) if word in WORDS else 1 for word in text.split()), 3]
    powers = np.exp(WEIGHTS[ids].mean(axis=0) / 0.5)
    return dict(zip(LABELS, (powers / powers.sum()).tolist(), strict=True))


def test_one_text_is_answered_with_all_that_a_caller_may_want(running: Running) -> None:
    answer = running.http.post("/predict", json={"text": "where is my parcel"}).json()
    expected = probabilities_of("where is my parcel")
    assert answer["label"] == "delivery"
    assert answer["probabilities"] == pytest.approx(expected)
    assert answer["score"] == pytest.approx(max(expected.values()))
    assert next(iter(answer["probabilities"])) == "delivery"
    assert (answer["model"], answer["model_version"]) == ("words", "20260301-120000")
    assert (answer["decision"], answer["truncated"], answer["n_tokens"]) == ("accept", False, 6)
    assert uuid.UUID(answer["prediction_id"]).version == 7


def test_an_unsure_answer_goes_to_review(running_once: Running) -> None:
    answer = running_once.http.post("/predict", json={"text": "where is it"}).json()
    assert answer["decision"] == "review"


def test_many_texts_are_answered_in_their_order(running: Running) -> None:
    texts = [WORDS[9 + number % 3] + " my" * number for number in range(100)]
    answer = running.http.post("/predict", json={"texts": texts}).json()
    assert [found["label"] for found in answer["predictions"]] == [LABELS[number % 3] for number in range(100)]
    for text, found in zip(texts, answer["predictions"], strict=True):
        assert found["probabilities"] == pytest.approx(probabilities_of(text))
    assert answer["model_version"] == "20260301-120000"
    assert [record.text for record in running.records()] == texts
    assert [record.prediction_id for record in running.records()] == [found["prediction_id"] for found in answer["predictions"]]


def test_hugging_faces_shape_gets_hugging_faces_nested_reply(running_once: Running) -> None:
    one = running_once.http.post("/predict", json={"inputs": "my parcel"}).json()
    many = running_once.http.post("/predict", json={"inputs": ["my parcel", "invoice"], "parameters": {"top_k": 2}}).json()
    assert [[row["label"] for row in rows] for rows in one] == [["delivery", "billing", "refund"]]
    assert [len(rows) for rows in many] == [2, 2]
    assert many[1][0]["label"] == "billing"
    assert many[0][0]["score"] == pytest.approx(probabilities_of("my parcel")["delivery"])


def test_top_k_keeps_the_likeliest_labels(running_once: Running) -> None:
    for top_k, expected in ((1, 1), (2, 2), (99, 3)):
        answer = running_once.http.post("/predict", json={"text": "refund", "top_k": top_k}).json()
        assert len(answer["probabilities"]) == expected
        assert next(iter(answer["probabilities"])) == "refund"


def test_composed_and_decomposed_accents_and_special_tokens_are_the_same_text(running_once: Running) -> None:
    def answer(text: str) -> dict[str, object]:
        found = running_once.http.post("/predict", json={"text": text}).json()
        return {key: found[key] for key in ("label", "probabilities", "n_tokens")}

    assert answer("cafe\u0301 parcel") == answer("caf\u00e9 parcel")
    assert answer("parcel [SEP]") == answer("parcel [ sep ]")
    assert answer("parcel [SEP]")["n_tokens"] == 6


def test_the_record_is_there_before_the_answer(running: Running) -> None:
    for number in range(20):
        answer = running.http.post("/predict", json={"text": f"parcel {number}"}).json()
        (record,) = [record for record in running.records() if record.prediction_id == answer["prediction_id"]]
        assert record.text == f"parcel {number}"
        assert record.probabilities == {label: round(found, 6) for label, found in answer["probabilities"].items()}
        assert (record.label, record.score, record.decision) == (answer["label"], answer["score"], answer["decision"])
        assert (record.model, record.version) == (answer["model"], answer["model_version"])
        assert record.request_id == answer["request_id"]


def test_hostile_texts_are_one_record_each_and_forge_none(running: Running) -> None:
    texts = ['hi\n{"prediction_id":"forged","label":"x"}', "a\u2028b\u2029c\u0085d", "\u001b[31m", '"} 1\nevil_metric 1']
    for text in texts:
        assert running.http.post("/predict", json={"text": text}).status_code == 200
    assert [record.text for record in running.records()] == texts
    assert "evil_metric" not in running.http.get("/metrics").text


def test_many_clients_at_once_get_their_own_answers_and_lose_no_record(running: Running) -> None:
    def ask(number: int) -> tuple[str, str]:
        answer = running.http.post("/predict", json={"text": f"{WORDS[9 + number % 3]} {number}"}).json()
        assert answer["label"] == LABELS[number % 3]
        return answer["prediction_id"], f"{WORDS[9 + number % 3]} {number}"

    with ThreadPoolExecutor(16) as pool:
        answered = dict(pool.map(ask, range(300)))
    assert {record.prediction_id: record.text for record in running.records()} == answered
    assert len(running.records()) == 300


@pytest.mark.parametrize(
    ("given", "kept"), [("abc-1.2_Z", True), ("a" * 64, True), ("a" * 65, False), ("a b", False), ("é", False)]
)
def test_a_request_id_is_echoed_if_it_is_harmless(running_once: Running, given: str, kept: bool) -> None:
    answer = running_once.http.post("/predict", json={"text": "a"}, headers=[(b"x-request-id", given.encode())])
    assert answer.headers["x-request-id"] == answer.json()["request_id"]
    assert (answer.json()["request_id"] == given) is kept


def test_a_refusal_names_the_field_and_the_limit(running_once: Running) -> None:
    def detail(body: object) -> str:
        return str(running_once.http.post("/predict", json=body).json()["detail"])

    assert detail({"texts": ["a", " "]}) == "texts[1] is blank"
    assert detail({"texts": ["a", "a" * 8193]}) == "texts[1] has more than 8192 characters"
    assert detail({"texts": ["a"], "patrial": True}) == "unknown field; allowed beside texts is top_k and partial"
    assert detail({"texts": ["a", None]}) == "Expected `str`, got `null` - at `texts[1]`"
    assert detail({"text": "a" * 8193}) == "Expected `str` of length <= 8192 - at `text`"
    assert detail({"text": ["a", "b"]}) == "text is one text; several go into texts"
    assert detail({"texts": "a"}) == "texts is a list of texts; a single one goes into text"
    assert detail({"text": "a", "treshold": 1}) == "unknown field; allowed beside text is top_k"
    assert detail({"inputs": "a", "parameters": {"k": 1}}) == "unknown field; allowed beside inputs is parameters.top_k"
    assert detail({"sentence": "a"}) == "exactly one of the fields text, texts, inputs, instances is needed, in a JSON object"


def test_where_the_method_is_wrong_the_answer_says_which_is_right(running_once: Running) -> None:
    answer = running_once.http.get("/predict")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert (answer.json()["code"], answer.json()["detail"]) == ("method_not_allowed", "allowed here is POST")
    assert "/predict" in running_once.http.get("/nope").json()["detail"]


def test_the_model_page_tells_what_answers(running_once: Running) -> None:
    about = running_once.http.get("/model").json()
    assert about["labels"] == list(LABELS)
    assert about["metrics"] == {"test": {"accuracy": 0.9}}
    assert about["precision"] == "fp32"
    assert about["limits"] == {"characters": 8192, "texts": 256, "body_bytes": 1048576}


def test_the_first_page_leads_to_pages_that_are_there(running_once: Running) -> None:
    links = running_once.http.get("/").json()
    for post in ("predict", "explain", "feedback"):
        assert running_once.http.get(links.pop(post)).status_code == 405
    assert {running_once.http.get(link).status_code for link in links.values()} == {200}


def test_liveness_and_readiness_are_told_apart_from_work(running_once: Running) -> None:
    assert running_once.http.get("/health").json() == {"status": "ok"}
    assert running_once.http.get("/ready").json() == {"status": "ready", "model": "words", "model_version": "20260301-120000"}


def test_what_the_log_keeps_of_a_text_is_a_setting(start: Start) -> None:
    with start(text_policy="hash", text_key="secret") as service:
        service.http.post("/predict", json={"texts": ["parcel", "parcel", "refund"]})
        texts = [record.text or "" for record in service.records()]
    assert texts[0] == texts[1] != texts[2]
    assert all(re.fullmatch("hmac-sha256:[0-9a-f]{64}", text) for text in texts)
    with start(text_policy="none") as service:
        service.http.post("/predict", json={"text": "parcel"})
        assert service.records()[-1].text is None
        assert service.records()[-1].features.n_words == 1
    assert b"parcel" not in b"".join(path.read_bytes() for path in service.log.rglob("*") if path.is_file())


def test_the_app_imports_nothing_of_training_and_nothing_that_its_first_answer_can_do_without() -> None:
    program = "import json, sys, pigeonhole.serving.app, pigeonhole.serving.server; print(json.dumps(sorted(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ)
    modules = set(json.loads(found.stdout))
    loaded = {name.partition(".")[0] for name in modules}
    heavy = {"torch", "transformers", "datasets", "hydra", "omegaconf", "pandas", "pyarrow", "sklearn", "matplotlib", "wandb"}
    assert loaded & heavy == set()
    assert "fsspec" not in loaded  # a local log never pays for a cloud's client
    assert modules & {"fastapi", "importlib.metadata", "importlib.resources"} == set()
