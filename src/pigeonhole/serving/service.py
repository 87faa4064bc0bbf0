"""One model at work: a question goes through the batcher to the classifier and the recorder, and comes back as a reply.

The model may be replaced at any time. A question stays with the one that it was asked of: its answers, its records and its reply
are of one version, whatever happens meanwhile.
"""

import itertools
import logging
import math
import operator
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial

import msgspec

from pigeonhole.classifier import Classifier, Prediction, most_windows
from pigeonhole.errors import InferenceError, LogError
from pigeonhole.prediction_log import Backlog, LogWriter, new_id
from pigeonhole.registry import Alias
from pigeonhole.serving.batcher import BATCH_TEXTS, NEXT_S, Batcher, DeadError, LateError, OverloadedError, StoppedError
from pigeonhole.serving.canary import is_chosen
from pigeonhole.serving.explain import MAX_S, MAX_WORDS, weights, without, words_of
from pigeonhole.serving.feedback import FeedbackDesk
from pigeonhole.serving.problem import LATE_CODE, OVERLOADED_CODE, Problem, later, too_late
from pigeonhole.serving.recorder import AskedText, Recorder, Variant
from pigeonhole.serving.replies import Replies
from pigeonhole.serving.schemas import ExplainReply, ExplainRequest, Question, answer, reply
from pigeonhole.serving.settings import Settings
from pigeonhole.serving.shadow import Shadow
from pigeonhole.serving.telemetry import Telemetry
from pigeonhole.serving.tracing import Tracing, span_of_request

MAX_FAILURES = 3
MAX_LATE_S = 0.005
UNWRITTEN_CODE = "not_recorded"

logger = logging.getLogger(__name__)


