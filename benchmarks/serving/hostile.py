"""Clients that mean no good: sockets that never finish a request, and requests that nobody should send.

    uv run --group load python -m benchmarks.serving.hostile bundle=URL

First a real server is held by `sockets` connections that send nothing, half a head or half a body, while 20 normal questions a
second are asked: all have to be closed within 15 s, and p99 of the normal ones has to stay under twice what it was. The server
has the first core; who holds it is a process of its own that gives way to the one that asks. Then come generated requests:
schemathesis by the OpenAPI document, hypothesis, and mutants of the corpus of the tests. Whatever is sent: no 5xx, refusals as
problem+json of at most 4 KB, no stall of the event loop over 100 ms. No more texts are on their way at one time than the queue
takes: what is asked here is what an input can do, and benchmarks/serving/overload.py asks what too many can. Prints one JSON
object; exit code 4 where one of these is not so.
"""

import asyncio
import contextlib
import itertools
import json
import os
import random
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.serving.hostile_requests import by_hypothesis, by_schemathesis, corpus, mutants, quoted
from benchmarks.serving.overload import REQUESTS, stalls_over
from benchmarks.serving.served import Connection, Served, percentile, served
from tqdm import tqdm

from pigeonhole.command import command, say, with_help
from pigeonhole.errors import ConfigError, GateError
from pigeonhole.options import read_options, setting

NORMAL_PER_S = 20
CLOSED_WITHIN_S = 15.0
AT_ONCE = 64
MAX_TEXTS = 256  # of one request
MANY_TEXTS = 8
ON_THEIR_WAY = 512  # texts at one time: half of what may wait
PATIENCE_S = 0.25  # a request that the server still waits for the rest of
LONG_S = 15.0  # as much for one with many texts: it is answered, or 408, before its texts count as done
UNFINISHED = [
    b"",
    b"POST /predict HTT",
    b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 20\r\n\r\n{",
]


@dataclass(frozen=True)
class Options:
    bundle: str | None = setting(None, "the bundle's URL")
    sockets: int = setting(10_000, "that never finish a request", ge=1)
    requests: int = setting(100_000, "generated ones", ge=1)
    seed: int = setting(0, "of the generated requests", ge=0)


@with_help(__doc__, Options)
def run(arguments: list[str]) -> dict[str, Any]:
    options = read_options(Options, arguments)
    if options.bundle is None:
        raise ConfigError("bundle=URL is needed; see --help")
    with tempfile.TemporaryDirectory() as folder:
        environment = {"PIGEONHOLE_BUNDLE": options.bundle, "PIGEONHOLE_TEXT": "none", "OMP_NUM_THREADS": "1"}
        with served(Path(folder), "0", **environment) as server:
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
            slow = asyncio.run(hold(server, options.sockets))
            say(json.dumps(slow))
            stalls = stalls_over(server.scrape(), "0.1")
            generated = requests_for(server, options.requests, options.seed)
            sent = asyncio.run(send_all(server.port, generated))
            sent["stalls_over_100_ms"] = stalls_over(server.scrape(), "0.1") - stalls
    found = {"slow_sockets": slow, "requests": sent, "load_average": round(os.getloadavg()[0], 2)}
    missed = misses(found)
    if missed:
        raise GateError("; ".join(missed), found)
    return found


def misses(found: dict[str, Any]) -> list[str]:
    """What of the promise was not kept."""
    slow, sent = found["slow_sockets"], found["requests"]
    kept = {
        "a slow socket stayed open": slow["closed_after_s"] is not None and slow["closed_after_s"] <= CLOSED_WITHIN_S,
        "normal questions took twice as long": slow["normal_p99_ms"] < 2 * slow["normal_p99_ms_before"],
        "a normal question failed": slow["normal_failed"] == 0,
        "memory grew by more than 100 MB": slow["grown_mb"] <= 100,
        "a request was answered 5xx": sent["5xx"] == 0,
        "a refusal was none": sent["odd"] == [],
        "the event loop stalled": sent["stalls_over_100_ms"] == 0,
    }
    return [miss for miss, true in kept.items() if not true]


async def hold(server: Served, sockets: int) -> dict[str, Any]:
    """Normal questions alone, then beside `sockets` that never finish."""
    before = await normal(server.port, 8.0)
    resident_mb = server.resident_mb()
    program = f"from benchmarks.serving.hostile import hold_open; hold_open({server.port}, {sockets})"
    slow = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    beside = await normal(server.port, CLOSED_WITHIN_S)
    opened_in_s, closed_after_s = json.loads((await slow.communicate())[0])
    return {
        "sockets": sockets,
        "opened_in_s": round(opened_in_s, 2),
        "closed_after_s": None if closed_after_s is None else round(closed_after_s, 2),
        "normal_p99_ms_before": round(percentile(before[0], 0.99), 2),
        "normal_p99_ms": round(percentile(beside[0], 0.99), 2),
        "normal_failed": before[1] + beside[1],
        "grown_mb": round(server.resident_mb() - resident_mb, 1),
    }


async def normal(port: int, seconds: float) -> tuple[list[float], int]:
    """Milliseconds of each question, and how many failed."""
    connection = await Connection.open(port)
    took: list[float] = []
    failed = 0
    for number in range(int(seconds * NORMAL_PER_S)):
        reply = await connection.ask(REQUESTS[number % len(REQUESTS)])
        took.append(1000 * (reply.ended - reply.began))
        failed += reply.status != 200
        await asyncio.sleep(max(0.0, 1 / NORMAL_PER_S - took[-1] / 1000))
    connection.close()
    return took, failed


def hold_open(port: int, sockets: int) -> None:
    """In a process of its own, that gives way to all others: prints what `open_and_wait` found."""
    os.nice(19)
    print(json.dumps(asyncio.run(open_and_wait(port, sockets))))


class Unfinished(asyncio.Protocol):
    """Sends the beginning of a request, and waits until it is closed."""

    def __init__(self, beginning: bytes) -> None:
        self._beginning = beginning
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._beginning)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)


