import asyncio
import contextlib
import errno
import socket
from collections.abc import Awaitable, Callable

import pytest

from pigeonhole.port import bind
from pigeonhole.serving import listener
from pigeonhole.serving.listener import AT_ONCE, Listener


class Took(list[asyncio.Transport]):
    """Who came."""

    def __init__(self) -> None:
        super().__init__()
        self._came = asyncio.Event()

    def add(self, transport: asyncio.Transport) -> None:
        self.append(transport)
        self._came.set()

    async def reach(self, count: int) -> None:
        while len(self) < count:
            self._came.clear()
            await self._came.wait()


class Greeting(asyncio.Protocol):
    """Says hello, and remembers who came."""

    def __init__(self, took: Took) -> None:
        self._took = took

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._took.add(transport)
        transport.write(b"hello")


def listening(connections: int, look: Callable[[Took], Awaitable[None]], in_haste: bool = False) -> None:
    """`look` runs beside a listener that so many connections have come to already; all are greeted in the end."""

    async def run(listens: socket.socket, came: list[socket.socket]) -> None:
        took = Took()
        taking = Listener(listens, lambda: Greeting(took), lambda: in_haste)
        await look(took)
        async with asyncio.timeout(10):
            await took.reach(connections)
        assert {one.recv(5) for one in came} == {b"hello"}
        await taking.close()
        for transport in took:
            transport.abort()

    with bind("127.0.0.1", 0) as listens, contextlib.ExitStack() as opened:
        listens.listen(2 * connections)
        address = listens.getsockname()
        came = [opened.enter_context(socket.create_connection(address, timeout=5)) for _ in range(connections)]
        asyncio.run(run(listens, came))


def test_after_a_burst_so_many_a_second_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "BURST", 2 * AT_ONCE)
    monkeypatch.setattr(listener, "PER_S", 20 * AT_ONCE)

    async def look(took: Took) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await took.reach(6 * AT_ONCE)
        assert loop.time() - began >= 3 / 20  # the last three groups wait for their turn, each a 20th of a second

    listening(6 * AT_ONCE, look)


def test_in_haste_all_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "BURST", AT_ONCE)
    monkeypatch.setattr(listener, "PER_S", AT_ONCE / 60)

    async def look(_: Took) -> None:  # within its ten seconds; the pace would take minutes
        pass

    listening(4 * AT_ONCE, look, in_haste=True)


def test_a_turn_of_the_loop_takes_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    async def look(took: Took) -> None:
        before = 0
        while len(took) < 5 * AT_ONCE:
            await asyncio.sleep(0)
            assert len(took) - before <= AT_ONCE
            before = len(took)

    listening(5 * AT_ONCE, look)


def test_where_no_file_can_be_opened_any_more_it_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listener, "FULL_S", 0.01)

    accept, errors = socket.socket.accept, [errno.EMFILE, errno.ECONNABORTED, errno.EMFILE]

    def fail(listens: socket.socket) -> tuple[socket.socket, object]:
        if errors:
            raise OSError(errors.pop(), "too many open files")
        return accept(listens)

    monkeypatch.setattr(socket.socket, "accept", fail)

    async def look(_: Took) -> None:
        pass

    listening(3, look)
    assert caplog.text.count("no connection can be taken: too many open files") == 2


@pytest.mark.parametrize("turns", range(6))
def test_who_comes_as_it_closes_is_taken_whatever_the_turn_of_the_loop(turns: int) -> None:
    async def run(listens: socket.socket, opened: contextlib.ExitStack) -> None:
        took = Took()
        taking = Listener(listens, lambda: Greeting(took), lambda: False)
        for _ in range(5):  # until it waits
            await asyncio.sleep(0)
        came = [opened.enter_context(socket.create_connection(listens.getsockname(), timeout=5)) for _ in range(3)]
        for _ in range(turns):
            await asyncio.sleep(0)
        await taking.close()
        assert len(took) == len(came)
        assert {one.recv(5) for one in came} == {b"hello"}
        for transport in took:
            transport.abort()

    with bind("127.0.0.1", 0) as listens, contextlib.ExitStack() as opened:
        listens.listen()
        asyncio.run(run(listens, opened))


def test_as_it_closes_where_no_file_can_be_opened_it_says_so_and_ends(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: socket.socket) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    async def run(listens: socket.socket) -> None:
        taking = Listener(listens, asyncio.Protocol, lambda: False)
        monkeypatch.setattr(socket.socket, "accept", fail)
        async with asyncio.timeout(5):
            await taking.close()

    with bind("127.0.0.1", 0) as listens:
        listens.listen()
        asyncio.run(run(listens))
    assert "connections are left in the kernel: too many open files" in caplog.text
