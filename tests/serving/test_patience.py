import asyncio

import pytest

from pigeonhole.serving import patience
from pigeonhole.serving.patience import Patience


class Loop(asyncio.SelectorEventLoop):
    """With a clock that goes on when it is told to."""

    now = 0.0

    def time(self) -> float:
        return self.now

    async def passes(self, seconds: float) -> None:
        self.now += seconds
        for _ in range(2):  # what is due rings behind who waits here
            await asyncio.sleep(0)


def test_who_is_waited_for_too_long_is_given_up_and_nobody_else() -> None:
    loop = Loop()

    async def wait() -> list[str]:
        found: list[str] = []
        some = Patience(0.05, found.append)
        some.begin("a")
        some.begin("b")
        some.end("b")
        some.end("never begun")
        await loop.passes(0.03)
        some.begin("c")
        some.begin("a")  # keeps its clock
        await loop.passes(0.03)
        assert found == ["a"]
        await loop.passes(0.05)
        assert found == ["a", "c"]
        some.begin("a")
        await loop.passes(0.1)
        return found

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        assert runner.run(wait()) == ["a", "c", "a"]


def test_many_are_given_up_at_a_pace_and_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "AT_ONCE", 10)
    loop = Loop()

    async def wait() -> list[list[int]]:
        found: list[int] = []
        some = Patience(1.0, found.append)
        for number in range(25):
            some.begin(number)
        await loop.passes(1.0)
        turns = [found.copy()]
        for _ in range(2):
            await loop.passes(patience.PAUSE_S / 2)  # too early
            await loop.passes(patience.PAUSE_S / 2)
            turns.append(found.copy())
        return turns

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        assert runner.run(wait()) == [list(range(10)), list(range(20)), list(range(25))]