async def open_and_wait(port: int, sockets: int) -> tuple[float, float | None]:
    """Seconds until all are open, and from then until all are closed (None: not all were)."""
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    protocols: list[Unfinished] = []
    for start in range(0, sockets, 250):
        beginnings = [UNFINISHED[number % len(UNFINISHED)] for number in range(start, min(sockets, start + 250))]
        opened = await asyncio.gather(
            *(loop.create_connection(partial(Unfinished, beginning), "127.0.0.1", port) for beginning in beginnings)
        )
        protocols += [protocol for _, protocol in opened]
    all_open = time.perf_counter()
    try:
        async with asyncio.timeout(2 * CLOSED_WITHIN_S):
            await asyncio.gather(*(protocol.closed for protocol in protocols))
    except TimeoutError:
        return all_open - began, None
    return all_open - began, time.perf_counter() - all_open


def requests_for(server: Served, count: int, seed: int) -> Iterable[bytes]:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/openapi.json", timeout=20) as answer:
        document = json.load(answer)
    say("generating requests, some minutes for 100,000")
    told = by_schemathesis(document, min(12_000, count // 4), seed)
    drawn = by_hypothesis(min(12_000, count // 4), seed)
    known = corpus()
    say(f"{len(told)} by schemathesis, {len(drawn)} by hypothesis, {len(known)} known, the rest mutants of these")
    rest = count - len(told) - len(drawn) - len(known)
    return itertools.chain(told, drawn, known, itertools.islice(mutants(random.Random(seed)), max(0, rest)))


async def send_all(port: int, requests: Iterable[bytes]) -> dict[str, Any]:
    """Each on a connection of its own, AT_ONCE together, with ON_THEIR_WAY texts in them at most."""
    allowance = Allowance(ON_THEIR_WAY)
    statuses: Counter[str] = Counter()
    odd: list[str] = []
    waiting = iter(tqdm(requests, desc="requests", unit="request", mininterval=1))

    async def send_next() -> None:
        for request in waiting:
            texts = texts_in(request)
            async with allowance.of(texts):
                answer = await send(port, request, PATIENCE_S if texts <= MANY_TEXTS else LONG_S)
            statuses[answer[9:12].decode() if answer else "no answer yet"] += 1
            fault = fault_of(answer)
            if fault and len(odd) < 20:
                odd.append(f"{fault}: {quoted(request)}")

    began = time.perf_counter()
    await asyncio.gather(*(send_next() for _ in range(AT_ONCE)))
    return {
        "sent": sum(statuses.values()),
        "per_s": round(sum(statuses.values()) / (time.perf_counter() - began)),
        "statuses": dict(sorted(statuses.items())),
        "5xx": sum(count for status, count in statuses.items() if status.startswith("5")),
        "odd": odd,
    }


class Allowance:
    """So many texts at one time."""

    def __init__(self, texts: int) -> None:
        self._left = texts
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def of(self, texts: int) -> AsyncIterator[None]:
        async with self._changed:
            await self._changed.wait_for(lambda: self._left >= texts)
            self._left -= texts
        try:
            yield
        finally:
            async with self._changed:
                self._left += texts
                self._changed.notify_all()


def texts_in(request: bytes) -> int:
    """At most: each has two quotes, and an explanation asks again without each word."""
    return min(MAX_TEXTS, max(1, request.count(b'"') // 2, 65 if b"/explain" in request[:64] else 1))


async def send(port: int, request: bytes, patience_s: float = PATIENCE_S) -> bytes:
    """What comes back until the first answer is whole; nothing where the server waits for more, or closes without a word."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    found = b""
    with contextlib.suppress(TimeoutError, ConnectionError):
        writer.write(request)
        while not is_whole(found, request):
            async with asyncio.timeout(patience_s if not found else 5.0):
                part = await reader.read(65536)
            if not part:
                break
            found += part
    writer.transport.abort()
    return found.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")


def is_whole(answer: bytes, request: bytes) -> bool:
    """The answer to a HEAD has the length of a body that does not come."""
    head, found, body = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n").partition(b"\r\n\r\n")
    length = head.lower().partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0]
    return bool(found) and (request.startswith(b"HEAD ") or len(body) >= int(length or 0))


def fault_of(answer: bytes) -> str | None:
    """What is wrong with an answer, whatever was asked."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status = head[9:12]
    if b"HTTP/1.1 5" in answer:
        return f"5xx ({head[:40].decode('latin-1')})"
    if status < b"400":
        return None
    if len(body.partition(b"HTTP/1.1 ")[0]) > 4096:
        return "a refusal of more than 4 KB"
    if b"application/problem+json" not in head:
        return "a refusal that is no problem+json"
    return "a stack" if b"Traceback" in body or b".py" in body else None


if __name__ == "__main__":
    command(run)()
