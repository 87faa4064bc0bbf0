"""The queue between many requests and one model: a worker thread owns the classifier and takes what is waiting, without a timer.

While a batch runs, requests queue; the next batch is whatever has come meanwhile. The queue is bounded in texts, and a job whose
deadline has passed is not computed. A deadline that no idle worker could hold is one for the queue alone: who finds nobody
waiting is next, and is answered. A worker that dies fails all who wait, at once, and is replaced after a pause. What a batch does
is the caller's; HTTP is unknown here.
"""

import asyncio
import contextlib
import itertools
import logging
import math
import operator
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import msgspec

AT_ONCE = 8  # answers that the event loop gets in one turn: those of a whole batch would keep all else waiting for 4 ms
BATCH_TEXTS = 32  # a third of a second of work in fp32: what comes next never waits longer for the batch before it
CROWD = 4 * BATCH_TEXTS  # texts that wait; from here on the event loop, which refuses and takes connections, has the core first
GIVE_WAY_S = 0.01  # between two batches at most
LONG_TURN_S = 0.002  # a turn of the loop in which more came than it was through with

NEXT_S = 0.25  # a batch: the shortest deadline of who finds nobody waiting
LATE_S = 0.005  # so much after a deadline somebody is told of it at most, where many have one

RESTART_S = 1.0  # from the death of a worker to the next one: long enough for a probe to see it
STUCK_S = 60.0  # no batch takes so long

logger = logging.getLogger(__name__)

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class OverloadedError(Exception):
    """Too much is waiting already."""


class LateError(Exception):
    """The deadline passed before there was an answer."""


class StoppedError(Exception):
    """No worker takes questions any more."""


class DeadError(Exception):
    """The worker died; the next one is not there yet."""


class _Job(msgspec.Struct, Generic[Asked, Answer], frozen=True, eq=False):
    asked: Sequence[Asked]
    weight: int
    deadline: float  # time.monotonic()
    future: "asyncio.Future[list[Answer]]"


