"""The queue between many requests and one model: a worker thread owns the classifier and takes what is waiting, without a timer.

While a batch runs, requests queue. The next batch is the text that has waited longest, and of those that may share a forward pass
with it as many as are worth one; its answers go out before the next batch begins. The queue is bounded in texts, and what its
caller has given up is not computed. A worker that dies fails all who wait, at once, and is replaced after a pause. What a batch
does is the caller's; HTTP is unknown here.
"""

import asyncio
import contextlib
import itertools
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

AT_ONCE = 4  # answers that the event loop gets in one turn: those of a whole batch would keep all else waiting for 8 ms
PREPARED_TEXTS = 64  # that a batch is chosen from: enough of each kind, and to prepare the longest ones takes 0.2 s

RESTART_S = 1.0  # from the death of a worker to the next one: long enough for a probe to see it
STUCK_S = 60.0  # no batch takes so long

logger = logging.getLogger(__name__)

Asked = TypeVar("Asked")
Load = TypeVar("Load")
Answer = TypeVar("Answer")
Each = TypeVar("Each")
Found = TypeVar("Found")


class OverloadedError(Exception):
    """Too much is waiting already."""


class LateError(Exception):
    """The deadline passed before there was an answer."""


class StoppedError(Exception):
    """No worker takes questions any more."""


class DeadError(Exception):
    """The worker died; the next one is not there yet."""


@dataclass(frozen=True)
class Prepared(Generic[Load]):
    """A text as the work wants it. Those of one kind share a batch until their sizes are together `capacity`."""

    load: Load
    kind: Hashable
    size: int


@dataclass(eq=False)
class _Job(Generic[Asked, Answer]):
    """A question of one text or of several, and the answers that are there by now, by the numbers of their texts."""

    asked: Sequence[Asked]
    deadline: float  # time.monotonic()
    future: "asyncio.Future[list[Answer]]"
    answers: dict[int, Answer] = field(default_factory=dict)
    is_over: bool = False

    @property
    def is_wanted(self) -> bool:
        return not (self.is_over or self.future.done()) and time.monotonic() < self.deadline


@dataclass(frozen=True, eq=False)
class _Text(Generic[Asked, Answer]):
    """One text of a job."""

    job: _Job[Asked, Answer]
    number: int


def _give_up(future: "asyncio.Future[list[Answer]]") -> None:
    if not future.done():
        future.set_exception(LateError())


