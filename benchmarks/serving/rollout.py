"""New versions under load: what swaps, a rollback, a broken version, a shadow and a canary cost those who ask meanwhile.

    uv run python -m benchmarks.serving.rollout bundle=URL other=URL texts=FILE.csv

Both bundles become versions of one model in a registry of their own; a real server on the first core follows its aliases as it
does by default, and clients on the second ask without a pause, all the time. Every answer has to be, to the last bit, what the
version that it names gives to that text in this process. Prints one JSON object; exit code 4 where a question failed, an answer
was another one, a move was not seen within 5 s, a broken version answered, or the canary's share is not what chance allows.
"""

import asyncio
import contextlib
import itertools
import json
import math
import os
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from benchmarks.serving.served import Connection, Served, percentile, predict_request, served

from pigeonhole.bundle import WEIGHTS, open_bundle, seal
from pigeonhole.classifier import Classifier
from pigeonhole.command import command, say, with_help
from pigeonhole.dataset.config import DataConfig
from pigeonhole.dataset.read import read_rows
from pigeonhole.errors import ConfigError, GateError, RunError
from pigeonhole.options import read_options, setting
from pigeonhole.registry import Alias, Move, Registry

FIRST, SECOND, BROKEN = "20260101-000000-first", "20260102-000000-second", "20260103-000000-broken"
SEEN_WITHIN_S = 5.0
MOST_TEXTS = 2000
CANARY_SHARE = 0.1
CALLERS = 400  # of the canary, told apart by a key
CHANCE = 3.3  # standard deviations: one share in a thousand is further off
Right = dict[str, dict[str, tuple[str, float]]]  # version -> text -> label, score


@dataclass(frozen=True)
class Options:
    bundle: str | None = setting(None, "the bundle's URL")
    other: str | None = setting(None, "another one with the same labels, of another seed for instance")
    texts: str = setting(DataConfig().path, "labelled rows, whose texts are asked")
    swaps: int = setting(10, "moves of the production alias", ge=2, le=10_000)
    connections: int = setting(4, "clients", ge=1, le=256)
    seconds: float = setting(10.0, "without a move; then with a shadow; then with a canary", ge=1)


@dataclass(frozen=True)
class Answer:
    began: float
    ended: float
    status: int
    version: str | None
    is_right: bool
    caller: str


@with_help(__doc__, Options)
def run(arguments: list[str]) -> dict[str, Any]:
    options = read_options(Options, arguments)
    if options.bundle is None or options.other is None:
        raise ConfigError("bundle=URL and other=URL are needed; see --help")
    if not {0, 1} <= os.sched_getaffinity(0):
        raise ConfigError("cores 0 and 1 are needed: the first for the server, the second for those who ask")
    texts = sorted({row.text for row in read_rows(DataConfig(path=options.texts))})[:MOST_TEXTS]
    with tempfile.TemporaryDirectory() as scratch:
        registry, name, right = _registry(Path(scratch), options.bundle, options.other, texts)
        os.sched_setaffinity(0, {1})
        environment = {"PIGEONHOLE_REGISTRY": registry.url, "PIGEONHOLE_CANARY_SHARE": str(CANARY_SHARE), "PIGEONHOLE_BUNDLE": ""}
        with served(Path(scratch), "0", **environment) as server:
            found = asyncio.run(measure(server, registry, name, right, options))
    if missed := misses(found):
        raise GateError("; ".join(missed), found)
    return found


