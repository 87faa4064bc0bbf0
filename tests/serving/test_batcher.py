import asyncio
import itertools
import threading
import time
from collections.abc import Sequence

import pytest

from pigeonhole.serving.batcher import AT_ONCE, PREPARED_TEXTS, Batcher, LateError, OverloadedError, Prepared, StoppedError

CAPACITY = 32


class Work:
    """Doubles numbers and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.let_go = threading.Event()
        self.entered = threading.Event()

    def __call__(self, asked: Sequence[int]) -> list[int]:
        self.batches.append(list(asked))
        self.entered.set()
        assert self.let_go.wait(10)
        return [2 * number for number in asked]


def of_one_kind(asked: Sequence[int]) -> list[Prepared[int]]:
    return [Prepared(number, kind="number", size=1) for number in asked]


def by_thousands(asked: Sequence[int]) -> list[Prepared[int]]:
    """12 and 15 are of a kind and 1012 is of another, of sizes 12, 15 and 12."""
    return [Prepared(number, kind=number // 1000, size=number % 1000) for number in asked]


def soon() -> float:
    return time.monotonic() + 10


async def queued(batcher: Batcher[int, int, int], texts: int) -> None:
    while batcher.waiting_texts != texts:  # noqa: ASYNC110  the batcher has no event for its tests
        await asyncio.sleep(0.001)


def test_what_has_queued_while_a_batch_ran_is_the_next_batch() -> None:
    work = Work()

    async def ask() -> list[list[int]]:
        batcher = Batcher(of_one_kind, work, CAPACITY, max_waiting=100)
        batcher.start()
        first = asyncio.create_task(batcher.ask([1], soon()))
        await asyncio.to_thread(work.entered.wait)
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
    numbers = list(range(3 * CAPACITY + 5))

    async def ask() -> list[int]:
        batcher = Batcher(of_one_kind, work, CAPACITY, max_waiting=1000)
        batcher.start()
        answers = await batcher.ask(numbers, soon())
        await batcher.stop()
        return answers

    assert asyncio.run(ask()) == [2 * number for number in numbers]
    assert [len(batch) for batch in work.batches] == [CAPACITY] * 3 + [5]


def test_a_batch_is_the_oldest_text_and_those_of_its_kind_that_fit() -> None:
    work = Work()

    async def ask() -> list[list[int]]:
        batcher = Batcher(by_thousands, work, CAPACITY, max_waiting=100)
        batcher.start()
        first = asyncio.create_task(batcher.ask([1], soon()))
        await asyncio.to_thread(work.entered.wait)
        questions = [[1012], [10, 1013], [20], [15, 40], [2]]
        others = [asyncio.create_task(batcher.ask(question, soon())) for question in questions]
        await queued(batcher, 7)
        work.let_go.set()
        answers = await asyncio.gather(first, *others)
        assert batcher.waiting_texts == 0
        await batcher.stop()
        return answers

    assert asyncio.run(ask()) == [[2], [2024], [20, 2026], [40], [30, 80], [4]]
    assert work.batches == [[1], [1012, 1013], [10, 20, 2], [15], [40]]


def test_a_question_of_two_kinds_fails_whole_and_the_rest_of_it_is_not_worked_on() -> None:
    seen: list[list[int]] = []

    def invert(asked: Sequence[int]) -> list[int]:
        seen.append(list(asked))
        return [1 // (number % 1000) for number in asked]

    async def ask() -> None:
        batcher = Batcher(by_thousands, invert, CAPACITY, max_waiting=100)
        batcher.start()
        with pytest.raises(ZeroDivisionError):
            await batcher.ask([1000, 1, 2001], soon())
        assert await batcher.ask([1], soon()) == [1]
        assert batcher.waiting_texts == 0
        await batcher.stop()

    asyncio.run(ask())
    assert seen == [[1000], [1]]


def test_what_cannot_be_prepared_is_its_askers_error_alone() -> None:
    entered, let_go = threading.Event(), threading.Event()

    def prepare(asked: Sequence[int]) -> list[Prepared[int]]:
        entered.set()
        assert let_go.wait(10)
        return [Prepared(1 // number, kind=0, size=1) for number in asked]

    async def ask() -> list[list[int] | BaseException]:
        batcher = Batcher(prepare, list, CAPACITY, max_waiting=100)
        batcher.start()
        first = asyncio.create_task(batcher.ask([1], soon()))
        await asyncio.to_thread(entered.wait)
        others = [asyncio.create_task(batcher.ask([number], soon())) for number in (1, 0, -1)]
        await queued(batcher, 4)
        let_go.set()
        answers = await asyncio.gather(first, *others, return_exceptions=True)
        await batcher.stop()
        return answers

    first, one, error, minus_one = asyncio.run(ask())
    assert (first, one, minus_one) == ([1], [1], [-1])
    assert isinstance(error, ZeroDivisionError)


def test_no_more_is_prepared_than_a_batch_is_chosen_from() -> None:
    prepared: list[int] = []
    work = Work()
    work.let_go.set()

    def prepare(asked: Sequence[int]) -> list[Prepared[int]]:
        prepared.append(len(asked))
        return of_one_kind(asked)

    async def ask() -> list[int]:
        batcher = Batcher(prepare, work, CAPACITY, max_waiting=1000)
        batcher.start()
        answers = await batcher.ask(range(2 * PREPARED_TEXTS), soon())
        await batcher.stop()
        return answers

    assert asyncio.run(ask()) == [2 * number for number in range(2 * PREPARED_TEXTS)]
    assert prepared == [PREPARED_TEXTS, *[CAPACITY] * (PREPARED_TEXTS // CAPACITY)]


def test_beyond_the_bound_a_question_is_refused_and_the_others_are_not_hurt() -> None:
    work = Work()

    async def ask() -> list[list[int]]:
        batcher = Batcher(of_one_kind, work, CAPACITY, max_waiting=3)
        batcher.start()
        first = asyncio.create_task(batcher.ask([1], soon()))
        await asyncio.to_thread(work.entered.wait)
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
        batcher = Batcher(of_one_kind, work, CAPACITY, max_waiting=100)
        batcher.start()
        first = asyncio.create_task(batcher.ask([1], soon()))
        await asyncio.to_thread(work.entered.wait)
        with pytest.raises(LateError):
            await batcher.ask([2], time.monotonic() + 0.01)
        with pytest.raises(LateError):
            await batcher.ask([3], time.monotonic() - 1)
        work.let_go.set()
        assert await first == [2]
        await batcher.stop()

    asyncio.run(ask())
    assert work.batches == [[1]]


def test_stopping_answers_what_waits_and_refuses_what_comes_after() -> None:
    work = Work()

    async def ask() -> None:
        batcher = Batcher(of_one_kind, work, CAPACITY, max_waiting=100)
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
        batcher = Batcher(of_one_kind, invert, CAPACITY, max_waiting=100)
        batcher.start()
        answers = await asyncio.gather(*(batcher.ask([number], soon()) for number in (1, 0, -1)), return_exceptions=True)
        await batcher.stop()
        return answers

    one, error, minus_one = asyncio.run(ask())
    assert (one, minus_one) == ([1], [-1])
    assert isinstance(error, ZeroDivisionError)


def test_the_answers_of_a_batch_leave_the_event_loop_room_for_others() -> None:
    work = Work()

    async def ask() -> list[int]:
        batcher = Batcher(of_one_kind, work, CAPACITY, max_waiting=100)
        batcher.start()
        first = asyncio.create_task(batcher.ask([0], soon()))
        await asyncio.to_thread(work.entered.wait)
        others = [asyncio.create_task(batcher.ask([number], soon())) for number in range(5 * AT_ONCE)]
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
