"""What somebody says was right: written down before the answer, and once however often it is said.

The same source may change its mind, also back again. What this process cannot know (a prediction of long ago, what another
replica was told) is for the reader of the log to join.
"""

import asyncio
import hashlib
from collections import OrderedDict
from datetime import UTC, datetime, timedelta

import msgspec

from pigeonhole.bundle import Manifest
from pigeonhole.errors import LogError
from pigeonhole.prediction_log import Feedback, LogWriter, moment_of
from pigeonhole.serving.problem import Problem, later
from pigeonhole.serving.replies import Replies, Reply
from pigeonhole.serving.schemas import FeedbackReply, FeedbackRequest
from pigeonhole.serving.telemetry import Telemetry

REMEMBERED = 10_000  # latest words, of as many predictions and sources
LATE = timedelta(days=1)
SKEW = timedelta(days=1)  # how far ahead the clock of another replica may be


class _DroppedError(Exception):
    """There was no room for a word, and the settings allow it to be lost: who says it again is written down then."""


class FeedbackDesk:
    """Takes the words on predictions, of every version that ever answered here. Belongs to one event loop."""

    def __init__(self, manifest: Manifest, log: LogWriter, replies: Replies, telemetry: Telemetry) -> None:
        self._labels: set[str] = set()
        self._several = False  # whether a text may have any other number of labels than one
        self.add(manifest)
        self._log = log
        self._replies = replies
        self._telemetry = telemetry
        # Who on what -> labels, feedback id.
        self._latest: OrderedDict[tuple[str, str], tuple[tuple[str, ...], str]] = OrderedDict()

    def add(self, manifest: Manifest) -> None:
        """One more version whose predictions may be spoken of."""
        self._labels.update(manifest.labels)
        self._several |= manifest.task == "multi_label"

    async def take(self, given: FeedbackRequest) -> bytes:
        """The body of the 200; when it returns, the feedback is in the log, or dropped where that is allowed. Raises Problem."""
        now = datetime.now(UTC)
        if len(given.given) != 1 and not self._several:
            raise Problem(422, "invalid_request", "labels names any number of labels, and a text has one here; name it in label")
        if not self._labels.issuperset(given.given):
            raise self._refused("unknown_label", "label is none of the model's labels; see /model")
        made_at = moment_of(given.prediction_id)
        if made_at is None or made_at > now + SKEW:
            raise self._refused("unknown_prediction", "prediction_id is none that this service has given out")
        key = (given.prediction_id, given.source)
        labels, before = self._latest.get(key, (given.given, ""))
        feedback_id = before if before and labels == given.given else feedback_id_of(given, before)
        outcome = "repeated" if feedback_id == before else "changed" if before else "new"
        is_kept = True
        if outcome == "repeated":
            body = _reply(feedback_id, given)  # it is in the log
        else:
            try:
                body, _ = await self._replies.once(f"feedback {feedback_id}", b"", lambda: self._write(feedback_id, given, now))
            except _DroppedError:
                body, is_kept = _reply(feedback_id, given), False
        if is_kept:
            self._remember(key, (given.given, feedback_id))
        self._telemetry.feedback_outcomes.labels(outcome).inc()
        if outcome != "repeated" and now - made_at > LATE:
            self._telemetry.feedback_outcomes.labels("late").inc()
        return body

    async def _write(self, feedback_id: str, given: FeedbackRequest, now: datetime) -> Reply:
        word = Feedback(
            feedback_id=feedback_id,
            at=now,
            prediction_id=given.prediction_id,
            label=given.label or "",
            labels=given.labels,
            source=given.source,
        )
        try:
            is_kept = await asyncio.to_thread(self._log.append, [word])
        except LogError as error:
            detail = "the feedback could not be written down"
            raise later("not_recorded", detail) from error
        if not is_kept:
            raise _DroppedError
        for label in given.given:
            self._telemetry.feedback.labels(label).inc()
        return Reply(_reply(feedback_id, given))

    def _remember(self, key: tuple[str, str], word: tuple[tuple[str, ...], str]) -> None:
        self._latest[key] = word
        self._latest.move_to_end(key)
        if len(self._latest) > REMEMBERED:
            self._latest.popitem(last=False)

    def _refused(self, outcome: str, detail: str) -> Problem:
        self._telemetry.feedback_outcomes.labels(outcome).inc()
        return Problem(422, outcome, detail)


def _reply(feedback_id: str, given: FeedbackRequest) -> bytes:
    return msgspec.json.encode(FeedbackReply(feedback_id=feedback_id, **msgspec.structs.asdict(given)))


def feedback_id_of(given: FeedbackRequest, before: str) -> str:
    """The same words have the same id; said again after others (`before`), they are a new one."""
    return hashlib.sha256(msgspec.json.encode(given) + before.encode()).hexdigest()[:32]
