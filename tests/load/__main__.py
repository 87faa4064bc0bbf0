"""`uv run invoke load --bundle FOLDER`: a real server on this machine, and Locust's visitors who ask it; the report is kept.

python -m tests.load bundle=FOLDER [users=50] [seconds=30] [max_p95_ms=1000] [out=artefacts/load]
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
from monitoring.alarm import free_port, program, started, wait

from pigeonhole.command import command
from pigeonhole.errors import ConfigError, GateError
from pigeonhole.options import read_options, setting
from pigeonhole.storage import exists

HERE = Path(__file__).parent


@dataclass
class LoadConfig:
    bundle: str = setting("", "a bundle's folder; needed")
    users: int = setting(50, "visitors at one time", ge=1, le=10_000)
    seconds: int = setting(30, "how long they stay", ge=1, le=3600)
    max_p95_ms: int = setting(1000, "more than this for one answer in twenty fails", ge=1)
    out: str = setting("artefacts/load", "folder of Locust's report and tables")


def run(arguments: list[str]) -> dict[str, Any] | None:
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return None
    config = read_options(LoadConfig, arguments)
    if not exists(f"{config.bundle}/manifest.json"):
        raise ConfigError(f"bundle={config.bundle}: expected the folder of a bundle")
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    port = free_port()
    variables = {"PORT": port, "PIGEONHOLE_BUNDLE": Path(config.bundle).resolve()}
    with tempfile.TemporaryDirectory() as folder, started([program(("serve",))], Path(folder), variables) as server:
        wait("the server", lambda: answers(port) or server.poll() is not None)
        line = [program(("locust",)), "--locustfile", str(HERE / "locustfile.py"), "--headless", "--only-summary"]
        line += ["--users", str(config.users), "--spawn-rate", str(config.users), "--run-time", f"{config.seconds}s"]
        line += ["--host", f"http://127.0.0.1:{port}", "--csv", str(out / "load"), "--html", str(out / "report.html")]
        environment = {**os.environ, "LOAD_MAX_P95_MS": str(config.max_p95_ms)}
        code = subprocess.run(line, env=environment, stdout=sys.stderr, check=False).returncode
    result = {
        **total(out / "load_stats.csv"),
        "users": config.users,
        "seconds": config.seconds,
        "report": str(out / "report.html"),
    }
    if code:
        raise GateError(f"a failed answer, or p95 over {config.max_p95_ms} ms; {out}/report.html says which", result)
    return result


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def total(table: Path) -> dict[str, Any]:
    """The line of all requests together."""
    with table.open(encoding="utf-8", newline="") as stream:
        (row,) = [row for row in csv.DictReader(stream) if row["Name"] == "Aggregated"]
    return {
        "requests": int(row["Request Count"]),
        "failures": int(row["Failure Count"]),
        "requests_per_s": round(float(row["Requests/s"]), 1),
        **{f"p{share}_ms": int(row[f"{share}%"]) for share in (50, 95, 99)},
    }


if __name__ == "__main__":
    command(run)()
