import json

import pytest

from pigeonhole.classifier import Classifier
from pigeonhole.serving.problem import Problem
from pigeonhole.serving.schemas import Question, answer, read_question, reply


def test_three_shapes_ask_the_same_question() -> None:
    assert read_question(b'{"text":"a"}') == Question(["a"], None, "one")
    assert read_question(b'{"texts":["a","b"],"top_k":2}') == Question(["a", "b"], 2, "many")
    assert read_question(b'{"inputs":"a"}') == Question(["a"], None, "hugging_face")
    assert read_question(b'{"inputs":["a","b"],"parameters":{"top_k":2}}') == Question(["a", "b"], 2, "hugging_face")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"\xff", 400, "not_utf8"),
        (b"\xef\xbb\xbf{}", 400, "not_json"),
        (b'{"text":NaN}', 400, "not_json"),
        (b'{"text":"a","text":"b"}', 400, "not_json"),
        (b"[" * 50_000, 400, "not_json"),
        (b"[" * 100_000, 422, "too_many_values"),
        (b'{"texts":[' + b'"a\\\\",' * 5_000 + b'"' + b"a" * 60_000 + b'"]}', 422, "too_many_values"),
        (b"[]", 422, "invalid_request"),
        (b'{"text":5}', 422, "invalid_request"),
        (b'{"text":"\\u2003"}', 422, "blank_text"),
        (b'{"text":"\\udfff"}', 422, "lone_surrogate"),
        (b'{"text":"a","\\udfff":1}', 422, "lone_surrogate"),
    ],
)
def test_what_is_no_question_is_refused_with_a_code_that_programs_can_compare(body: bytes, status: int, code: str) -> None:
    with pytest.raises(Problem) as refused:
        read_question(body)
    assert (refused.value.status, refused.value.code) == (status, code)


def test_a_reply_ranks_labels_and_keeps_equal_ones_in_the_model_s_order(classifier: Classifier) -> None:
    (prediction,) = classifier.predict(["refund"])
    found = answer(prediction, classifier.manifest, "id-1", None)
    assert list(found.probabilities) == ["refund", "billing", "delivery"]
    assert sum(found.probabilities.values()) == pytest.approx(1)
    question = Question(["refund"], 1, "hugging_face")
    body = json.loads(reply(question, [answer(prediction, classifier.manifest, "id-1", 1)], "m", "v", "r"))
    assert body == [[{"label": "refund", "score": prediction.score}]]
