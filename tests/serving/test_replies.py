import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from pigeonhole.serving.problem import LATE_CODE, Problem, too_late
from pigeonhole.serving.replies import OVERHEAD_BYTES, Replies, Reply


def maker(made: list[int], size: int = 1) -> Callable[[], Awaitable[Reply]]:
    async def make() -> Reply:
        made.append(len(made))
        await asyncio.sleep(0.01)
        return Reply(bytes([made[-1]]) * size)

    return make


def test_the_same_request_is_answered_once_even_while_it_is_being_answered() -> None:
    async def ask() -> list[Reply]:
        replies = Replies()
        both = await asyncio.gather(*(replies.once("k", b"f", maker(made)) for _ in range(5)))
        return [*both, await replies.once("k", b"f", maker(made))]

    made: list[int] = []
    assert asyncio.run(ask()) == [Reply(b"\0")] * 6
    assert made == [0]


def test_another_request_with_the_same_key_is_refused() -> None:
    async def ask() -> None:
        replies = Replies()
        await replies.once("k", b"f", maker([]))
        with pytest.raises(Problem) as refused:
            await replies.once("k", b"g", maker([]))
        assert (refused.value.status, refused.value.code) == (422, "idempotency_key_reused")

    asyncio.run(ask())


def test_a_failure_is_told_to_all_who_wait_and_is_not_kept() -> None:
    async def fail() -> Reply:
        await asyncio.sleep(0.01)
        raise Problem(503, "overloaded")

    async def ask() -> Reply:
        replies = Replies()
        failed = await asyncio.gather(*(replies.once("k", b"f", fail) for _ in range(3)), return_exceptions=True)
        assert [error.code for error in failed if isinstance(error, Problem)] == ["overloaded"] * 3
        return await replies.once("k", b"f", maker([]))

    assert asyncio.run(ask()) == Reply(b"\0")


def test_a_first_request_that_is_cut_off_leaves_nobody_waiting() -> None:
    async def ask() -> None:
        replies = Replies()
        first = asyncio.create_task(replies.once("k", b"f", maker([])))
        await asyncio.sleep(0)
        second = asyncio.create_task(replies.once("k", b"f", maker([])))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(Problem, match="cut_off"):
            await second

    asyncio.run(ask())


def test_replies_are_kept_for_a_while_and_up_to_a_size() -> None:
    async def ask() -> None:
        short = Replies(keep_s=0.05)
        await short.once("k", b"f", maker(made))
        await asyncio.sleep(0.06)
        assert await short.once("k", b"other", maker(made)) == Reply(b"\1")
        small = Replies(max_bytes=3 * (OVERHEAD_BYTES + 1000))
        for number in range(5):
            await small.once(str(number), b"f", maker(made, 1000))
        assert list(small._kept) == ["2", "3", "4"]
        assert small._size_bytes == 3 * (OVERHEAD_BYTES + 1000)

    made: list[int] = []
    asyncio.run(ask())


def test_a_reply_that_is_being_made_is_never_forgotten() -> None:
    async def ask() -> list[Reply]:
        replies = Replies(keep_s=0.0, max_bytes=1)
        return await asyncio.gather(*(replies.once("k", b"f", maker(made)) for _ in range(3)))

    made: list[int] = []
    assert asyncio.run(ask()) == [Reply(b"\0")] * 3
    assert made == [0]


def test_who_asks_again_waits_until_his_own_deadline_and_leaves_the_first_its_answer() -> None:
    async def slow() -> Reply:
        await asyncio.sleep(0.5)
        return Reply(b"slow", "none")

    async def ask() -> None:
        replies = Replies()
        first = asyncio.create_task(replies.once("k", b"f", slow))
        await asyncio.sleep(0)
        began = time.monotonic()
        with pytest.raises(Problem) as late:
            await replies.once("k", b"f", slow, until=began + 0.02)
        assert (late.value.status, late.value.code, late.value.headers) == (503, LATE_CODE, {"retry-after": "1"})
        assert time.monotonic() - began < 0.4
        assert await first == (b"slow", "none")
        assert await replies.once("k", b"f", slow, until=began) == (b"slow", "none")  # it is there

    asyncio.run(ask())


def test_who_has_more_time_than_the_first_is_answered_though_the_first_was_late() -> None:
    async def late() -> Reply:
        await asyncio.sleep(0.01)
        raise too_late()

    async def ask() -> list[Reply]:
        replies = Replies()
        first = asyncio.create_task(replies.once("k", b"f", late))
        await asyncio.sleep(0)
        others = [replies.once("k", b"f", maker(made), until=time.monotonic() + 10) for _ in range(3)]
        found = await asyncio.gather(*others)
        with pytest.raises(Problem, match=LATE_CODE):
            await first
        return found

    made: list[int] = []
    assert asyncio.run(ask()) == [Reply(b"\0")] * 3
    assert made == [0]


def test_one_who_goes_while_he_waits_takes_the_reply_from_nobody() -> None:
    async def ask() -> list[Reply]:
        replies = Replies()
        first, second, third = (asyncio.create_task(replies.once("k", b"f", maker(made))) for _ in range(3))
        await asyncio.sleep(0.001)
        second.cancel()
        found = await asyncio.gather(first, third)
        assert second.cancelled()
        return [*found, await replies.once("k", b"f", maker(made))]

    made: list[int] = []
    assert asyncio.run(ask()) == [Reply(b"\0")] * 3
    assert made == [0]
