from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import tiny_rows

from pigeonhole.bundle import open_bundle
from pigeonhole.classifier import Classifier
from pigeonhole.evaluation import score
from pigeonhole.metrics import Floats


@dataclass
class Answer:
    probabilities: Floats


class LengthClassifier:
    """Says how sure it is of the first label by the length of the text; remembers how many texts it got at once."""

    labels = ("short", "long")

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def predict(self, texts: Sequence[str]) -> list[Answer]:
        self.sizes.append(len(texts))
        return [Answer(np.array([1 / len(text), 1 - 1 / len(text)])) for text in texts]


def test_rows_keep_their_order_over_bounded_chunks() -> None:
    classifier = LengthClassifier()
    texts = ["x" * (1 + i % 50) for i in range(600)]
    found = score.predict_rows(classifier, texts)
    np.testing.assert_array_equal(found[:, 0], [1 / len(text) for text in texts])
    assert classifier.sizes == [256, 256, 88]


def test_all_that_is_known_of_each_text_is_asked_for_in_bounded_chunks(
    sealed_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier, texts = Classifier.open(open_bundle(str(sealed_bundle)), "fp32"), ["my invoice looks wrong", "hello", "no parcel"]
    monkeypatch.setattr(score, "CHUNK", 2)
    found, at_once = score.predict_texts(classifier, texts), classifier.predict(texts)
    assert [answer.label_id for answer in found] == [answer.label_id for answer in at_once]


def test_no_rows_are_no_answers() -> None:
    assert score.predict_rows(LengthClassifier(), []).shape == (0, 2)


def test_progress_goes_to_stderr_alone(capsys: pytest.CaptureFixture[str]) -> None:
    score.predict_rows(LengthClassifier(), ["a"], "score fp32")
    printed = capsys.readouterr()
    assert "score fp32" in printed.err
    assert printed.out == ""


def test_larger_batches_give_the_same_bits_and_are_kept_under_other_rules(sealed_bundle: Path) -> None:
    texts = [text for text, _ in tiny_rows()]
    bundle = open_bundle(str(sealed_bundle))
    expected = score.predict_rows(Classifier.open(bundle), texts)
    many = score.for_many(Classifier.open(bundle)).under(bundle.manifest, None)
    assert many.batch_tokens == score.BATCH_TOKENS
    assert (score.predict_rows(many, texts) == expected).all()
