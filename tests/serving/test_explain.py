import pytest
from tests.serving.conftest import Running, Start
from tests.serving.test_app import probabilities_of

from pigeonhole.serving.explain import MAX_S, MAX_WORDS, without, words_of


def test_words_are_what_white_space_divides_and_know_their_place() -> None:
    text = " where\tis  my parcel?"
    assert [text[word.start : word.end] for word in words_of(text)] == ["where", "is", "my", "parcel?"]
    assert [without("my own parcel", word) for word in words_of("my own parcel")] == [" own parcel", "my  parcel", "my own "]


def test_a_word_weighs_what_the_label_loses_without_it(running: Running) -> None:
    answer = running.http.post("/explain", json={"text": "my parcel"}).json()
    whole = probabilities_of("my parcel")["delivery"]
    assert (answer["label"], answer["score"]) == ("delivery", pytest.approx(whole))
    assert [(word["word"], word["start"], word["end"]) for word in answer["words"]] == [("my", 0, 2), ("parcel", 3, 9)]
    expected = [whole - probabilities_of(rest)["delivery"] for rest in ("parcel", "my")]
    assert [word["weight"] for word in answer["words"]] == pytest.approx(expected)
    assert expected[0] < 0 < expected[1]
    assert (answer["words_left"], answer["model_version"]) == (0, "20260301-120000")
    other = running.http.post("/explain", json={"text": "my parcel", "label": "refund"}).json()
    assert other["score"] == pytest.approx(probabilities_of("my parcel")["refund"])
    assert other["words"][1]["weight"] < 0


def test_an_explanation_is_neither_logged_nor_counted_as_predictions(running: Running) -> None:
    assert running.http.post("/explain", json={"text": "where is my parcel"}).status_code == 200
    assert running.records() == []
    metrics = running.http.get("/metrics").text
    assert 'pigeonhole_predictions_total{label="delivery"} 0.0' in metrics
    assert "pigeonhole_batch_texts_sum 5.0" in metrics


def test_only_the_first_words_are_looked_at(running_once: Running) -> None:
    answer = running_once.http.post("/explain", json={"text": "my " * (MAX_WORDS + 10)}).json()
    assert (len(answer["words"]), answer["words_left"]) == (MAX_WORDS, 10)


def test_a_label_that_the_model_has_not_is_refused_by_its_field(running_once: Running) -> None:
    refused = running_once.http.post("/explain", json={"text": "parcel", "label": "zebra"})
    assert (refused.status_code, refused.json()["code"]) == (422, "unknown_label")
    assert "zebra" not in refused.text
    misspelt = running_once.http.post("/explain", json={"text": "parcel", "lable": "zebra"})
    assert misspelt.json()["detail"] == "unknown field; allowed beside text is label"
    assert running_once.http.post("/explain", json={"text": " "}).json()["code"] == "blank_text"


def test_an_explanation_is_waited_for_no_longer_than_its_own_limit(start: Start, patience_s: list[float]) -> None:
    with start(deadline_s=60.0) as service:
        for timeout_ms in ("50000", "2000"):
            asked = service.http.post("/explain", json={"text": "my parcel"}, headers={"x-request-timeout-ms": timeout_ms})
            assert asked.status_code == 200
    assert 2 < patience_s[0] <= MAX_S
    assert patience_s[1] <= 2
