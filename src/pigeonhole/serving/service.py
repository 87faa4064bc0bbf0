"""One model at work: a question goes through the batcher to the classifier and the recorder, and comes back as a reply.

The model may be replaced at any time. A question stays with the one that it was asked of: its answers, its records and its reply
are of one version, whatever happens meanwhile.
"""

import itertools
import logging
import operator
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from pigeonhole.classifier import Classifier, Prediction
from pigeonhole.errors import InferenceError, LogError
from pigeonhole.prediction_log import Backlog, LogWriter, new_id
from pigeonhole.serving.batcher import Batcher, DeadError, LateError, OverloadedError, StoppedError
from pigeonhole.serving.explain import MAX_S, MAX_WORDS, weights, without, words_of
from pigeonhole.serving.feedback import FeedbackDesk
from pigeonhole.serving.problem import Problem
from pigeonhole.serving.recorder import AskedText, Recorder, Variant
from pigeonhole.serving.replies import Replies
from pigeonhole.serving.schemas import ExplainReply, ExplainRequest, Question, answer, reply
from pigeonhole.serving.settings import Settings
from pigeonhole.serving.telemetry import Telemetry
from pigeonhole.serving.tracing import Tracing, span_of_request

MAX_FAILURES = 3

logger = logging.getLogger(__name__)


class Service:
    """Its batcher has to be started before it is asked, and stopped at the end."""

    def __init__(
        self, settings: Settings, classifier: Classifier, log: LogWriter, feedback: LogWriter, tracing: Tracing | None = None
    ) -> None:
        self.classifier = classifier
        self.replies = Replies()
        self._log, self._feedback_log = log, feedback
        self._tracing = tracing
        self.telemetry = telemetry = Telemetry(classifier.manifest, self._backlog)
        self.feedback = FeedbackDesk(classifier.labels, feedback, self.replies, self.telemetry)
        self.batcher = Batcher(self._work, settings.max_waiting, telemetry.worker_deaths.inc, watch=telemetry.waiting.inc)
        self._failures = 0  # of the model, since it last gave an answer
        self._recorder = Recorder(log, settings.text_policy, settings.text_key.encode(), settings.sample)

    def swap(self, classifier: Classifier) -> None:
        """Questions asked from now on are the new one's; the old one is gone when its last question is answered. Any thread."""
        self.telemetry.model(classifier.manifest)
        self.classifier = classifier
        self.feedback.add_labels(classifier.labels)
        self._failures = 0

    @property
    def ready(self) -> bool:
        """A model that gives no numbers several times running needs another look before it is asked more."""
        return self.batcher.alive and self._failures < MAX_FAILURES

    def _backlog(self) -> Backlog:
        """Of predictions and feedback together."""
        found = [log.backlog() for log in (self._log, self._feedback_log)]
        return Backlog(
            size_bytes=sum(each.size_bytes for each in found),
            oldest_s=max(each.oldest_s for each in found),
            failures=max(each.failures for each in found),
            dropped=sum(each.dropped for each in found),
        )

    def dropped(self) -> tuple[int, int]:
        """Records of predictions and of feedback that were given up so far."""
        return self._log.dropped, self._feedback_log.dropped

    def kept_since(self, dropped: tuple[int, int], sample: float = 1.0) -> str:
        """How safe the records of an answer are that was begun when so many had been dropped; rather too little than too much."""
        level = self._log.durability if dropped == self.dropped() else "none"
        return level if sample == 1 else f"{level}; sample={sample:g}"

    async def answer(self, question: Question, request_id: str, began: float, deadline_s: float) -> bytes:
        """The body of the 200; when it returns, its predictions are in the log. Raises Problem."""
        now = datetime.now(UTC)
        classifier = self.classifier
        queued, span = time.perf_counter(), span_of_request.get()
        asked = [AskedText(text, new_id(), request_id, now, began, classifier, queued, span) for text in question.texts]
        predictions = await self._predictions(asked, deadline_s)
        answers = [
            answer(prediction, classifier.labels, text.prediction_id, question.top_k)
            for text, prediction in zip(asked, predictions, strict=True)
        ]
        return reply(question, answers, classifier.manifest.name, classifier.manifest.version, request_id)

    async def explain(self, question: ExplainRequest, request_id: str, deadline_s: float) -> bytes:
        """The body of the 200. Raises Problem."""
        classifier = self.classifier
        if question.label is not None and question.label not in classifier.labels:
            raise Problem(422, "unknown_label", "label is none of the model's labels; see /model")
        words = words_of(question.text)
        texts = [question.text, *(without(question.text, word) for word in words[:MAX_WORDS])]
        whole, *left_out = await self._predictions([Variant(text, classifier) for text in texts], min(deadline_s, MAX_S))
        label_id = whole.label_id if question.label is None else classifier.labels.index(question.label)
        found = ExplainReply(
            label=classifier.labels[label_id],
            score=float(whole.probabilities[label_id]),
            words=weights(question.text, words[:MAX_WORDS], label_id, whole, left_out),
            words_left=max(0, len(words) - MAX_WORDS),
            model=classifier.manifest.name,
            model_version=classifier.manifest.version,
            request_id=request_id,
        )
        return msgspec.json.encode(found)

    async def _predictions(self, asked: Sequence[AskedText | Variant], deadline_s: float) -> list[Prediction]:
        try:
            return await self.batcher.ask(asked, time.monotonic() + deadline_s)
        except OverloadedError as error:
            self.telemetry.shed.inc()
            raise _later("overloaded", "too many texts are waiting") from error
        except LateError as error:
            raise _later("deadline_passed", "there was no answer within the deadline") from error
        except StoppedError as error:
            raise _later("stopping", "the service is going down") from error
        except DeadError as error:
            raise _later("worker_died", "the worker that answers died; a new one is on its way") from error
        except InferenceError as error:
            raise Problem(500, "no_usable_answer", "the model gave no usable answer") from error
        except LogError as error:
            raise _later("not_recorded", "the prediction could not be written down, so it is not given out") from error

    def _work(self, asked: Sequence[AskedText | Variant]) -> list[Prediction]:
        """On the batcher's thread; a batch holds questions to two models only while one follows the other."""
        predictions: list[Prediction] = []
        for classifier, group in itertools.groupby(asked, key=operator.attrgetter("classifier")):
            predictions += self._predict(classifier, list(group))
        logged = [(each, found) for each, found in zip(asked, predictions, strict=True) if isinstance(each, AskedText)]
        if logged:
            self._recorder.record([each for each, _ in logged], [found for _, found in logged])
            self.telemetry.predicted([found for _, found in logged])
        return predictions

    def _predict(self, classifier: Classifier, asked: Sequence[AskedText | Variant]) -> list[Prediction]:
        began = time.perf_counter()
        waited = [each for each in asked if isinstance(each, AskedText)]
        for each in waited:
            self.telemetry.waited(began - each.queued)
        try:
            predictions = classifier.predict([each.text for each in asked])
        except InferenceError as error:
            self._failures += 1
            self.telemetry.model_failures.inc()
            logger.warning("no usable answer, %d times running: %s", self._failures, error)
            raise
        self._failures = 0
        ended = time.perf_counter()
        self.telemetry.batch(predictions, ended - began)
        if self._tracing is not None:
            spans = {id(each.span): (each.span, each.queued) for each in waited if each.span is not None}
            self._tracing.batch(list(spans.values()), began, ended, classifier.manifest.version)
        return predictions


def _later(code: str, detail: str) -> Problem:
    return Problem(503, code, detail, {"retry-after": "1"})
