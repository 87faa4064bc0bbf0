"""The shadow: a version that is asked what production is asked, after production has answered, and whose answers nobody gets.

It has a thread, a session and a short queue of its own: a shadow that is slow, hangs or crashes costs questions to the shadow and
nothing else. It rests between batches, so that it takes no more than its share of a core from the version that answers.
"""

import contextlib
import logging
import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pigeonhole.classifier import Classifier, Prediction

MAX_QUEUED = 64  # batches that wait; what comes beyond is dropped
CAP_S = 2.0  # for one batch: a forward pass that is not done by then is cut off
SHARE = 0.25  # of the time at most is spent in the shadow
MAX_FAILURES = 3  # running: then it is asked no more until the alias moves
NICENESS = 19

Outcome = Literal["agreed", "differed", "failed", "dropped"]
OUTCOMES: tuple[Outcome, ...] = ("agreed", "differed", "failed", "dropped")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Batch:
    classifier: Classifier
    texts: Sequence[str]
    answered: Sequence[Prediction]
    report: "_Report"  # that it belongs to


class Shadow:
    """Empty until `fill`; `offer` is called on the path of the answers and only puts into a queue."""

    def __init__(self, note: Callable[[Outcome, int], None], note_difference: Callable[[float], None]) -> None:
        """`note` counts texts by outcome; `note_difference` gets how far the shadow's score of the label given is off."""
        self._note = note
        self._note_difference = note_difference
        self._queue: queue.Queue[_Batch | None] = queue.Queue(MAX_QUEUED)
        self.classifier: Classifier | None = None
        self._report = _Report()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Does not wait: what nobody is answered from is not worth the end of the process."""
        self.classifier, self._stopped = None, True
        with contextlib.suppress(queue.Full):  # then there is something to wake up for
            self._queue.put_nowait(None)

    @property
    def version(self) -> str | None:
        return self.classifier.manifest.version if self.classifier else None

    def fill(self, classifier: Classifier | None) -> None:
        """Ask this one from now on; None: nobody."""
        self.classifier = classifier
        self._report = _Report()  # after it, as `offer` looks at both the other way round

    def begin_anew(self) -> None:
        """Production is another version: what was compared with the one before it is past."""
        self._report = _Report()

    def offer(self, texts: Sequence[str], answered: Sequence[Prediction]) -> None:
        """Never waits and never raises."""
        report, classifier = self._report, self.classifier
        if classifier is None or report.failures >= MAX_FAILURES:
            return
        try:
            self._queue.put_nowait(_Batch(classifier, texts, answered, report))
        except queue.Full:
            self._count(report, "dropped", len(texts))

    def report(self) -> dict[str, Any] | None:
        """What /model says of it."""
        classifier, report = self.classifier, self._report
        if classifier is None:
            return None
        compared = report.outcomes["agreed"] + report.outcomes["differed"]
        return {
            "model_version": classifier.manifest.version,
            "is_asked": report.failures < MAX_FAILURES and self._thread.is_alive(),
            "texts": {outcome: report.outcomes[outcome] for outcome in OUTCOMES},
            "agreement": report.outcomes["agreed"] / compared if compared else None,
            "mean_score_difference": report.difference / compared if compared else None,
            "differed_by_label": dict(report.differed),
        }

    def _run(self) -> None:
        if hasattr(os, "setpriority"):  # on Linux a thread has a niceness of its own, and it may always be raised
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        while (batch := self._queue.get()) is not None and not self._stopped:
            if batch.report is not self._report:
                continue  # an alias has moved, the shadow's or production's
            if batch.report.failures >= MAX_FAILURES:  # since this one was offered
                self._count(batch.report, "dropped", len(batch.texts))
                continue
            began = time.perf_counter()
            self._ask(batch)
            time.sleep((time.perf_counter() - began) * (1 - SHARE) / SHARE)

    def _ask(self, batch: _Batch) -> None:
        try:
            with batch.classifier.within(CAP_S):
                found = batch.classifier.predict(batch.texts)
        except BaseException as error:  # noqa: BLE001  whatever a version does that answers nobody, those that answer go on
            batch.report.failures += 1
            self._count(batch.report, "failed", len(batch.texts))
            version = batch.classifier.manifest.version
            logger.warning("shadow %s failed, %d times running: %s", version, batch.report.failures, type(error).__name__)
        else:
            batch.report.failures = 0
            self._compare(batch, found)

    def _compare(self, batch: _Batch, found: Sequence[Prediction]) -> None:
        for given, other in zip(batch.answered, found, strict=True):
            agreed = set(given.labels) == set(other.labels)
            self._count(batch.report, "agreed" if agreed else "differed", 1)
            difference = abs(given.score - other.score)
            batch.report.difference += difference
            self._note_difference(difference)
            if not agreed:
                batch.report.differed[given.label] += 1

    def _count(self, report: "_Report", outcome: Outcome, texts: int) -> None:
        report.outcomes[outcome] += texts
        self._note(outcome, texts)


class _Report:
    """Of one shadow beside one version in production, since both are what they are.

    Its counters are near enough without a lock: two threads write, to different outcomes.
    """

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.differed: Counter[str] = Counter()
        self.difference = 0.0
        self.failures = 0  # running
