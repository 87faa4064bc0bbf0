"""From predictions to log records: what it returns from is in the log, and what cannot be written down raises LogError."""

import time
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from msgspec import UNSET

from pigeonhole.classifier import Classifier, Prediction
from pigeonhole.prediction_log import Features, LogWriter, Record, TextPolicy, is_sampled, kept_probabilities, kept_text, sketch

if TYPE_CHECKING:
    from opentelemetry.trace import Span


class AskedText(msgspec.Struct, frozen=True, eq=False):
    """One text on its way through the service; its prediction id is made before its prediction."""

    text: str
    prediction_id: str
    request_id: str
    at: datetime
    began: float  # time.perf_counter() at the edge
    classifier: Classifier  # the one that was there when it was asked
    queued: float  # as `began`, when it began to wait for the model
    span: "Span | None" = None  # of its request


class Variant(msgspec.Struct, frozen=True, eq=False):
    """A text that nobody sent, asked to explain one that somebody did; it is not in the log."""

    text: str
    classifier: Classifier


class Recorder:
    """Writes a batch with one append: on the level `host` its records share one sync."""

    def __init__(self, log: LogWriter, policy: TextPolicy, key: bytes, share: float = 1.0) -> None:
        """`share` of the predictions are written down; which ones, their ids say."""
        self._log = log
        self._share = share
        self._policy: TextPolicy = policy
        self._key = key

    def record(self, asked: Sequence[AskedText], predictions: Sequence[Prediction]) -> None:
        now = time.perf_counter()
        pairs = [pair for pair in zip(asked, predictions, strict=True) if is_sampled(pair[0].prediction_id, self._share)]
        if pairs:
            sketches = sketch(np.stack([prediction.embedding for _, prediction in pairs])).tolist()
            probabilities = kept_probabilities(np.stack([prediction.probabilities for _, prediction in pairs]))
            max_logits = np.stack([prediction.logits for _, prediction in pairs]).max(axis=1).tolist()
            kept = zip(pairs, sketches, probabilities, max_logits, strict=True)
            self._log.append([self._record(*pair, now, *computed) for pair, *computed in kept])

    def _record(
        self,
        asked: AskedText,
        prediction: Prediction,
        now: float,
        drawn: list[float],
        probabilities: list[float],
        max_logit: float,
    ) -> Record:
        manifest = asked.classifier.manifest
        return Record(
            prediction_id=asked.prediction_id,
            at=asked.at,
            request_id=asked.request_id,
            model=manifest.name,
            version=manifest.version,
            text=kept_text(asked.text, self._policy, self._key),
            text_policy=self._policy,
            features=Features(
                n_chars=len(asked.text),
                n_words=len(asked.text.split()),
                n_tokens=prediction.n_tokens,
                unknown_tokens=prediction.unknown_tokens,
                truncated=prediction.truncated,
                max_logit=max_logit,
                sketch=drawn,
            ),
            label=prediction.label,
            labels=list(prediction.labels) if manifest.task == "multi_label" else UNSET,
            score=prediction.score,
            probabilities=dict(zip(manifest.labels, probabilities, strict=True)),
            decision=prediction.decision,
            latency_ms=round((now - asked.began) * 1000, 3),
        )
