"""What the log promises, each as a trial that could refute it. A level's own promise and the weakness of the one below it."""

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pigeonhole import storage
from pigeonhole.chaos.faults import Fault, FaultProxy
from pigeonhole.chaos.world import Acknowledged, Audit, Server, Store, asked, audit, until_told
from pigeonhole.errors import RunError

STORE_FAULTS: tuple[Fault, ...] = ("429", "500", "503", "slow", "truncated", "unheard", "cut", "refused")
DRAIN_S = 300.0
NONE_BOUND_S = 3.0  # the shipping interval of a second, and what a busy machine adds to it


@dataclass(frozen=True)
class Plan:
    """What a run is told."""

    bundle: str
    folder: Path
    seed: int = 0
    trials: int = 4
    records: int = 2000  # of each trial, about
    down_s: float = 10.0
    objects: int = 200


@dataclass(frozen=True)
class Outcome:
    """One line of the output. `kept` is None where this machine cannot try it; `why` says what is missing."""

    promise: str
    kept: bool | None
    why: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)


class Stage:
    """A store, a log in it and a spool, for one promise."""

    def __init__(self, plan: Plan, name: str) -> None:
        self.plan = plan
        self.folder = plan.folder / name
        self.folder.mkdir(parents=True)
        self.spool = self.folder / "spool"
        self.log = f"gs://bucket/{name}"
        self.draw = random.Random(f"{name} {plan.seed}")
        self.told = Acknowledged()
        self.servers: list[Server] = []
        self.store = Store(self.folder / "bucket")
        storage.forget_clients()
        os.environ.update({"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{self.store.port}", "FSSPEC_GS_TOKEN": "anon"})

    def server(self, durability: str = "process", store_port: int | None = None, **more: str) -> Server:
        """It is gone when the stage is, however that comes about."""
        server = Server(self.plan.bundle, self.log, self.spool, store_port or self.store.port, durability, **more)
        self.servers.append(server)
        return server

    def drain(self) -> float:
        """A last server ships what the dead ones left; seconds until the spool was empty. Raises RunError where it never is."""
        server = self.server()
        began = time.monotonic()
        while server.gauge("pigeonhole_log_spool_bytes"):
            if time.monotonic() - began > DRAIN_S:
                raise RunError(f"the spool is not empty after {DRAIN_S:g} s: {server.said()}")
            time.sleep(0.1)
        server.send(signal.SIGTERM)
        server.wait()
        return time.monotonic() - began

    def audit(self) -> Audit:
        return audit(self.log, self.told)

    def numbers(self, found: Audit) -> dict[str, Any]:
        counts = {name: count for name, count in asdict(found.counts).items() if name != "records"}
        return {
            "acknowledged": len(self.told.at),
            "missing": len(found.missing),
            "in_log": found.found,
            "requests": dict(self.told.outcomes),
            **counts,
        }


@contextmanager
def stage(plan: Plan, name: str) -> Iterator[Stage]:
    found = Stage(plan, name)
    try:
        yield found
    finally:
        for server in found.servers:
            server.end()
        found.store.stop()
        shutil.rmtree(found.folder)


def kept_all(found: Audit) -> bool:
    """A torn line is told and is no breach: kill -9 ended a write in the middle, which nobody was promised."""
    counts = found.counts
    return not (found.missing or counts.damaged_objects or counts.misplaced or counts.unknown_versions)