def _registry(scratch: Path, first: str, second: str, texts: list[str]) -> tuple[Registry, str, Right]:
    """With three versions of one model, the last of them damaged after it was published, and what the others answer."""
    registry, right = Registry(str(scratch / "registry")), {}
    name = open_bundle(first).manifest.name
    for version, url in ((FIRST, first), (SECOND, second), (BROKEN, second)):
        opened, folder = open_bundle(url), scratch / version
        shutil.copytree(opened.folder, folder)
        manifest = seal(folder, msgspec.structs.replace(opened.manifest, name=name, version=version))
        registry.publish(folder, manifest)
        if version != BROKEN:
            predictions = Classifier.open(open_bundle(str(folder))).predict(texts)
            right[version] = {text: (each.label, each.score) for text, each in zip(texts, predictions, strict=True)}
    model = Path(registry.version_url(name, BROKEN)) / manifest.models[manifest.served]
    beside = model.with_name(model.name + WEIGHTS)
    weights = beside if beside.exists() else model
    damaged = bytearray(weights.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    weights.write_bytes(damaged)
    registry.set_alias(name, "production", FIRST, "to begin with", expected=None)
    return registry, name, right


async def measure(server: Served, registry: Registry, name: str, right: Right, options: Options) -> dict[str, Any]:
    clients = Clients(server.port, right)

    async def move(alias: Alias, version: str | None, action: Move = "set") -> float:
        before = registry.alias(name, alias).version
        registry.set_alias(name, alias, version, "benchmark", expected=before, action=action)
        return time.perf_counter()

    async def seen(moved: float, version: str) -> float:
        """Seconds until a question got an answer of `version`."""
        found = await until(lambda: clients.latest[version] > moved, f"an answer of {version}")
        return round(found - moved, 2)

    async with clients.asking(options.connections):
        await asyncio.sleep(2)  # warm
        calm = await clients.during(options.seconds)
        say(f"calm: p99 {calm['p99_ms']} ms")

        began, seen_s = time.perf_counter(), []
        for number in range(options.swaps):
            version = (SECOND, FIRST)[number % 2]
            seen_s.append(await seen(await move("production", version), version))
            say(f"swap {number + 1}: seen after {seen_s[-1]} s")
        swaps = clients.since(began)
        back_s = await seen(await move("production", target := (SECOND, FIRST)[options.swaps % 2], "rollback"), target)
        say(f"rollback: seen after {back_s} s")

        moved = await move("production", BROKEN)
        await until(lambda: _refused(server) == 1, "the broken version's refusal")
        await asyncio.sleep(1)
        broken = clients.since(moved)
        await seen(await move("production", FIRST), FIRST)
        say("the broken version was refused")

        await move("shadow", SECOND)
        await until(lambda: _shadowed(server) > 0, "the shadow")
        shadow = await clients.during(options.seconds) | {"texts": _shadowed(server)}
        await move("shadow", None)
        say(f"with a shadow: p99 {shadow['p99_ms']} ms")

        await seen(await move("candidate", SECOND), SECOND)
        began = time.perf_counter()
        await asyncio.sleep(options.seconds)
        canary = clients.shares(began)
        say(f"canary: {canary['share']} of {canary['callers']} callers")
    everything = clients.since(0.0)
    return {
        "calm": calm,
        "swaps": {**swaps, "seen_s": seen_s},
        "rollback_seen_s": back_s,
        "broken": broken,
        "shadow": {**shadow, "p99_times": round(shadow["p99_ms"] / calm["p99_ms"], 2)},
        "canary": canary,
        "all": everything,
        "load_average": round(os.getloadavg()[0], 2),
    }


def misses(found: dict[str, Any]) -> list[str]:
    """What of the promise was not kept."""
    canary = found["canary"]
    spread = math.sqrt(CANARY_SHARE * (1 - CANARY_SHARE) / canary["callers"])
    kept = {
        "a question failed": found["all"]["failed"] == 0,
        "an answer was not that of the version it names": found["all"]["wrong"] == 0,
        f"a move was seen only after more than {SEEN_WITHIN_S:g} s": max(*found["swaps"]["seen_s"], found["rollback_seen_s"])
        <= SEEN_WITHIN_S,
        "the broken version answered": BROKEN not in found["all"]["versions"],
        "the canary's share is not what it should be": abs(canary["share"] - CANARY_SHARE) <= CHANCE * spread,
        "a caller was answered by both versions": canary["of_both"] == 0,
    }
    return [miss for miss, true in kept.items() if not true]


class Clients:
    """Who ask all the time, each with a key of a caller in turn, and hold what they are answered against what is right."""

    def __init__(self, port: int, right: Right) -> None:
        self._port = port
        self._right = right
        self._answers: list[Answer] = []
        self.latest: dict[str, float] = defaultdict(float)  # version -> when the question was asked that it answered last
        self._texts = list(right[FIRST])

    @contextlib.asynccontextmanager
    async def asking(self, connections: int) -> AsyncIterator[None]:
        self._until = math.inf
        tasks = [asyncio.create_task(self._ask(number)) for number in range(connections)]
        try:
            yield
        finally:
            self._until = 0.0
            await asyncio.gather(*tasks)

    async def during(self, seconds: float) -> dict[str, Any]:
        began = time.perf_counter()
        await asyncio.sleep(seconds)
        return self.since(began)

    def since(self, began: float) -> dict[str, Any]:
        """Of the questions asked since then."""
        some = [answer for answer in self._answers if answer.began >= began]
        took = [1000 * (answer.ended - answer.began) for answer in some]
        return {
            "answers": len(some),
            "failed": sum(answer.status != 200 for answer in some),
            "wrong": sum(answer.status == 200 and not answer.is_right for answer in some),
            "versions": sorted({answer.version for answer in some if answer.version}),
            "p50_ms": round(percentile(took, 0.5), 2),
            "p99_ms": round(percentile(took, 0.99), 2),
            "worst_ms": round(max(took), 2),
        }

    def shares(self, began: float) -> dict[str, Any]:
        """Which callers the candidate answered."""
        versions: dict[str, set[str | None]] = defaultdict(set)
        for answer in self._answers:
            if answer.began >= began:
                versions[answer.caller].add(answer.version)
        return {
            **self.since(began),
            "callers": len(versions),
            "share": round(sum(SECOND in found for found in versions.values()) / len(versions), 4),
            "of_both": sum(len(found) > 1 for found in versions.values()),
        }

    async def _ask(self, number: int) -> None:
        connection = await Connection.open(self._port)
        for count in itertools.count(number * 499):
            if time.perf_counter() > self._until:
                break
            text, caller = self._texts[count % len(self._texts)], f"caller-{count % CALLERS}"
            reply = await connection.ask(predict_request(text, f"x-canary-key: {caller}"))
            version, is_right = self._check(text, connection.body) if reply.status == 200 else (None, False)
            self._answers.append(Answer(reply.began, reply.ended, reply.status, version, is_right, caller))
            if version is not None:
                self.latest[version] = max(self.latest[version], reply.began)
            if connection.is_lost:
                connection = await Connection.open(self._port)
        connection.close()

    def _check(self, text: str, body: bytes) -> tuple[str, bool]:
        told = json.loads(body)
        version = told["model_version"]
        return version, self._right.get(version, {}).get(text) == (told["label"], told["score"])


def _refused(server: Served) -> float:
    return server.scrape()['pigeonhole_rollouts_total{alias="production",outcome="refused"}']


def _shadowed(server: Served) -> int:
    """Texts that the shadow answered, alike or not."""
    found = server.scrape()
    return sum(int(found[f'pigeonhole_shadow_texts_total{{outcome="{outcome}"}}']) for outcome in ("agreed", "differed"))


async def until(is_so: Callable[[], bool], what: str) -> float:
    """When it is. Raises RunError where it is not within a minute."""
    deadline = time.perf_counter() + 60
    while not await asyncio.to_thread(is_so):
        if time.perf_counter() > deadline:
            raise RunError(f"no sign of {what} within a minute")
        await asyncio.sleep(0.02)
    return time.perf_counter()


if __name__ == "__main__":
    command(run)()
