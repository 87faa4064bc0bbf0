"""A bundle on rows: texts through the server's own classifier, in bounded chunks, with a progress bar on stderr."""

import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from tqdm import tqdm

from pigeonhole.classifier import Classifier, Prediction
from pigeonhole.metrics import Floats

CHUNK = 256  # texts per call: the classifier keeps an embedding for each
# Of one forward pass, where nobody waits for the first answer: two threads do 288 texts a second (fp32, tickets), and 248 with
# the 128 of the classifier; one thread is as fast with either.
BATCH_TOKENS = 512


class Predicted(Protocol):
    @property
    def probabilities(self) -> Floats: ...


class Predictor(Protocol):
    """What scoring needs of `classifier.Classifier`."""

    @property
    def labels(self) -> tuple[str, ...]: ...

    def predict(self, texts: Sequence[str]) -> Sequence[Predicted]: ...


def for_many(classifier: Classifier) -> Classifier:
    """The classifier, which from now on takes larger batches."""
    classifier.batch_tokens = BATCH_TOKENS
    return classifier


def predict_texts(classifier: Classifier, texts: Sequence[str]) -> list[Prediction]:
    """All that is known of each text, in memory at once."""
    return [found for start in range(0, len(texts), CHUNK) for found in classifier.predict(texts[start : start + CHUNK])]


def predict_rows(classifier: Predictor, texts: Sequence[str], description: str = "score") -> Floats:
    """(n, c) probabilities, in the order of the texts and of the classifier's labels."""
    probabilities = np.empty((len(texts), len(classifier.labels)))
    with tqdm(total=len(texts), desc=description, unit="row", mininterval=1) as progress:
        for start in range(0, len(texts), CHUNK):
            chunk = texts[start : start + CHUNK]
            probabilities[start : start + len(chunk)] = [answer.probabilities for answer in classifier.predict(chunk)]
            progress.update(len(chunk))
    return probabilities


def time_each(classifiers: Sequence[Classifier], texts: Sequence[str]) -> list[Floats]:
    """Milliseconds of each text by itself; the classifiers take turns, text by text."""
    times: list[list[float]] = [[] for _ in classifiers]
    for text in texts:
        for classifier, of_one in zip(classifiers, times, strict=True):
            began = time.perf_counter()
            classifier.predict([text])
            of_one.append((time.perf_counter() - began) * 1000)
    return [np.array(of_one) for of_one in times]
