"""Four times more questions than the service can answer: what it still answers, how soon it refuses the rest, and after.

    uv run python -m benchmarks.serving.overload bundle=URL

First the capacity: 32 connections that ask as fast as they are answered. Then an open loop at `times` that rate, whatever comes
back; latencies count from when a question was due. Then single questions, until three running are answered within twice their
unloaded time. Prints one JSON object; exit code 4 where goodput is under 90 % of capacity, p99 of the accepted answers is after
the deadline, p99 of the refusals is over 10 ms, or recovery takes over 2 s.
"""

import asyncio
import itertools
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.serving.served import Connection, Reply, Served, cores_of, percentile, predict_request, served

from pigeonhole.command import command, say, with_help
from pigeonhole.errors import ConfigError, GateError, RunError
from pigeonhole.options import read_options, setting

DEADLINE_S = 10.0
CONNECTIONS = 32
TEXTS = [
    "Where is my parcel? It should have been here on Monday.",
    "I was charged twice for the same order",
    "Please cancel my subscription, I do not need it any more",
    "the lamp flickers since the last update and the app does not find it",
    "How do I change the address of my account?",
    "Do you have the big coffee machine in white?",
]
REQUESTS = [predict_request(text) for text in TEXTS]


@dataclass(frozen=True)
class Options:
    bundle: str | None = setting(None, "the bundle's URL")
    seconds: float = setting(20.0, "of the open loop, and half as many to find the capacity", ge=1)
    times: float = setting(4.0, "so many times the capacity is asked", gt=1)
    server_cores: str = setting("0", "as taskset has them")
    client_cores: str = setting("1", "their numbers, with commas between them")


@with_help(__doc__, Options)
def run(arguments: list[str]) -> dict[str, Any]:
    options = read_options(Options, arguments)
    if options.bundle is None:
        raise ConfigError("bundle=URL is needed; see --help")
    os.sched_setaffinity(0, cores_of(options.client_cores))
    with tempfile.TemporaryDirectory() as folder:
        environment = {"PIGEONHOLE_BUNDLE": options.bundle, "PIGEONHOLE_TEXT": "none", "OMP_NUM_THREADS": "1"}
        with served(Path(folder), options.server_cores, **environment) as server:
            found = asyncio.run(measure(server, options.seconds, options.times))
    found["load_average"] = round(os.getloadavg()[0], 2)
    missed = misses(found)
    if missed:
        raise GateError("; ".join(missed), found)
    return found


def misses(found: dict[str, Any]) -> list[str]:
    """What of the promise was not kept."""
    kept = {
        "goodput is under 90 % of capacity": found["goodput_of_capacity"] >= 0.9,
        "an accepted answer came after the deadline": found["accepted_p99_ms"] <= DEADLINE_S * 1000,
        "refusals take more than 10 ms": (found["refused_p99_ms"] or 0) <= 10,
        "back to normal only after more than 2 s": found["recovery_s"] <= 2,
        "statuses other than 200, 429, 503": set(found["statuses"]) <= {"200", "429", "503"},
    }
    return [miss for miss, true in kept.items() if not true]