class Batcher(Generic[Asked, Load, Answer]):
    """`prepare` gets texts, of one request or of many; `work` gets those of one kind, and answers them in their order."""

    def __init__(
        self,
        prepare: Callable[[Sequence[Asked]], list[Prepared[Load]]],
        work: Callable[[Sequence[Load]], list[Answer]],
        capacity: int,
        max_waiting: int,
        mourn: Callable[[], None] = lambda: None,
        restart_s: float = RESTART_S,
        watch: Callable[[int], None] = lambda texts: None,
    ) -> None:
        """`mourn` is called whenever a worker has died, `watch` with by how many more or fewer texts wait."""
        self._prepare = prepare
        self._work = work
        self._capacity = capacity
        self._max_waiting = max_waiting
        self._mourn = mourn
        self._restart_s = restart_s
        self._watch = watch
        self._waiting: deque[_Text[Asked, Answer]] = deque()
        self._prepared: list[
            tuple[_Text[Asked, Answer], Prepared[Load]]
        ] = []  # they wait too, the oldest first; the worker's own
        self._waiting_texts = 0
        self._in_hand: Sequence[_Text[Asked, Answer]] = ()
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

    async def ask(self, asked: Sequence[Asked], deadline: float) -> list[Answer]:
        """The answers, in order. Raises what `prepare` and `work` raise, OverloadedError, LateError, StoppedError, DeadError."""
        loop = asyncio.get_running_loop()
        job: _Job[Asked, Answer] = _Job(asked, deadline, loop.create_future())
        self._enqueue(job)
        timer = loop.call_at(deadline, _give_up, job.future)  # asyncio.timeout takes four times as long
        try:
            return await job.future
        finally:
            timer.cancel()

    def _enqueue(self, job: _Job[Asked, Answer]) -> None:
        with self._changed:
            if self._stopping:
                raise StoppedError
            if self._dead:
                raise DeadError
            if self._waiting_texts + len(job.asked) > self._max_waiting:
                raise OverloadedError
            self._waiting.extend(_Text(job, number) for number in range(len(job.asked)))
            self._count(len(job.asked))
            self._changed.notify()

    def _count(self, texts: int) -> None:
        self._waiting_texts += texts
        self._watch(texts)

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
            prepared = [text for text, _ in self._prepared]
            lost = dict.fromkeys(text.job for text in (*self._in_hand, *prepared, *self._waiting))
            self._in_hand, self._taken_at = (), math.inf
            self._prepared.clear()
            self._waiting.clear()
            self._count(-self._waiting_texts)
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
        fresh = self._in_hand = self._take()
        if not (fresh or self._prepared):
            return False
        self._taken_at = time.monotonic()
        had = len(fresh) + len(self._prepared)
        self._prepare_those_of(fresh)
        batch = self._choose()
        self._in_hand = [text for text, _ in batch]
        with self._changed:
            self._count(len(self._prepared) - had)
        self._answer_those_of(batch)
        self._in_hand, self._taken_at = (), math.inf
        return True

    def _take(self) -> list[_Text[Asked, Answer]]:
        """The oldest texts that are not prepared; none when it is over, or enough are."""
        with self._changed:
            while not (self._waiting or self._prepared or self._stopping):
                self._changed.wait()
            room = PREPARED_TEXTS - len(self._prepared)
            return [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]

    def _prepare_those_of(self, fresh: Sequence[_Text[Asked, Answer]]) -> None:
        def prepare(texts: Sequence[_Text[Asked, Answer]]) -> list[Prepared[Load]]:
            return self._prepare([text.job.asked[text.number] for text in texts])

        wanted = [text for text in fresh if text.job.is_wanted]
        for text, found in _tried(prepare, wanted, job_of=lambda text: text.job):
            if isinstance(found, Exception):
                self._deliver([(text.job, found)])
            else:
                self._prepared.append((text, found))

    def _choose(self) -> list[tuple[_Text[Asked, Answer], Prepared[Load]]]:
        """The oldest text, and of its kind as many as fit into one batch with it. What nobody waits for any more is left out."""
        wanted = [each for each in self._prepared if each[0].job.is_wanted]
        batch: list[tuple[_Text[Asked, Answer], Prepared[Load]]] = []
        rest: list[tuple[_Text[Asked, Answer], Prepared[Load]]] = []
        size = 0
        for text, prepared in wanted:
            if not batch or (prepared.kind == wanted[0][1].kind and size + prepared.size <= self._capacity):
                batch.append((text, prepared))
                size += prepared.size
            else:
                rest.append((text, prepared))
        self._prepared = rest
        return batch

    def _answer_those_of(self, batch: Sequence[tuple[_Text[Asked, Answer], Prepared[Load]]]) -> None:
        def work(texts: Sequence[tuple[_Text[Asked, Answer], Prepared[Load]]]) -> list[Answer]:
            return self._work([prepared.load for _, prepared in texts])

        outcomes: list[tuple[_Job[Asked, Answer], list[Answer] | Exception]] = []
        for (text, _), found in _tried(work, batch, job_of=lambda each: each[0].job):
            job = text.job
            if isinstance(found, Exception):
                outcomes.append((job, found))
                continue
            job.answers[text.number] = found
            if len(job.answers) == len(job.asked):
                outcomes.append((job, [job.answers[number] for number in range(len(job.asked))]))
        self._deliver(outcomes)

    def _deliver(self, outcomes: list[tuple[_Job[Asked, Answer], list[Answer] | Exception]]) -> None:
        def settle(start: int) -> None:
            for job, outcome in outcomes[start : start + AT_ONCE]:
                if job.future.done():
                    continue  # its waiter has gone, or knows of another part that failed
                if isinstance(outcome, Exception):
                    job.future.set_exception(outcome)
                else:
                    job.future.set_result(outcome)
            if start + AT_ONCE < len(outcomes):
                asyncio.get_running_loop().call_soon(settle, start + AT_ONCE)

        for job, _ in outcomes:
            job.is_over = True
        if outcomes:
            self._on_loop(settle, 0)

    def _on_loop(self, callback: Callable[..., object], *arguments: object) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: a worker hung until nobody waited any more
                self._loop.call_soon_threadsafe(callback, *arguments)


def _tried(
    do: Callable[[Sequence[Each]], list[Found]], these: Sequence[Each], job_of: Callable[[Each], Hashable]
) -> list[tuple[Each, Found | Exception]]:
    """What `do` finds for each; where it raises, each job's alone, so that only the culprit has to pay."""
    try:
        found = do(these) if these else []
    except Exception as error:  # noqa: BLE001  the waiters get it; a worker that dies of one request would fail them all
        jobs = [list(group) for _, group in itertools.groupby(these, job_of)]
        if len(jobs) == 1:
            return [(each, error) for each in these]
        return [outcome for group in jobs for outcome in _tried(do, group, job_of)]
    return list(zip(these, found, strict=True))
