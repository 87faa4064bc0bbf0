"""The product's own commands as processes: the demo's, each with a log file, at a free port, ended when the demo ends."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pigeonhole.errors import ConfigError, RunError
from pigeonhole.port import free_port

PATIENCE_S = 120.0
GRACE_S = 30.0


class Processes(ExitStack):
    """`out`/logs keeps what each of them says to people; leaving the context ends them, the last one first."""

    def __init__(self, out: Path, environment: Mapping[str, str]) -> None:
        super().__init__()
        self.out = out
        self._folder = out / "logs"
        self._folder.mkdir(parents=True, exist_ok=True)
        # Where Python may keep no bytecode, each process compiles all that it imports anew: 14 s where torch is among it.
        self._environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", **environment}

    def run(self, name: str, *arguments: str, codes: Sequence[int] = (0,)) -> dict[str, Any]:
        """A command to its end; what it printed. Raises with its last line: ConfigError where it ended with 2, else RunError."""
        log = self._folder / f"{name}.log"
        with log.open("a") as stream:
            ended = subprocess.run(
                [script(name), *arguments], env=self._environment, stdout=subprocess.PIPE, stderr=stream, check=False
            )
        if ended.returncode not in codes:
            error = ConfigError if ended.returncode == ConfigError.exit_code else RunError
            raise error(f"{name} ended with {ended.returncode}: {_last_line(log)} (all of it: {log})")
        printed: dict[str, Any] = json.loads(ended.stdout)
        return printed

    def serve(self, name: str, ready: str, **environment: str) -> str:
        """Start a service at a free port of this machine and return its URL once `ready` answers 200. Raises RunError."""
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        log = self._folder / f"{name}.log"
        stream = self.enter_context(log.open("a"))
        variables = {**self._environment, **environment, "HOST": "127.0.0.1", "PORT": str(port)}
        process = subprocess.Popen([script(name)], env=variables, stdout=stream, stderr=stream)
        self.callback(_end, process)
        until = time.monotonic() + PATIENCE_S
        while process.poll() is None and time.monotonic() < until:
            try:
                call(url + ready)
            except (OSError, urllib.error.URLError):
                time.sleep(0.05)
            else:
                return url
        raise RunError(f"{name} does not answer at {url}{ready}: {_last_line(log)} (all of it: {log})")


def call(url: str, body: object = None) -> Any:
    """GET, or POST `body` as JSON; the JSON answer. Raises OSError (HTTPError for a status of 400 and more)."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})  # noqa: S310  a process of our own
    with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
        return json.loads(answer.read())


def script(name: str) -> str:
    """A console script of this environment, else of the path."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or name


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][-300:] if lines else "it said nothing"