async def measure(server: Served, seconds: float, times: float) -> dict[str, Any]:
    await closed_loop(server.port, 2.0)  # warm
    unloaded = statistics.median([reply.ended - reply.began for reply in await closed_loop(server.port, 2.0, 1)])
    cpu = [server.cpu_s()]
    peak = await closed_loop(server.port, seconds / 2)
    cpu.append(server.cpu_s())
    if failed := sum(reply.status != 200 for reply in peak):
        raise RunError(f"{failed} of {len(peak)} questions were not answered with 200: there is no capacity to go by")
    capacity = len(peak) / (peak[-1].ended - peak[0].began)
    say(f"capacity {capacity:.0f}/s; now {times * capacity:.0f}/s for {seconds:g} s")
    replies = await open_loop(server.port, times * capacity, seconds)
    cpu.append(server.cpu_s())
    recovery_s = await recovery(server.port, 2 * unloaded)
    accepted = [reply for reply in replies if reply.status == 200]
    took = sorted(1000 * (reply.ended - reply.began) for reply in accepted)
    refused = [1000 * (reply.ended - reply.began) for reply in replies if reply.status in (429, 503)]
    span_s = max(reply.ended for reply in replies) - min(reply.began for reply in replies)
    metrics = server.scrape()
    return {
        "capacity_per_s": round(capacity, 1),
        "offered_per_s": round(len(replies) / seconds, 1),
        "goodput_per_s": round(len(accepted) / span_s, 1),
        "goodput_of_capacity": round(len(accepted) / span_s / capacity, 3),
        "answers_per_cpu_s": [round(len(peak) / (cpu[1] - cpu[0]), 1), round(len(accepted) / (cpu[2] - cpu[1]), 1)],
        "statuses": {str(status): sum(reply.status == status for reply in replies) for status in {r.status for r in replies}},
        "unloaded_p50_ms": round(1000 * unloaded, 2),
        "accepted_p50_ms": round(percentile(took, 0.5), 1),
        "accepted_p99_ms": round(percentile(took, 0.99), 1),
        "refused_p50_ms": round(percentile(refused, 0.5), 2) if refused else None,
        "refused_p99_ms": round(percentile(refused, 0.99), 2) if refused else None,
        "recovery_s": round(recovery_s, 3),
        "stalls_over_100_ms": stalls_over(metrics, "0.1"),
        "resident_mb": round(server.resident_mb(), 1),
    }


def stalls_over(metrics: dict[str, float], bound_s: str) -> int:
    """How often the event loop was later than that."""
    name = "pigeonhole_event_loop_stall_seconds"
    return int(metrics[f"{name}_count"] - metrics[f'{name}_bucket{{le="{bound_s}"}}'])


async def closed_loop(port: int, seconds: float, connections: int = CONNECTIONS) -> list[Reply]:
    """As fast as answers come, in the order in which they came."""
    until = time.perf_counter() + seconds

    async def ask(number: int) -> list[Reply]:
        connection = await Connection.open(port)
        requests = itertools.islice(itertools.cycle(REQUESTS), number, None)
        replies = []
        while time.perf_counter() < until:
            replies.append(await connection.ask(next(requests)))
        connection.close()
        return replies

    found = await asyncio.gather(*(ask(number) for number in range(connections)))
    return sorted((reply for replies in found for reply in replies), key=lambda reply: reply.ended)


async def open_loop(port: int, rate_per_s: float, seconds: float) -> list[Reply]:
    """At a rate of its own; a question takes an idle connection, or opens one."""
    idle: list[Connection] = [await Connection.open(port) for _ in range(256)]
    replies: list[Reply] = []

    async def ask(request: bytes, due: float) -> None:
        while idle and idle[-1].is_lost:  # it rested for longer than the service keeps one
            idle.pop()
        connection = idle.pop() if idle else await Connection.open(port)
        reply = await connection.ask(request, due)
        replies.append(reply)
        if reply.status:
            idle.append(connection)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for number in range(int(rate_per_s * seconds)):
            due = began + number / rate_per_s
            if (ahead := due - time.perf_counter()) > 0:
                await asyncio.sleep(ahead)
            tasks.create_task(ask(REQUESTS[number % len(REQUESTS)], due))
    for connection in idle:
        connection.close()
    return replies


async def recovery(port: int, normal_s: float) -> float:
    """Seconds until three questions running are answered in normal time."""
    connection = await Connection.open(port)
    began, in_time = time.perf_counter(), 0
    while in_time < 3 and time.perf_counter() - began < 30:
        reply = await connection.ask(REQUESTS[0])
        in_time = in_time + 1 if reply.status == 200 and reply.ended - reply.began <= normal_s else 0
    connection.close()
    return time.perf_counter() - began


if __name__ == "__main__":
    command(run)()
