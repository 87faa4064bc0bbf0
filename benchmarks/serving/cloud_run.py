"""What `maxInstanceRequestConcurrency` and `memory` of cloudrun/serve.yaml ought to be: one core, so many requests at one time.

    uv run python -m benchmarks.serving.cloud_run bundle=URL

For each number of connections that ask without a pause: answers a second and a second of the server's CPU, which other work on
the machine does not change, their p50 and p99, peak memory. Then the worst that may come: the same number of connections, each
with 256 long texts at a time. Prints one JSON object with what follows: the fewest connections with 90 % of the most answers a
CPU-second.
"""

import asyncio
import json
import os
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.serving.overload import closed_loop
from benchmarks.serving.served import Connection, Served, cores_of, percentile, served

from pigeonhole.command import command, say, with_help
from pigeonhole.errors import ConfigError
from pigeonhole.options import read_options, setting

STEPS = (1, 2, 4, 8, 16, 32, 64)
TEXTS = [f"{number} where is my parcel, it should have been here on Monday " * 12 for number in range(256)]
BODY = json.dumps({"texts": TEXTS}).encode()
HEAD = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
WORST = HEAD % len(BODY) + BODY


@dataclass(frozen=True)
class Options:
    bundle: str | None = setting(None, "the bundle's URL")
    seconds: float = setting(5.0, "of each number of connections", ge=1)
    server_cores: str = setting("0", "as taskset has them")
    client_cores: str = setting("1", "their numbers, with commas between them")


@with_help(__doc__, Options)
def run(arguments: list[str]) -> dict[str, Any]:
    options = read_options(Options, arguments)
    if options.bundle is None:
        raise ConfigError("bundle=URL is needed; see --help")
    os.sched_setaffinity(0, cores_of(options.client_cores))
    with tempfile.TemporaryDirectory() as folder:
        environment = {"PIGEONHOLE_BUNDLE": options.bundle, "OMP_NUM_THREADS": "1"}
        with served(Path(folder), options.server_cores, **environment) as server:
            table = [step(server, connections, options.seconds) for connections in STEPS]
        best = max(row["answers_per_cpu_s"] for row in table)
        concurrency = next(row["connections"] for row in table if row["answers_per_cpu_s"] >= 0.9 * best)
        with served(Path(folder), options.server_cores, **environment) as server:
            statuses = asyncio.run(ask_the_worst(server.port, concurrency))
            peak = peak_mb(server)
    worst = {"statuses": statuses, "peak_mb": peak}
    found = {"steps": table, "worst": worst, "concurrency": concurrency}
    return {**found, "load_average": round(os.getloadavg()[0], 2)}


def step(server: Served, connections: int, seconds: float) -> dict[str, Any]:
    before = server.cpu_s()
    replies = asyncio.run(closed_loop(server.port, seconds, connections))
    took = [1000 * (reply.ended - reply.began) for reply in replies if reply.status == 200]
    row = {
        "connections": connections,
        "answers_per_s": round(len(took) / seconds, 1),
        "answers_per_cpu_s": round(len(took) / (server.cpu_s() - before), 1),
        "p50_ms": round(percentile(took, 0.5), 1),
        "p99_ms": round(percentile(took, 0.99), 1),
        "others": len(replies) - len(took),
        "peak_mb": peak_mb(server),
    }
    say(str(row))
    return row


async def ask_the_worst(port: int, connections: int) -> dict[str, int]:
    """Each connection asks three times; how often which status came."""

    async def ask() -> list[int]:
        connection = await Connection.open(port)
        statuses = [(await connection.ask(WORST)).status for _ in range(3)]
        connection.close()
        return statuses

    found = await asyncio.gather(*(ask() for _ in range(connections)))
    return {str(status): count for status, count in Counter(status for each in found for status in each).items()}


def peak_mb(server: Served) -> float:
    """The most that the process ever had in memory."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1000


if __name__ == "__main__":
    command(run)()