def orderly_end(plan: Plan) -> Outcome:
    """SIGTERM of the server, kill -9 of what is left of it (its shipper) and of the store, each at a random moment."""
    with stage(plan, "orderly_end") as on:
        for _ in range(plan.trials):
            server = on.server()
            with asked(server, on.told):
                until_told(on.told, len(on.told.at) + on.draw.randint(plan.records // 2, plan.records * 3 // 2), server)
                moments = sorted([(0.0, "term"), (on.draw.uniform(0, 2), "kill"), (on.draw.uniform(-1, 2), "store")])
                at = moments[0][0]
                for moment, what in moments:
                    time.sleep(max(0.0, moment - at))
                    at = moment
                    if what == "store":
                        on.store.kill()
                    else:
                        server.send(signal.SIGTERM if what == "term" else signal.SIGKILL)
            server.wait()
        drained_s = on.drain()
        found = on.audit()
        numbers = {"trials": plan.trials, **on.numbers(found), "drained_s": round(drained_s, 2)}
        return Outcome("orderly_end", kept_all(found), "", numbers)


def killed_server(plan: Plan) -> Outcome:
    """Kill -9 of the server in the middle of its work, at the level process."""
    with stage(plan, "killed_server") as on:
        for _ in range(plan.trials):
            kill(on, "process")
        drained_s = on.drain()
        found = on.audit()
        numbers = {"trials": plan.trials, **on.numbers(found), "drained_s": round(drained_s, 2)}
        return Outcome("killed_server", kept_all(found), "", numbers)


def kill(on: Stage, durability: str) -> float:
    """One trial of kill -9; when it came."""
    server = on.server(durability)
    with asked(server, on.told):
        until_told(on.told, len(on.told.at) + on.draw.randint(on.plan.records // 2, on.plan.records * 3 // 2), server)
        server.send(signal.SIGKILL)
        killed_at = time.monotonic()
    server.wait()
    return killed_at


def level_none(plan: Plan) -> Outcome:
    """Kill -9 at the level none: what is lost came within the last shipping interval, and something is lost."""
    with stage(plan, "level_none") as on:
        missing: list[str] = []
        oldest_s = 0.0
        for _ in range(plan.trials):
            killed_at = kill(on, "none")
            on.drain()
            found = on.audit()
            oldest_s = max([oldest_s, *(killed_at - on.told.at[id_] for id_ in found.missing if id_ not in missing)])
            missing = found.missing
        numbers = {"trials": plan.trials, **on.numbers(found), "oldest_missing_s": round(oldest_s, 3), "bound_s": NONE_BOUND_S}
        return Outcome("level_none", oldest_s <= NONE_BOUND_S, "", {**numbers, "weaker_than_process": bool(missing)})


def lost_host(plan: Plan) -> Outcome:
    """Kill -9 and the loss of the spool: nothing is missing at the level remote, something is at the level process."""
    missing = {}
    for durability in ("process", "remote"):
        with stage(plan, f"lost_host_{durability}") as on:
            for _ in range(plan.trials):
                kill(on, durability)
                shutil.rmtree(on.spool)
            found = on.audit()
            missing[durability] = len(found.missing)
            numbers = on.numbers(found)
    weaker = {"missing_at_process": missing["process"], "weaker_than_remote": missing["process"] > 0}
    return Outcome("lost_host", kept_all(found), "", {"trials": plan.trials, **numbers, **weaker})


def store_down(plan: Plan) -> Outcome:
    """Answers go on while the store fails in every way there is; the spool grows, and is empty after that."""
    with stage(plan, "store_down") as on, FaultProxy(on.store.port, plan.seed) as proxy:
        server = on.server(store_port=proxy.server_port)
        with asked(server, on.told, batch=16, pause_s=0.02):
            time.sleep(plan.down_s / 4)
            calm = len(on.told.seconds)
            largest, oldest_s = 0.0, 0.0
            for faults in (STORE_FAULTS[:3], STORE_FAULTS, ("refused",)):
                proxy.faults = faults
                until = time.monotonic() + plan.down_s / 3
                while time.monotonic() < until:
                    largest = max(largest, server.gauge("pigeonhole_log_spool_bytes"))
                    oldest_s = max(oldest_s, server.gauge("pigeonhole_log_oldest_seconds"))
                    time.sleep(0.2)
            bad_day = len(on.told.seconds)
        proxy.faults = ()
        began = time.monotonic()
        while server.gauge("pigeonhole_log_spool_bytes"):
            if time.monotonic() - began > DRAIN_S:
                raise RunError(f"the backlog is still there {DRAIN_S:g} s after the store came back: {server.said()}")
            time.sleep(0.2)
        gone_s = time.monotonic() - began
        server.send(signal.SIGTERM)
        server.wait()
        found = on.audit()
        answered = set(on.told.outcomes) == {"200"}
        numbers = {
            "down_s": plan.down_s,
            **on.numbers(found),
            "faults": dict(proxy.met),
            "p99_ms_before": milliseconds(on.told.seconds[:calm]),
            "p99_ms_meanwhile": milliseconds(on.told.seconds[calm:bad_day]),
            "spool_bytes": largest,
            "oldest_s": round(oldest_s, 1),
            "gone_after_s": round(gone_s, 1),
        }
        return Outcome("store_down", kept_all(found) and answered and largest > 0, "", numbers)


def milliseconds(seconds: list[float]) -> float | None:
    """The 99th percentile; None where nothing was answered."""
    if not seconds:
        return None
    return round(sorted(seconds)[int(0.99 * (len(seconds) - 1))] * 1000, 1)


def full_spool(plan: Plan) -> Outcome:
    """A spool with an end, and a store that takes nothing: 503 and nothing silent; then it goes on. 1 MB is soon full."""
    with stage(plan, "full_spool") as on, FaultProxy(on.store.port, plan.seed) as proxy:
        server = on.server(store_port=proxy.server_port, PIGEONHOLE_SPOOL_MB="1")
        proxy.faults = ("refused",)
        with asked(server, on.told, pause_s=0.01):
            until_refused(on.told, server)
            proxy.faults = ()
            until_told(on.told, len(on.told.at) + plan.records, server)
        server.send(signal.SIGTERM)
        server.wait()
        on.drain()
        found = on.audit()
        return Outcome("full_spool", kept_all(found) and on.told.outcomes["503"] > 0, "", on.numbers(found))


def until_refused(told: Acknowledged, server: Server) -> None:
    deadline = time.monotonic() + 60
    while not told.outcomes["503"]:
        if not server.alive or time.monotonic() > deadline:
            raise RunError(f"the spool never filled: {dict(told.outcomes)} {server.said()}")
        time.sleep(0.01)


def full_disk(plan: Plan) -> Outcome:
    """A disk that is full at a byte that nobody chose: what is read back is what was written, and all that was acknowledged."""
    with stage(plan, "full_disk") as on, FaultProxy(on.store.port, plan.seed) as proxy:
        for number in range(plan.trials):
            with small_disk(on.spool, (256 << 10) + on.draw.randrange(64) * 4096) as mounted:
                if not mounted:
                    return Outcome("full_disk", None, "a small file system can be mounted by root alone, on Linux")
                server = on.server(store_port=proxy.server_port)
                proxy.faults = ("refused",)
                refused = on.told.outcomes["503"]
                with asked(server, on.told, batch=1 + 7 * (number % 8), pause_s=0.001):
                    deadline = time.monotonic() + 60
                    while on.told.outcomes["503"] < refused + 20 and time.monotonic() < deadline:
                        time.sleep(0.01)
                server.send(signal.SIGKILL)
                server.wait()
                proxy.faults = ()
                on.drain()
        found = on.audit()
        numbers = {"trials": plan.trials, **on.numbers(found)}
        # A torn line is counted by its readers; a wrong record would be one of an id that nobody was told, or a changed one.
        kept = not found.missing and not found.counts.damaged_objects and on.told.outcomes["503"] > 0
        return Outcome("full_disk", kept, "", numbers)


@contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[bool]:
    """False where there is none to be had."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)]
    is_root = sys.platform == "linux" and os.geteuid() == 0
    mounted = is_root and subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


APPEND = """
    import sys
    from datetime import UTC, datetime
    from pathlib import Path
    from pigeonhole.prediction_log import Features, LogWriter, Record, new_id

    log, spool, durability, records, interval_s = sys.argv[1:]
    features = Features(n_chars=1, n_words=1, n_tokens=3, unknown_tokens=0, truncated=False, max_logit=1.0)
    with LogWriter(log, spool=spool, durability=durability, segment_records=1 if interval_s == "0" else 500,
                   interval_s=float(interval_s) or 1.0) as writer:
        for _ in range(int(records)):
            record = Record(prediction_id=new_id(), at=datetime.now(UTC), request_id="r", model="m", version="v", text=None,
                            text_policy="none", features=features, label="a", score=0.5, probabilities={"a": 0.5},
                            decision="accept", latency_ms=1.0)
            writer.append([record])
            print(record.prediction_id, flush=True)
        if interval_s == "0":
            writer.flush()
"""


def append(log: str, spool: Path, durability: str, records: int, interval_s: float) -> "subprocess.Popen[str]":
    """A process that writes records and prints the id of each that was acknowledged; interval 0: an object each."""
    arguments = [log, str(spool), durability, str(records), f"{interval_s:g}"]
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(APPEND), *arguments], stdout=subprocess.PIPE, text=True)


def two_replicas(plan: Plan) -> Outcome:
    """Two writers, an object for each record, into the same hour: nothing is overwritten."""
    with stage(plan, "two_replicas") as on:
        writers = [append(on.log, on.folder / f"spool{number}", "process", plan.objects, 0) for number in range(2)]
        for writer in writers:
            on.told.at.update(dict.fromkeys(writer.communicate()[0].split(), time.monotonic()))
            if writer.returncode:
                raise RunError("a writer ended with an error; its own words are above")
        found = on.audit()
        names = [path.name for path in (on.folder / "bucket").iterdir()]
        overwritten = sum(not name.endswith("@1") for name in names)
        numbers = {**on.numbers(found), "objects": len(names), "overwritten": overwritten}
        return Outcome("two_replicas", kept_all(found) and not overwritten and len(names) == 2 * plan.objects, "", numbers)


def power_cut(plan: Plan) -> Outcome:
    """A real disk, ext4, and a copy of its blocks at a random moment: all of level host is in it, not all of level process."""
    missing, told = {}, {}
    for durability in ("process", "host"):
        with stage(plan, f"power_cut_{durability}") as on:
            missing[durability] = told[durability] = 0
            for trial in range(plan.trials):
                found = cut_power(on, durability, trial)
                if found is None:
                    return Outcome("power_cut", None, "a disk in a file is mounted by root alone, on Linux with mkfs.ext4")
                told[durability] += found[0]
                missing[durability] += found[1]
    numbers = {
        "trials": plan.trials,
        "acknowledged": told["host"],
        "missing": missing["host"],
        "acknowledged_at_process": told["process"],
        "missing_at_process": missing["process"],
        "weaker_than_host": missing["process"] > 0,
    }
    return Outcome("power_cut", missing["host"] == 0, "", numbers)


def cut_power(on: Stage, durability: str, trial: int) -> tuple[int, int] | None:
    """Records acknowledged before the cut, and how many of them the disk does not have."""
    image, after, folder = on.folder / f"{trial}.ext4", on.folder / f"{trial}.after", on.folder / "disk"
    with image.open("wb") as stream:
        stream.truncate(16 << 20)
    if not (sys.platform == "linux" and os.geteuid() == 0 and shutil.which("mkfs.ext4")):
        return None
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    folder.mkdir(exist_ok=True)
    log = f"file://{folder}/log"
    if subprocess.run(["mount", "-o", "loop", str(image), str(folder)], check=False, capture_output=True).returncode:
        return None
    try:
        writer = append(log, folder / "spool", durability, 100_000, 3600)
        assert writer.stdout is not None
        ids = {line.strip() for line in itertools.islice(writer.stdout, on.draw.randint(50, 1000))}
        shutil.copyfile(image, after)
        writer.kill()
        writer.communicate()
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    subprocess.run(["mount", "-o", "loop", str(after), str(folder)], check=True)
    try:
        return len(ids), len(audit(log, Acknowledged(dict.fromkeys(ids, 0.0))).missing)
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        image.unlink()
        after.unlink()


PROMISES: dict[str, Callable[[Plan], Outcome]] = {
    trial.__name__: trial
    for trial in (
        orderly_end,
        killed_server,
        level_none,
        lost_host,
        power_cut,
        store_down,
        full_spool,
        full_disk,
        two_replicas,
    )
}