class Service:
    """Its batcher has to be started before it is asked, and stopped at the end."""

    def __init__(
        self, settings: Settings, classifier: Classifier, log: LogWriter, feedback: LogWriter, tracing: Tracing | None = None
    ) -> None:
        self.classifier = classifier
        self.replies = Replies()
        self._log, self._feedback_log = log, feedback
        self._max_waiting = settings.max_waiting
        self._tracing = tracing
        self.telemetry = telemetry = Telemetry(classifier.manifest, self._backlog)
        log.note_dropped = feedback.note_dropped = telemetry.dropped
        self.feedback = FeedbackDesk(classifier.manifest, feedback, self.replies, self.telemetry)
        self.batcher = Batcher(
            partial(self._work, "production"),
            settings.max_waiting,
            telemetry.worker_deaths.inc,
            watch=telemetry.waiting.inc,
            weigh=_weigh,
        )
        # The candidate has a worker of its own: one that hangs or dies keeps only its own questions waiting.
        self._canary_batcher = Batcher(
            partial(self._work, "candidate"), settings.max_waiting, telemetry.worker_deaths.inc, weigh=_weigh
        )
        self.canary: Classifier | None = None
        self.canary_share = settings.canary_share
        self._deadline_s = settings.deadline_s
        self.shadow = Shadow(telemetry.shadowed, telemetry.shadow_difference)
        self._failures = 0  # of the model in production, since it last gave an answer
        self._canary_failures = 0
        self._recorder = Recorder(log, settings.text_policy, settings.text_key.encode(), settings.sample)

    def start(self) -> None:
        """On the loop that asks."""
        self.batcher.start()
        if self.canary_share:
            self._canary_batcher.start()
        self.shadow.start()

    async def stop(self) -> None:
        """Answer what is waiting, then end."""
        self.shadow.stop()
        self._canary_batcher.end()  # all who asked have their answers by now; a candidate that hangs must not hold up the end
        await self.batcher.stop()

    def swap(self, classifier: Classifier) -> None:
        """Questions asked from now on are the new one's; the old one is gone when its last question is answered. Any thread."""
        self.telemetry.model("production", classifier.manifest)
        self.classifier = classifier
        self.feedback.add(classifier.manifest)
        self._failures = 0
        self.shadow.begin_anew()

    def seat_canary(self, classifier: Classifier | None) -> None:
        """Its share of the questions asked from now on goes to this one; None: to production. Any thread."""
        self.telemetry.model("candidate", classifier.manifest if classifier else None)
        if classifier is not None:
            self.feedback.add(classifier.manifest)
        self._canary_failures = 0
        self.canary = classifier

    def seat_shadow(self, classifier: Classifier | None) -> None:
        """Any thread."""
        self.telemetry.model("shadow", classifier.manifest if classifier else None)
        self.shadow.fill(classifier)

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
        )

    def dropped(self) -> tuple[int, int]:
        """Records of predictions and of feedback that were given up so far."""
        return self._log.dropped, self._feedback_log.dropped

    def kept_since(self, dropped: tuple[int, int], sample: float = 1.0) -> str:
        """How safe the records of an answer are that was begun when so many had been dropped; rather too little than too much."""
        level = self._log.durability if dropped == self.dropped() else "none"
        return level if sample == 1 else f"{level}; sample={sample:g}"

    def is_full(self, loop_late_s: float) -> bool:
        """Whether not even one text more may wait; or half as many do, and what is let in makes the loop later still."""
        waiting = self.batcher.waiting_texts
        return waiting >= self._max_waiting or (waiting >= self._max_waiting // 2 and loop_late_s > MAX_LATE_S)

    async def answer(self, question: Question, request_id: str, began: float, deadline_s: float, key: str = "") -> bytes:
        """The body of the 200; when it returns, its predictions are in the log. `key`: whose question. Raises Problem."""
        asked_at = time.monotonic()
        canary = self._canary_for(key or question.texts[0])
        if canary is not None:
            patience_s = deadline_s / 2
            try:
                found = await self._answer(canary, self._canary_batcher, question, request_id, began, patience_s)
            except Exception as error:  # noqa: BLE001  whatever the candidate failed of, production answers
                if not (_is_common(error) or (_is_late(error) and patience_s < self._fair_s(question))):
                    self._canary_failed(canary, error)
                deadline_s -= time.monotonic() - asked_at
            else:
                self._canary_failures = 0
                return found
        return await self._answer(self.classifier, self.batcher, question, request_id, began, deadline_s)

    async def _answer(
        self,
        classifier: Classifier,
        batcher: Batcher[AskedText | Variant, Prediction],
        question: Question,
        request_id: str,
        began: float,
        deadline_s: float,
    ) -> bytes:
        now = datetime.now(UTC)
        queued, span = time.perf_counter(), span_of_request.get()
        asked = [AskedText(text, new_id(), request_id, now, began, classifier, queued, span) for text in question.texts]
        predictions = await self._predictions(batcher, asked, deadline_s)
        answers = [
            answer(prediction, classifier.manifest, text.prediction_id, question.top_k)
            for text, prediction in zip(asked, predictions, strict=True)
        ]
        return reply(question, answers, classifier.manifest.name, classifier.manifest.version, request_id)

    def _canary_for(self, key: str) -> Classifier | None:
        """The candidate, if this question is one of its share."""
        canary = self.canary
        if canary is None or canary.manifest.version == self.classifier.manifest.version:
            return None
        return canary if is_chosen(key, canary.manifest.version, self.canary_share) else None

    def _fair_s(self, question: Question) -> float:
        """Seconds; who gave a candidate less has found out nothing about it."""
        return min(self._deadline_s / 2, NEXT_S * math.ceil(len(question.texts) / BATCH_TEXTS))

    def _canary_failed(self, canary: Classifier, error: Exception) -> None:
        self._canary_failures += 1
        version, kind = canary.manifest.version, error.code if isinstance(error, Problem) else type(error).__name__
        logger.warning("candidate %s failed, %d times running: %s", version, self._canary_failures, kind)
        if self._canary_failures >= MAX_FAILURES and self.canary is canary:
            logger.warning("candidate %s is asked no more", version)
            self.seat_canary(None)

    async def explain(self, question: ExplainRequest, request_id: str, deadline_s: float) -> bytes:
        """The body of the 200. Raises Problem."""
        classifier = self.classifier
        if question.label is not None and question.label not in classifier.labels:
            raise Problem(422, "unknown_label", "label is none of the model's labels; see /model")
        words = words_of(question.text)
        texts = [question.text, *(without(question.text, word) for word in words[:MAX_WORDS])]
        whole, *left_out = await self._predictions(
            self.batcher, [Variant(text, classifier) for text in texts], min(deadline_s, MAX_S)
        )
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

    async def _predictions(
        self, batcher: Batcher[AskedText | Variant, Prediction], asked: Sequence[AskedText | Variant], deadline_s: float
    ) -> list[Prediction]:
        try:
            return await batcher.ask(asked, time.monotonic() + deadline_s)
        except OverloadedError as error:
            raise later(OVERLOADED_CODE, "too many texts are waiting") from error
        except LateError as error:
            raise too_late() from error
        except StoppedError as error:
            raise later("stopping", "the service is going down") from error
        except DeadError as error:
            raise later("worker_died", "the worker that answers died; a new one is on its way") from error
        except InferenceError as error:
            raise Problem(500, "no_usable_answer", "the model gave no usable answer") from error
        except LogError as error:
            raise later(UNWRITTEN_CODE, "the prediction could not be written down, so it is not given out") from error

    def _work(self, role: Alias, asked: Sequence[AskedText | Variant]) -> list[Prediction]:
        """On the batcher's thread; a batch holds questions to two models only while one follows the other."""
        groups = [list(group) for _, group in itertools.groupby(asked, key=operator.attrgetter("classifier"))]
        answered = [self._predict(group[0].classifier, group) for group in groups]
        for group, predictions in zip(groups, answered, strict=True):
            self._record(role, group, predictions)
        return list(itertools.chain.from_iterable(answered))

    def _record(self, role: Alias, asked: Sequence[AskedText | Variant], predictions: Sequence[Prediction]) -> None:
        """Of one model."""
        logged = [(each, found) for each, found in zip(asked, predictions, strict=True) if isinstance(each, AskedText)]
        if not logged:
            return
        texts, found = [each for each, _ in logged], [found for _, found in logged]
        self._recorder.record(texts, found)
        self.telemetry.predicted(role, found)
        # The last answers of a version that was replaced are nothing to compare with.
        if role == "production" and texts[0].classifier is self.classifier:
            self.shadow.offer([each.text for each in texts], found)

    def _predict(self, classifier: Classifier, asked: Sequence[AskedText | Variant]) -> list[Prediction]:
        began = time.perf_counter()
        waited = [each for each in asked if isinstance(each, AskedText)]
        for each in waited:
            self.telemetry.waited(began - each.queued)
        try:
            predictions = classifier.predict([each.text for each in asked])
        except InferenceError as error:
            if classifier is self.classifier:
                self._failures += 1
            self.telemetry.model_failures.inc()
            logger.warning("no usable answer, %d times running: %s", self._failures, error)
            raise
        if classifier is self.classifier:
            self._failures = 0
        ended = time.perf_counter()
        self.telemetry.batch(predictions, ended - began)
        if self._tracing is not None:
            spans = {id(each.span): (each.span, each.queued) for each in waited if each.span is not None}
            self._tracing.batch(list(spans.values()), began, ended, classifier.manifest.version)
        return predictions


def _weigh(asked: AskedText | Variant) -> int:
    return most_windows(asked.classifier.manifest, asked.text)


def _is_late(error: Exception) -> bool:
    return isinstance(error, Problem) and error.code == LATE_CODE


def _is_common(error: Exception) -> bool:
    """Whether every version would have met it: a crowd, a full disk."""
    return isinstance(error, Problem) and error.code in (OVERLOADED_CODE, UNWRITTEN_CODE)
