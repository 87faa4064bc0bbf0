"""`uv run invoke load --bundle FOLDER`: a real server on this machine, and Locust's visitors who ask it; the report is kept.

    python -m tests.load bundle=FOLDER [users=50] [seconds=30] [think_s=1] [max_p95_ms=1000] [out=artefacts/load]
                         [against=FOLDER] [max_slower=0.25]

`against` is a checkout of another commit: its server is asked too, on the same machine, twice each in turn, and this one may
be no slower than it by more than `max_slower`.

Ten thousand visitors, each of whom asks once in three quarters of a minute (220 requests a second):

    python -m tests.load bundle=FOLDER users=10000 think_s=45 seconds=300 max_p95_ms=10000
"""

import csv
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from monitoring.alarm import program, started, until

from pigeonhole.command import command, with_help
from pigeonhole.errors import ConfigError, GateError, RunError
from pigeonhole.options import read_options, setting
from pigeonhole.port import free_port
from pigeonhole.storage import exists, join, to_url

HERE = Path(__file__).parent
MAX_SPAWNED_PER_S = 200  # Locust itself makes no more beside those who ask


@dataclass
class LoadConfig:
    bundle: str = setting("", "a bundle's folder or URL; needed")
    users: int = setting(50, "visitors at one time", ge=1, le=10_000)
    seconds: int = setting(30, "how long they stay", ge=1, le=3600)
    think_s: float = setting(1.0, "between a visitor's questions, on average", ge=0.1, le=3600)
    max_p95_ms: int = setting(1000, "more than this for one answer in twenty fails", ge=1)
    against: str = setting("", "folder of a checkout of another commit, whose server is asked as well")
    max_slower: float = setting(0.25, "share by which p95, and 20 ms more, may be over that of `against`", ge=0, le=10)
    out: str = setting("artefacts/load", "folder of Locust's report and tables")


SLACK_MS = 20  # of one answer in twenty; less is the machine's noise


@with_help(__doc__)
def run(arguments: list[str]) -> dict[str, Any]:
    config = read_options(LoadConfig, arguments)
    if not (config.bundle and exists(join(config.bundle, "manifest.json"))):
        raise ConfigError(f"bundle={config.bundle}: expected the folder of a bundle")
    servers = {"load": program(("serve",))} | ({"before": server_of(Path(config.against))} if config.against else {})
    rounds = 2 if config.against else 1
    visits = [(name, visit(config, servers[name], name)) for _ in range(rounds) for name in reversed(servers)]
    best = {
        name: min((result for kind, result in visits if kind == name), key=lambda result: result["p95_ms"]) for name in servers
    }
    report = {"users": config.users, "seconds": config.seconds, "report": f"{config.out}/load.html"}
    result = {**best["load"], **({"before": best["before"]} if config.against else {}), **report}
    if any(found["refused"] for name, found in visits if name == "load"):
        raise GateError(f"a failed answer, or p95 over {config.max_p95_ms} ms; {config.out}/load.html says which", result)
    if config.against and is_slower(best["load"]["p95_ms"], best["before"]["p95_ms"], config.max_slower):
        raise GateError(f"p95 is {best['load']['p95_ms']} ms, and was {best['before']['p95_ms']} ms in {config.against}", result)
    return result


def server_of(checkout: Path) -> str:
    """`serve` of another commit, in an environment made from its own lock. Raises ConfigError, RunError."""
    if not (checkout / "uv.lock").exists():
        raise ConfigError(f"against={checkout}: expected a checkout; `git worktree add {checkout} COMMIT` makes one")
    line = ["uv", "sync", "--quiet", "--locked", "--project", str(checkout), "--no-default-groups", "--group", "serve"]
    made = subprocess.run(line, env={**os.environ, "VIRTUAL_ENV": ""}, stderr=subprocess.PIPE, text=True, check=False)
    if made.returncode:
        raise RunError(f"{' '.join(line)} ended with {made.returncode}: {made.stderr.strip()[-500:]}")
    return str((checkout / ".venv/bin/serve").resolve())


def visit(config: LoadConfig, server: str, name: str) -> dict[str, Any]:
    """Start a server, let the visitors ask it, end it; Locust's numbers, and whether it refused the run."""
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    table = out / f"{name}_stats.csv"
    table.unlink(missing_ok=True)  # of an earlier run
    port = free_port()
    variables = {"PORT": port, "PIGEONHOLE_BUNDLE": to_url(config.bundle)}
    with tempfile.TemporaryDirectory() as folder, started([server], Path(folder), variables) as process:
        until("the server", lambda: answers(port) or process.poll() is not None)
        if process.returncode is not None:
            raise RunError(f"the server ended with {process.returncode}; what it said stands above")
        line = [program(("locust",)), "--locustfile", str(HERE / "locustfile.py"), "--headless", "--only-summary"]
        spawned_per_s = min(config.users, MAX_SPAWNED_PER_S)
        line += ["--users", str(config.users), "--spawn-rate", str(spawned_per_s), "--run-time", f"{config.seconds}s"]
        line += ["--host", f"http://127.0.0.1:{port}", "--csv", str(out / name), "--html", str(out / f"{name}.html")]
        environment = {**os.environ, "LOAD_MAX_P95_MS": str(config.max_p95_ms), "LOAD_THINK_S": str(config.think_s)}
        code = subprocess.run(line, env=environment, stdout=sys.stderr, check=False).returncode
    if not table.exists():
        raise RunError(f"locust ended with {code} and left no table; what it said stands above")
    return {**total(table), "refused": code != 0}


def is_slower(now_ms: float, before_ms: float, share: float) -> bool:
    return now_ms > before_ms * (1 + share) + SLACK_MS


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def total(table: Path) -> dict[str, Any]:
    """The line of all requests together. Raises RunError where there is none."""
    with table.open(encoding="utf-8", newline="") as stream:
        (row,) = [row for row in csv.DictReader(stream) if row["Name"] == "Aggregated"]
    if row["Request Count"] == "0":
        raise RunError("no visitor was answered in the time that they had; let them stay longer, with seconds=60")
    return {
        "requests": int(row["Request Count"]),
        "failures": int(row["Failure Count"]),
        "requests_per_s": round(float(row["Requests/s"]), 1),
        **{f"p{share}_ms": int(row[f"{share}%"]) for share in (50, 95, 99)},
    }


if __name__ == "__main__":
    command(run)()
