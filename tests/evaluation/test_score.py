from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

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


def test_no_rows_are_no_answers() -> None:
    assert score.predict_rows(LengthClassifier(), []).shape == (0, 2)


def test_progress_goes_to_stderr_alone(capsys: pytest.CaptureFixture[str]) -> None:
    score.predict_rows(LengthClassifier(), ["a"], "score fp32")
    printed = capsys.readouterr()
    assert "score fp32" in printed.err
    assert printed.out == ""
