import asyncio
import itertools
import threading
import time
from collections.abc import Sequence

import pytest

from pigeonhole.serving.batcher import (
    AT_ONCE,
    BATCH_TEXTS,
    CROWD,
    LONG_TURN_S,
    Batcher,
    DeadError,
    LateError,
    OverloadedError,
    StoppedError,
)


class Work:
    """Doubles numbers and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.let_go = threading.Event()
        self.entered = threading.Event()

    def __call__(self, asked: Sequence[int]) -> list[int]:
        self.batches.append(list(asked))
        self.entered.set()
        assert self.let_go.wait(60)
        return [2 * number for number in asked]


async def busy(work: Work, max_waiting: int, asked: int) -> tuple[Batcher[int, int], asyncio.Task[list[int]]]:
    """One that has begun with its first question, and that question."""
    batcher = Batcher(work, max_waiting)
    batcher.start()
    first = asyncio.create_task(batcher.ask([asked], soon()))
    await asyncio.to_thread(work.entered.wait)
    return batcher, first


def soon() -> float:
    return time.monotonic() + 60


async def queued(batcher: Batcher[int, int], texts: int) -> None:
    async with asyncio.timeout(60):
        while batcher.waiting_texts != texts:  # noqa: ASYNC110  the batcher has no event for its tests
            await asyncio.sleep(0.001)


def test_what_has_queued_while_a_batch_ran_is_the_next_batch() -> None:
    work = Work()

    async def ask() -> list[list[int]]:
        batcher, first = await busy(work, max_waiting=100, asked=1)
        others = [asyncio.create_task(batcher.ask([number, -number], soon())) for number in (2, 3, 4)]
        await queued(batcher, 6)
        work.let_go.set()
        answers = await asyncio.gather(first, *others)
        await batcher.stop()
        return answers

    assert asyncio.run(ask()) == [[2], [4, -4], [6, -6], [8, -8]]
    assert work.batches == [[1], [2, -2, 3, -3, 4, -4]]


def test_a_large_question_is_cut_into_batches_and_put_together_again() -> None:
    work = Work()
    work.let_go.set()
    numbers = list(range(3 * BATCH_TEXTS + 5))

    async def ask() -> list[int]:
        batcher = Batcher(work, max_waiting=1000)
        batcher.start()
        answers = await batcher.ask(numbers, soon())
        await batcher.stop()
        return answers

    assert asyncio.run(ask()) == [2 * number for number in numbers]
    assert [len(batch) for batch in work.batches] == [BATCH_TEXTS] * 3 + [5]


def test_beyond_the_bound_a_question_is_refused_and_the_others_are_not_hurt() -> None:
    work = Work()

    async def ask() -> list[list[int]]:
        batcher, first = await busy(work, max_waiting=3, asked=1)
        second = asyncio.create_task(batcher.ask([2, 3], soon()))
        await queued(batcher, 2)
        with pytest.raises(OverloadedError):
            await batcher.ask([4, 5], soon())
        third = asyncio.create_task(batcher.ask([6], soon()))
        await queued(batcher, 3)
        work.let_go.set()
        answers = await asyncio.gather(first, second, third)
        assert batcher.waiting_texts == 0
        await batcher.stop()
        return list(answers)

    assert asyncio.run(ask()) == [[2], [4, 6], [12]]


def test_a_question_past_its_deadline_is_not_worked_on() -> None:
    work = Work()

    async def ask() -> None:
        batcher, first = await busy(work, max_waiting=100, asked=1)
        second = asyncio.create_task(batcher.ask([2], soon()))
        await queued(batcher, 1)
        with pytest.raises(LateError):
            await batcher.ask([3], time.monotonic() + 0.01)
        with pytest.raises(LateError):
            await batcher.ask([4], time.monotonic() - 1)
        work.let_go.set()
        assert (await first, await second) == ([2], [4])
        await batcher.stop()

    asyncio.run(ask())
    assert work.batches == [[1], [2]]


def test_each_who_waits_is_told_in_time_that_its_own_deadline_has_passed() -> None:
    work = Work()

    async def ask() -> tuple[list[float], float]:
        batcher, first = await busy(work, max_waiting=100, asked=1)
        second = asyncio.create_task(batcher.ask([2], soon()))
        await queued(batcher, 1)
        late: list[float] = []

        async def wait(patience_s: float) -> None:
            deadline = time.monotonic() + patience_s
            with pytest.raises(LateError):
                await batcher.ask([3], deadline)
            assert time.monotonic() >= deadline
            late.append(patience_s)

        began = time.monotonic()
        await asyncio.gather(*(wait(patience_s) for patience_s in (0.2, 0.05, 0.1, 0.051, 0.15)))
        took = time.monotonic() - began
        work.let_go.set()
        assert (await first, await second) == ([2], [4])
        await batcher.stop()
        return late, took

    late, took = asyncio.run(ask())
    assert late == sorted(late)
    assert took < 2  # and not with the last question's ten seconds


def test_a_question_that_finds_nobody_waiting_is_answered_however_short_its_deadline() -> None:
    work = Work()
    work.let_go.set()
    many = list(range(3 * BATCH_TEXTS))

    async def ask() -> tuple[list[int], list[int]]:
        batcher = Batcher(work, max_waiting=1000)
        batcher.start()
        answers = await batcher.ask([1], time.monotonic()), await batcher.ask(many, time.monotonic())
        await batcher.stop()
        return answers

    assert asyncio.run(ask()) == ([2], [2 * number for number in many])


def test_who_is_next_does_not_wait_for_ever_for_a_batch_that_hangs() -> None:
    work = Work()

    async def ask() -> None:
        batcher, first = await busy(work, max_waiting=100, asked=1)
        with pytest.raises(LateError):
            await batcher.ask([2], time.monotonic())
        work.let_go.set()
        await first
        await batcher.stop()

    asyncio.run(ask())
    assert work.batches == [[1]]


def test_stopping_answers_what_waits_and_refuses_what_comes_after() -> None:
    work = Work()

    async def ask() -> None:
        batcher = Batcher(work, max_waiting=100)
        batcher.start()
        waiting = [asyncio.create_task(batcher.ask([number], soon())) for number in range(5)]
        await asyncio.to_thread(work.entered.wait)
        stopping = asyncio.create_task(batcher.stop())
        await asyncio.sleep(0.01)
        with pytest.raises(StoppedError):
            await batcher.ask([9], soon())
        work.let_go.set()
        await stopping
        assert await asyncio.gather(*waiting) == [[0], [2], [4], [6], [8]]
        assert not batcher.alive

    asyncio.run(ask())


def test_an_error_is_raised_to_the_one_who_caused_it() -> None:
    def invert(asked: Sequence[int]) -> list[int]:
        return [1 // number for number in asked]

    async def ask() -> list[list[int] | BaseException]:
        batcher = Batcher(invert, max_waiting=100)
        batcher.start()
        answers = await asyncio.gather(*(batcher.ask([number], soon()) for number in (1, 0, -1)), return_exceptions=True)
        await batcher.stop()
        return answers

    one, error, minus_one = asyncio.run(ask())
    assert (one, minus_one) == ([1], [-1])
    assert isinstance(error, ZeroDivisionError)


def test_of_a_batch_that_failed_who_has_gone_meanwhile_is_not_worked_on_again() -> None:
    """A store that hangs for a deadline would hang for one more with each of them."""

    class Failing(Work):
        def __call__(self, asked: Sequence[int]) -> list[int]:
            answers = super().__call__(asked)
            if 2 in asked:
                time.sleep(max(0.0, late - time.monotonic()) + 0.1)
                raise ValueError
            return answers

    work = Failing()

    async def ask() -> list[list[int] | BaseException]:
        batcher, first = await busy(work, max_waiting=100, asked=1)
        deadlines = {2: late, 3: late, 4: soon()}
        others = [asyncio.create_task(batcher.ask([number], deadline)) for number, deadline in deadlines.items()]
        await queued(batcher, 3)
        work.let_go.set()
        answers = await asyncio.gather(first, *others, return_exceptions=True)
        await batcher.stop()
        return answers

    late = time.monotonic() + 1
    one, two, three, four = asyncio.run(ask())
    assert (one, four) == ([2], [8])
    assert isinstance(two, LateError)
    assert isinstance(three, LateError)
    assert work.batches == [[1], [2, 3, 4], [4]]


def test_the_answers_of_a_batch_leave_the_event_loop_room_for_others() -> None:
    work = Work()

    async def ask() -> list[int]:
        batcher, first = await busy(work, max_waiting=100, asked=0)
        others = [asyncio.create_task(batcher.ask([number], soon())) for number in range(BATCH_TEXTS)]
        await queued(batcher, len(others))
        turns: list[int] = []

        def look() -> None:
            turns.append(sum(task.done() for task in others))
            if turns[-1] < len(others):
                asyncio.get_running_loop().call_soon(look)

        look()
        work.let_go.set()
        await asyncio.gather(first, *others)
        await batcher.stop()
        return turns

    turns = asyncio.run(ask())
    assert max(after - before for before, after in itertools.pairwise(turns)) <= AT_ONCE


def test_in_a_crowd_the_loop_gets_through_its_turns_before_the_next_batch_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pigeonhole.serving.batcher.GIVE_WAY_S", 5.0)
    work = Work()
    turns: list[int] = []  # batches begun, turn by turn of the loop while it is busy

    async def ask() -> None:
        batcher, first = await busy(work, max_waiting=1000, asked=0)
        others = [asyncio.create_task(batcher.ask([number], soon())) for number in range(CROWD + BATCH_TEXTS)]
        await queued(batcher, len(others))
        work.let_go.set()
        while len(turns) < 4:
            time.sleep(2 * LONG_TURN_S)  # noqa: ASYNC251  what keeps a loop busy
            if first.done():
                turns.append(len(work.batches))
            await asyncio.sleep(0)
        await asyncio.gather(*others)
        await batcher.stop()

    asyncio.run(ask())
    assert turns == [1, 1, 1, 1]
    assert len(work.batches) == 6


def test_a_loop_that_never_catches_up_does_not_keep_the_next_batch_from_beginning() -> None:
    work = Work()
    work.let_go.set()

    async def ask() -> None:
        batcher = Batcher(work, max_waiting=1000)
        batcher.start()
        answers = asyncio.gather(*(batcher.ask([number], soon()) for number in range(CROWD + BATCH_TEXTS)))
        while not answers.done():
            time.sleep(2 * LONG_TURN_S)  # noqa: ASYNC251  what keeps a loop busy
            await asyncio.sleep(0)
        await batcher.stop()

    asyncio.run(ask())
    assert sum(map(len, work.batches)) == CROWD + BATCH_TEXTS


def test_a_batch_is_cut_by_what_its_texts_weigh() -> None:
    work = Work()
    most = BATCH_TEXTS

    async def ask() -> list[list[int]]:
        batcher = Batcher(work, max_waiting=1000, weigh=lambda number: number)
        batcher.start()
        first = asyncio.create_task(batcher.ask([1], soon()))
        await asyncio.to_thread(work.entered.wait)
        heavy = asyncio.create_task(batcher.ask([most, 2 * most, most - 1, 1, 1], soon()))
        await queued(batcher, 5)
        light = asyncio.create_task(batcher.ask([1, 2], soon()))
        await queued(batcher, 7)
        work.let_go.set()
        answers = await asyncio.gather(first, heavy, light)
        await batcher.stop()
        return list(answers)

    assert asyncio.run(ask()) == [[2], [2 * most, 4 * most, 2 * most - 2, 2, 2], [2, 4]]
    assert work.batches == [[1], [most], [2 * most], [most - 1, 1], [1, 1, 2]]


def test_a_worker_that_has_nothing_to_do_is_not_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work()

    async def ask() -> tuple[bool, bool]:
        batcher, first = await busy(work, max_waiting=100, asked=1)
        await asyncio.sleep(0.1)
        in_a_batch = batcher.alive
        work.let_go.set()
        await first
        await asyncio.sleep(0.1)
        idle = batcher.alive
        await batcher.stop()
        return in_a_batch, idle

    monkeypatch.setattr("pigeonhole.serving.batcher.STUCK_S", 0.05)
    assert asyncio.run(ask()) == (False, True)


def test_who_waited_for_a_worker_that_died_is_counted_as_waiting_no_more() -> None:
    work = Work()
    watched: list[int] = []

    def die(asked: Sequence[int]) -> list[int]:
        work(asked)
        raise SystemExit

    async def ask() -> list[BaseException | list[int]]:
        batcher = Batcher(die, max_waiting=100, watch=watched.append)
        batcher.start()
        first = asyncio.create_task(batcher.ask([1], soon()))
        await asyncio.to_thread(work.entered.wait)
        second = asyncio.create_task(batcher.ask([2, 3], soon()))
        await queued(batcher, 2)
        work.let_go.set()
        return list(await asyncio.gather(first, second, return_exceptions=True))

    assert [type(told) for told in asyncio.run(ask())] == [DeadError, DeadError]
    assert sum(watched) == 0
