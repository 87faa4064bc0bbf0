"""`uv run invoke up`: the service, the drift service and the page on this machine, over this folder, until Ctrl-C.

Where Prometheus is installed it scrapes the two services and judges them by monitoring/'s rules; what it saw ends with it.

Each is a process of its own, with its own script; one that ends takes the others with it. Nothing here is imported from them.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from frontend.ports import API_PORT, API_VARIABLE, DRIFT_PORT, DRIFT_VARIABLE, PAGE_PORT, PROMETHEUS_PORT, local

ROOT = Path(__file__).parents[1]
PATIENCE_S = 120.0
GRACE_S = 15.0


@dataclass(frozen=True)
class Part:
    """A process of the stack; `ready` answers 200 once it is of use."""

    name: str
    command: list[str]
    environment: dict[str, str]
    url: str
    ready: str


PORTS = {"API_PORT": API_PORT, "DRIFT_PORT": DRIFT_PORT, "PAGE_PORT": PAGE_PORT, "PROMETHEUS_PORT": PROMETHEUS_PORT}
VARIABLES = dict(zip(("service", "drift", "page", "prometheus"), PORTS, strict=True))


def parts(environment: Mapping[str, str], scratch: Path) -> list[Part]:
    """The ports are those of ports.py; variables of the same names put others in their place. `scratch` is for Prometheus."""
    api, drift, page, prometheus = (_port(name, environment.get(name) or str(default)) for name, default in PORTS.items())
    own = {"HOST": "127.0.0.1", "PORT": str(page), "PYTHONPATH": str(ROOT)}
    own |= {API_VARIABLE: local(api), DRIFT_VARIABLE: local(drift)}
    found = [Part("service", [_script("serve")], {"PORT": str(api)}, local(api), "/ready")]
    found.append(Part("drift", [_script("drift")], {"PORT": str(drift)}, local(drift), "/health"))
    found.append(Part("page", [sys.executable, "-m", "frontend"], own, local(page), "/_stcore/health"))
    if (program := shutil.which("prometheus")) is not None:
        command = [program, *_prometheus(scratch, api, drift, prometheus)]
        found.append(Part("prometheus", command, {}, local(prometheus), "/-/ready"))
    return [Part(each.name, each.command, {**environment, **each.environment}, each.url, each.ready) for each in found]


def _refuse_taken(stack: list[Part]) -> None:
    """Ends the process with 2 where somebody else has a port: what listens there would be taken for the part."""
    for part in stack:
        port = urllib.parse.urlsplit(part.url).port
        try:
            socket.create_server(("127.0.0.1", port or 0)).close()
        except OSError as error:
            words = f"cannot listen at {part.url} ({os.strerror(error.errno or 0)}); {VARIABLES[part.name]} sets another port"
            _say(f"error: the {part.name} {words}")
            raise SystemExit(2) from error


def _port(name: str, value: str) -> int:
    """Ends the process with 2 for what is no port."""
    if not (value.isascii() and value.isdigit() and 1 <= int(value) <= 65535):
        _say(f"error: {name}={value!r}: allowed is a whole number from 1 to 65535")
        raise SystemExit(2)
    return int(value)


def _prometheus(scratch: Path, api: int, drift: int, port: int) -> list[str]:
    """Writes its configuration and returns its arguments."""
    rules = [str(ROOT / "monitoring" / name) for name in ("recording_rules.yaml", "alert_rules.yaml")]
    config = {
        "global": {"scrape_interval": "5s", "evaluation_interval": "5s"},
        "rule_files": [rule for rule in rules if Path(rule).is_file()],
        "scrape_configs": [
            {"job_name": name, "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}
            for name, target in (("pigeonhole", api), ("pigeonhole-drift", drift))
        ],
    }
    file = scratch / "prometheus.yml"
    file.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    paths = [f"--config.file={file}", f"--storage.tsdb.path={scratch / 'series'}"]
    return [*paths, f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]


def _script(name: str) -> str:
    """A console script of this environment, else of the path."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or name


@contextlib.contextmanager
def running(stack: list[Part]) -> Iterator[dict[str, "subprocess.Popen[bytes]"]]:
    """Started in order, each in a session of its own so that Ctrl-C reaches only this process; stopped in reverse."""
    started: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for part in stack:
            started[part.name] = subprocess.Popen(
                part.command, env=part.environment, stdout=sys.stderr.fileno(), start_new_session=True
            )
        yield started
    finally:
        for process in reversed(started.values()):
            process.terminate()
        for process in started.values():
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until_ready(part: Part, process: "subprocess.Popen[bytes]") -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(part.url + part.ready, timeout=2):  # noqa: S310  one of our own addresses
                return True
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    return False


def main() -> int:
    """0 after Ctrl-C or SIGTERM, 2 where a port is none or taken, 3 where a part does not start or ends by itself."""
    for number in (signal.SIGTERM, signal.SIGINT):  # the latter too: a shell without job control has what it starts ignore it
        signal.signal(number, _interrupt)
    try:
        with tempfile.TemporaryDirectory(prefix="pigeonhole-up-") as scratch:
            stack = parts(os.environ, Path(scratch))
            _refuse_taken(stack)
            return watch(stack)
    except KeyboardInterrupt:
        _say("stopped")
        return 0


def watch(stack: list[Part]) -> int:
    """Until a part ends by itself, which is a 3."""
    with running(stack) as started:
        for part in stack:
            if not wait_until_ready(part, started[part.name]):
                _say(f"error: the {part.name} at {part.url} does not start; what it said stands above")
                return 3
            _say(f"{part.name:<10} {part.url}")
        _say("Ctrl-C stops all of it")
        while all(process.poll() is None for process in started.values()):
            time.sleep(0.5)
        ended = next(name for name, process in started.items() if process.poll() is not None)
        _say(f"error: the {ended} has ended, so the others are stopped")
        return 3


def _interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  the signal module calls it so
    raise KeyboardInterrupt


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