class Batcher(Generic[Asked, Answer]):
    """`work` gets up to BATCH_TEXTS texts, of one request or of many, and gives as many answers in their order.

    Fewer where some weigh more than one: together they weigh no more than BATCH_TEXTS, or there is one.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Asked]], list[Answer]],
        max_waiting: int,
        mourn: Callable[[], None] = lambda: None,
        restart_s: float = RESTART_S,
        watch: Callable[[int], None] = lambda texts: None,
        weigh: Callable[[Asked], int] = lambda asked: 1,
    ) -> None:
        """`mourn` is called whenever a worker has died, `watch` with by how many more or fewer texts wait.

        `weigh`: as how many short texts one is to be counted for its work.
        """
        self._work = work
        self._max_waiting = max_waiting
        self._mourn = mourn
        self._restart_s = restart_s
        self._watch = watch
        self._weigh = weigh
        self._waiting: deque[_Job[Asked, Answer]] = deque()
        self._waiting_texts = 0
        self._in_hand: list[_Job[Asked, Answer]] = []
        self._asked: dict[asyncio.Future[list[Answer]], float] = {}  # their deadlines; the loop's alone
        self._ring: asyncio.TimerHandle | None = None  # one timer for them all: one for each takes as long as an id
        self._taken_at = math.inf
        self._dead = False
        self._changed = threading.Condition()
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._worker = self._new_worker()

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._worker.start()

    async def stop(self) -> None:
        """Answer what is waiting, then end."""
        self.end()
        await asyncio.to_thread(self._worker.join)

    def end(self) -> None:
        """As `stop`, without waiting for it."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    @property
    def alive(self) -> bool:
        """Whether questions are answered; a worker that hangs in one batch is as good as dead, and only a new process helps."""
        stuck = time.monotonic() - self._taken_at > STUCK_S
        return self._worker.is_alive() and not (self._dead or self._stopping or stuck)

    @property
    def waiting_texts(self) -> int:
        return self._waiting_texts

    @property
    def is_crowded(self) -> bool:
        return self._waiting_texts >= CROWD

    async def ask(self, asked: Sequence[Asked], deadline: float) -> list[Answer]:
        """The answers, in order. Raises OverloadedError, LateError, StoppedError, DeadError, and what `work` raises.

        `deadline` is time.monotonic()'s.
        """
        loop = asyncio.get_running_loop()
        if not self._waiting:
            deadline = max(deadline, time.monotonic() + NEXT_S * math.ceil(len(asked) / BATCH_TEXTS))
        jobs = [_Job(part, weight, deadline, loop.create_future()) for part, weight in self._parts(asked)]
        self._enqueue(jobs, len(asked))
        futures = [job.future for job in jobs]
        self._asked.update(dict.fromkeys(futures, deadline))
        if self._ring is None or deadline < self._ring.when():
            self._ring_at(deadline)
        try:
            return [answer for future in futures for answer in await future]
        finally:
            for future in futures:
                del self._asked[future]
                if not (future.cancel() or future.cancelled()):
                    future.exception()  # of several parts that failed, one is told

    def _parts(self, asked: Sequence[Asked]) -> list[tuple[Sequence[Asked], int]]:
        """Each no more than a batch, with what it weighs."""
        parts: list[tuple[Sequence[Asked], int]] = []
        start = weight = 0
        for place, one in enumerate(asked):
            more = self._weigh(one)
            if weight and weight + more > BATCH_TEXTS:
                parts.append((asked[start:place], weight))
                start, weight = place, 0
            weight += more
        return [*parts, (asked[start:], weight)]

    def _ring_at(self, deadline: float) -> None:
        if self._ring is not None:
            self._ring.cancel()
        self._ring = asyncio.get_running_loop().call_at(deadline, self._give_up_late)

    def _give_up_late(self) -> None:
        now = time.monotonic()
        self._ring = None
        late = [(deadline, future) for future, deadline in self._asked.items() if deadline <= now and not future.done()]
        for _, future in sorted(late, key=operator.itemgetter(0)):
            future.set_exception(LateError())
        if left := [deadline for deadline in self._asked.values() if deadline > now]:
            self._ring_at(max(min(left), now + LATE_S))

    def _enqueue(self, jobs: list[_Job[Asked, Answer]], texts: int) -> None:
        with self._changed:
            if self._stopping:
                raise StoppedError
            if self._dead:
                raise DeadError
            if self._waiting_texts + texts > self._max_waiting:
                raise OverloadedError
            self._waiting.extend(jobs)
            self._waiting_texts += texts
            self._watch(texts)
            self._changed.notify()

    def _new_worker(self) -> threading.Thread:
        return threading.Thread(target=self._run, name="batcher", daemon=True)

    def _run(self) -> None:
        try:
            while self._work_once():
                pass
        except BaseException:
            logger.exception("the worker of the batcher died; the next one comes in %g s", self._restart_s)
            self._bury()

    def _bury(self) -> None:
        """Fail all who wait, and see to the next worker."""
        with self._changed:
            self._dead = True
            lost = [*self._in_hand, *self._waiting]
            self._in_hand, self._taken_at = [], math.inf
            self._waiting.clear()
            self._watch(-self._waiting_texts)
            self._waiting_texts = 0
        self._mourn()
        self._deliver([(job, DeadError()) for job in lost])
        if self._loop is not None:
            self._on_loop(self._loop.call_later, self._restart_s, self._restart)

    def _restart(self) -> None:
        if not self._stopping:
            self._worker = self._new_worker()
            self._worker.start()
            self._dead = False

    def _work_once(self) -> bool:
        """One batch; false when it is over. Nothing of a batch is kept while the next one is waited for."""
        self._give_way()
        batch = self._in_hand = self._take()
        self._taken_at = time.monotonic()
        wanted: list[_Job[Asked, Answer]] = []
        late: list[_Job[Asked, Answer]] = []
        for job in batch:
            (late if job.future.cancelled() or self._taken_at >= job.deadline else wanted).append(job)
        outcomes = self._outcomes(wanted) if wanted else []
        self._deliver([*outcomes, *((job, LateError()) for job in late)])
        self._in_hand, self._taken_at = [], math.inf
        return bool(batch)

    def _give_way(self) -> None:
        """In a crowd, until the loop has caught up.

        On the core that both share it would have no more than every other slice, and a burst of connections would wait twice as
        long.
        """
        if not self.is_crowded or self._loop is None:
            return
        caught_up = threading.Event()

        def look(before: float) -> None:
            now = time.monotonic()
            if now - before < LONG_TURN_S or caught_up.is_set():
                caught_up.set()
            else:
                asyncio.get_running_loop().call_soon(look, now)

        self._on_loop(look, -math.inf)
        if not caught_up.wait(GIVE_WAY_S):
            caught_up.set()  # nobody looks any more

    def _take(self) -> list[_Job[Asked, Answer]]:
        """The oldest jobs that fit into one batch, at least one; none when it is over."""
        with self._changed:
            while not self._waiting and not self._stopping:
                self._changed.wait()
            batch: list[_Job[Asked, Answer]] = []
            texts = weight = 0
            while self._waiting and (not batch or weight + self._waiting[0].weight <= BATCH_TEXTS):
                batch.append(self._waiting.popleft())
                texts += len(batch[-1].asked)
                weight += batch[-1].weight
            self._waiting_texts -= texts
            self._watch(-texts)
            return batch

    def _outcomes(self, batch: list[_Job[Asked, Answer]]) -> list[tuple[_Job[Asked, Answer], list[Answer] | Exception]]:
        try:
            answers = self._work([asked for job in batch for asked in job.asked])
        except Exception as error:  # noqa: BLE001  the waiters get it; a worker that dies of one request would fail them all
            if len(batch) == 1:
                return [(batch[0], error)]
            # Only the culprit has to pay; who has gone meanwhile is not asked for again.
            return [outcome for job in batch if not job.future.done() for outcome in self._outcomes([job])]
        ends = list(itertools.accumulate(len(job.asked) for job in batch))
        return [(job, answers[end - len(job.asked) : end]) for job, end in zip(batch, ends, strict=True)]

    def _deliver(self, outcomes: list[tuple[_Job[Asked, Answer], list[Answer] | Exception]]) -> None:
        def settle(start: int) -> None:
            for job, outcome in outcomes[start : start + AT_ONCE]:
                if job.future.done():
                    continue  # its waiter has gone
                if isinstance(outcome, Exception):
                    job.future.set_exception(outcome)
                else:
                    job.future.set_result(outcome)
            if start + AT_ONCE < len(outcomes):
                asyncio.get_running_loop().call_soon(settle, start + AT_ONCE)

        self._on_loop(settle, 0)

    def _on_loop(self, callback: Callable[..., object], *arguments: object) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: a worker hung until nobody waited any more
                self._loop.call_soon_threadsafe(callback, *arguments)
