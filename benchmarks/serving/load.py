"""One client of a server: `python load.py`, told by a JSON object on stdin, answers with one on stdout.

`closed`: as many connections as asked, each sending its next text when it has the answer. `open`: so many requests a second at
moments that do not wait for answers; a latency is counted from the moment at which its request was due. What is not answered with
a label is a failure: its latency and its place in the rate do not count.
"""

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp

WARM_UP_S = 1.0

Post = Callable[[], Awaitable[bool]]  # whether a label came back


async def measure(told: dict[str, Any]) -> dict[str, Any]:
    bodies = itertools.cycle([json.dumps(body).encode() for body in told["bodies"]])
    answered = failures = 0
    connector = aiohttp.TCPConnector(limit=told.get("connections", 64))
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

        async def post() -> bool:
            nonlocal answered, failures
            async with session.post(told["url"], data=next(bodies), headers={"content-type": "application/json"}) as answer:
                body = await answer.read()
                answered += 1
                is_right = answer.status == 200 and b"label" in body
                failures += not is_right
                return is_right

        latencies, seconds = await (_closed if "connections" in told else _open)(post, told)
    if not latencies:
        sys.exit(f"no right answer in {seconds:g} s; {failures} of {answered} were failures")
    latencies.sort()
    return {
        "answered": answered,  # in the warm-up too
        "requests": len(latencies),
        "failures": failures,
        "requests_per_s": round(len(latencies) / seconds, 1),
        "p50_ms": round(1000 * latencies[len(latencies) // 2], 2),
        "p99_ms": round(1000 * latencies[int(len(latencies) * 0.99)], 2),
    }


async def _closed(post: Post, told: dict[str, Any]) -> tuple[list[float], float]:
    began = time.perf_counter() + WARM_UP_S
    ends = began + told["seconds"]
    latencies: list[float] = []

    async def connection() -> None:
        while (sent := time.perf_counter()) < ends:
            is_right = await post()
            answered = time.perf_counter()
            if is_right and began <= answered < ends:
                latencies.append(answered - sent)

    await asyncio.gather(*(connection() for _ in range(told["connections"])))
    return latencies, told["seconds"]


async def _open(post: Post, told: dict[str, Any]) -> tuple[list[float], float]:
    began = time.perf_counter() + 0.1
    latencies: list[float] = []

    async def request(due: float) -> None:
        await asyncio.sleep(due - time.perf_counter())
        if await post():
            latencies.append(time.perf_counter() - due)

    count = int(told["per_s"] * told["seconds"])
    await asyncio.gather(*(request(began + number / told["per_s"]) for number in range(count)))
    return latencies, told["seconds"]


if __name__ == "__main__":
    json.dump(asyncio.run(measure(json.load(sys.stdin))), sys.stdout)
