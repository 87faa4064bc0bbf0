import asyncio
import time

import pytest

from pigeonhole.serving import patience
from pigeonhole.serving.patience import Patience


def test_who_is_waited_for_too_long_is_given_up_and_nobody_else() -> None:
    async def wait() -> list[str]:
        found: list[str] = []
        some = Patience(0.05, found.append)
        some.begin("a")
        some.begin("b")
        some.end("b")
        some.end("never begun")
        await asyncio.sleep(0.03)
        some.begin("c")
        some.begin("a")  # keeps its clock
        await asyncio.sleep(0.03)
        assert found == ["a"]
        await asyncio.sleep(0.05)
        some.begin("a")
        await asyncio.sleep(0.1)
        return found

    assert asyncio.run(wait()) == ["a", "c", "a"]


def test_many_are_given_up_at_a_pace_and_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "AT_ONCE", 10)

    async def wait() -> list[list[int]]:
        turns: list[list[int]] = [[]]

        def give_up(number: int) -> None:
            turns[-1].append(number)

        some = Patience(0.01, give_up)
        for number in range(25):
            some.begin(number)
        time.sleep(0.02)  # noqa: ASYNC251  all are due in the next turn
        while sum(map(len, turns)) < 25:
            if turns[-1]:
                turns.append([])
            await asyncio.sleep(0)
        return [turn for turn in turns if turn]

    assert asyncio.run(wait()) == [list(range(10)), list(range(10, 20)), list(range(20, 25))]
