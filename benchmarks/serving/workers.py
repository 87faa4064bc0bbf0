"""Two workers beside one: how many more texts a second two cores answer when two processes share the port.

    uv run python -m benchmarks.serving.workers bundle=URL

The client needs a core too, and there are two: so a request asks for TEXTS texts at once and for one label of each, which costs
the client a hundredth of what it costs the server. One worker and `workers` take turns, `rounds` times, and nothing is tied to a
core. Prints one JSON object with the medians and their ratio; exit code 4 where it is under 0.9 a worker, 1.8 for two.
"""

import asyncio
import os
import resource
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.serving.overload import TEXTS as SAMPLES
from benchmarks.serving.served import Connection, Served, served

from pigeonhole.command import command, say, with_help
from pigeonhole.errors import ConfigError, GateError, RunError
from pigeonhole.options import read_options, setting

TEXTS = 32  # of a request
CONNECTIONS = 12  # all their texts may wait at one worker, which refuses what it would not answer in time
EACH = 0.9  # of what one worker answers, for each of several


@dataclass(frozen=True)
class Options:
    bundle: str | None = setting(None, "the bundle's URL")
    workers: int = setting(2, "how many stand beside one", ge=2)
    rounds: int = setting(3, "times that each is measured", ge=1)
    seconds: float = setting(8.0, "of each measurement", ge=1)


@with_help(__doc__, Options)
def run(arguments: list[str]) -> dict[str, Any]:
    options = read_options(Options, arguments)
    if options.bundle is None:
        raise ConfigError("bundle=URL is needed; see --help")
    workers = options.workers
    rates: dict[int, list[float]] = {1: [], workers: []}
    client_cores: list[float] = []
    for _ in range(options.rounds):
        for count, found in rates.items():
            rate, client = _round(options.bundle, count, options.seconds)
            say(f"{count} workers: {rate:.0f} texts/s, the client took {client:.2f} of a core")
            found.append(rate)
            client_cores.append(client)
    medians = {count: statistics.median(found) for count, found in rates.items()}
    ratio = round(medians[workers] / medians[1], 3)
    result = {
        "texts_per_s": {str(count): [round(rate, 1) for rate in found] for count, found in rates.items()},
        "ratio": ratio,
        "client_cores": round(max(client_cores), 3),
        "load_average": round(os.getloadavg()[0], 2),
    }
    if ratio < EACH * workers:
        raise GateError(f"{workers} workers answer {ratio} times as much as one, at least {EACH * workers:g}", result)
    return result


def _round(bundle: str, workers: int, seconds: float) -> tuple[float, float]:
    """Texts a second, and cores of the client."""
    environment = {
        "PIGEONHOLE_BUNDLE": bundle,
        "PIGEONHOLE_TEXT": "none",
        "PIGEONHOLE_WORKERS": str(workers),
        "OMP_NUM_THREADS": "1",
    }
    with tempfile.TemporaryDirectory() as folder, served(Path(folder), **environment) as server:
        _wait_for(server, workers)
        asyncio.run(ask_for(server.port, 2.0))  # warm
        began = _own_cpu_s()
        rate = asyncio.run(ask_for(server.port, seconds))
        return rate, (_own_cpu_s() - began) / seconds


def _wait_for(server: Served, workers: int) -> None:
    soon = time.monotonic() + 30
    while server.scrape()["pigeonhole_processes"] < workers:
        if time.monotonic() > soon:
            raise RunError(f"not all of {workers} workers are there after 30 s")
        time.sleep(0.1)


async def ask_for(port: int, seconds: float) -> float:
    """Texts answered a second, each connection asking again as soon as it is answered. Raises RunError for a refusal."""
    texts = ",".join(f'"{SAMPLES[number % len(SAMPLES)]}"' for number in range(TEXTS))
    body = f'{{"texts":[{texts}],"top_k":1}}'.encode()
    head = f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    request = head.encode() + body
    until = time.perf_counter() + seconds

    async def ask() -> int:
        connection = await Connection.open(port)
        answered = 0
        while time.perf_counter() < until:
            reply = await connection.ask(request)
            if reply.status != 200:
                raise RunError(f"a request was answered {reply.status}")
            answered += TEXTS * (reply.ended <= until)
        connection.close()
        return answered

    return sum(await asyncio.gather(*(ask() for _ in range(CONNECTIONS)))) / seconds


def _own_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    command(run)()
