"""`uv run invoke alarm`: does anybody hear of it when the service dies? Nothing is stood in for but the pager.

A real server is scraped by a real Prometheus under the committed rules; the server is killed; Alertmanager has to deliver the
alert to a webhook. `for_s` is how long the rule waits (the committed one minute unless given); all else is as committed, asked
every second.

    uv run python -m monitoring.alarm bundle=FOLDER [for_s=60]
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import yaml

from pigeonhole.command import command, say, with_help
from pigeonhole.errors import ConfigError, RunError
from pigeonhole.options import read_options, setting
from pigeonhole.port import free_port
from pigeonhole.storage import exists, join, to_url

FOLDER = Path(__file__).parent
ALERT = "PigeonholeDown"
PROMETHEUS = ("prometheus",)
ALERTMANAGER = ("prometheus-alertmanager", "alertmanager")  # Debian's name, its own
PATIENCE_S = 60
Found = TypeVar("Found")


@dataclass
class AlarmConfig:
    bundle: str = setting("", "a bundle's folder or URL, for the server; needed")
    for_s: int = setting(60, "seconds that the service is down before the alert fires", ge=0, le=3600)


@with_help(__doc__, AlarmConfig)
def run(arguments: list[str]) -> dict[str, Any]:
    config = read_options(AlarmConfig, arguments)
    if not (config.bundle and exists(join(config.bundle, "manifest.json"))):
        raise ConfigError(f"bundle={config.bundle}: expected the folder of a bundle")
    prometheus, alertmanager = program(PROMETHEUS), program(ALERTMANAGER)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ports = {name: free_port() for name in ("serve", "prometheus", "alertmanager")}
        pager = stack.enter_context(Pager())
        write_settings(folder, ports, pager.port, config.for_s)
        bundle = to_url(config.bundle)  # the server works in another folder
        variables = {"PORT": ports["serve"], "PIGEONHOLE_BUNDLE": bundle, "PIGEONHOLE_LOG": folder / "log"}
        serve = stack.enter_context(started([program(("serve",))], folder, variables))
        stack.enter_context(started(alertmanager_line(alertmanager, folder, ports), folder))
        stack.enter_context(started(prometheus_line(prometheus, folder, ports), folder))
        asked = f"http://127.0.0.1:{ports['prometheus']}/api/v1/query?query="
        up = asked + urllib.parse.quote('up{job="pigeonhole"} * on (instance) group_right () pigeonhole_model_info')
        until("Prometheus to scrape the server", lambda: first_value(up) == "1")
        say("the server is scraped; it is killed now")
        serve.kill()
        began = time.perf_counter()
        until(f"Alertmanager to deliver {ALERT}", lambda: ALERT in pager.firing, config.for_s + PATIENCE_S)
        seconds = round(time.perf_counter() - began, 1)
        said = pager.firing[ALERT]
        say(f"{said['labels']['severity']}: {said['annotations']['summary']}")
        return {"alert": ALERT, "severity": said["labels"]["severity"], "seconds_to_webhook": seconds, "for_s": config.for_s}


def program(names: tuple[str, ...]) -> str:
    """The first that is here, beside this Python or on the path. Raises ConfigError."""
    beside = str(Path(sys.executable).parent)
    for name in names:
        if path := shutil.which(name, path=beside) or shutil.which(name):
            return path
    raise ConfigError(f"{names[0]} is not here; apt-get install prometheus prometheus-alertmanager")


class Pager:
    """A webhook that keeps the alerts that fire, by name."""

    def __init__(self) -> None:
        self.firing: dict[str, dict[str, Any]] = {}
        firing = self.firing

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                firing.update({alert["labels"]["alertname"]: alert for alert in body["alerts"] if alert["status"] == "firing"})
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port

    def __enter__(self) -> "Pager":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def write_settings(folder: Path, ports: dict[str, int], pager: int, for_s: int) -> None:
    """The committed rules with the wait of one of them, and where everybody is."""
    shutil.copy(FOLDER / "recording_rules.yaml", folder)
    rules = yaml.safe_load((FOLDER / "alert_rules.yaml").read_text(encoding="utf-8"))
    (rule,) = [rule for group in rules["groups"] for rule in group["rules"] if rule["alert"] == ALERT]
    rule["for"] = f"{for_s}s"
    settings = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": ["recording_rules.yaml", "alert_rules.yaml"],
        "scrape_configs": [{"job_name": "pigeonhole", "static_configs": [{"targets": [f"127.0.0.1:{ports['serve']}"]}]}],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{ports['alertmanager']}"]}]}]},
    }
    delivery = {
        "route": {"receiver": "pager", "group_wait": "0s", "group_interval": "1s"},
        "receivers": [{"name": "pager", "webhook_configs": [{"url": f"http://127.0.0.1:{pager}/"}]}],
    }
    for name, content in (("alert_rules", rules), ("prometheus", settings), ("alertmanager", delivery)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


def prometheus_line(program: str, folder: Path, ports: dict[str, int]) -> list[str]:
    place = [f"--config.file={folder / 'prometheus.yaml'}", f"--storage.tsdb.path={folder / 'series'}"]
    return [program, *place, f"--web.listen-address=127.0.0.1:{ports['prometheus']}", "--log.level=error"]


def alertmanager_line(program: str, folder: Path, ports: dict[str, int]) -> list[str]:
    place = [f"--config.file={folder / 'alertmanager.yaml'}", f"--storage.path={folder / 'alerts'}"]
    alone = "--cluster.listen-address="
    return [program, *place, alone, f"--web.listen-address=127.0.0.1:{ports['alertmanager']}", "--log.level=error"]


@contextlib.contextmanager
def started(line: list[str], folder: Path, variables: dict[str, Any] | None = None) -> Iterator["subprocess.Popen[bytes]"]:
    environment = {**os.environ, **{name: str(value) for name, value in (variables or {}).items()}}
    process = subprocess.Popen(line, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    with process:
        try:
            yield process
        finally:
            process.kill()


def until(what: str, ask: Callable[[], Found | None], patience_s: float = PATIENCE_S) -> Found:
    """The first answer that is one. Raises RunError where none comes in time."""
    deadline = time.monotonic() + patience_s
    while not (found := ask()):
        if time.monotonic() > deadline:
            raise RunError(f"waited {patience_s:.0f} s for {what}")
        time.sleep(0.1)
    return found


def first_value(url: str, timeout_s: float = 5) -> str:
    """The first value that Prometheus answers with; "" where it has none yet, or does not answer yet."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer:  # noqa: S310  our own port
            found = json.load(answer)["data"]["result"]
    except OSError:  # an HTTP status and an answer that does not come are such errors, too
        return ""
    return str(found[0]["value"][1]) if found else ""


if __name__ == "__main__":
    command(run)()
