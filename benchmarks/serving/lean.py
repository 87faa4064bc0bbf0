"""The lean serving environment: its size, what is in it, and how long it takes to the first answer.

    uv run python benchmarks/serving/lean.py [bundle=URL]

Builds the environment from the lock in a temporary folder, as the image does: not editable, with bytecode. Then starts `serve`
there several times. Without `bundle`, the production version of ./registry is served. Prints one JSON object.
"""

import contextlib
import json
import os
import statistics
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pigeonhole.command import command, say, with_help
from pigeonhole.errors import RunError
from pigeonhole.options import read_options, setting
from pigeonhole.port import free_port

ROOT = Path(__file__).resolve().parents[2]
STARTS = 7
START_S = 60.0
HEAVY = ("torch", "transformers", "datasets", "hydra", "pandas", "pyarrow")
FIND = f"import json; from importlib.util import find_spec; print(json.dumps([name for name in {HEAVY} if find_spec(name)]))"


@dataclass(frozen=True)
class Options:
    bundle: str | None = setting(None, "the bundle's URL; unset: the production version of ./registry")


@with_help(__doc__, Options)
def run(arguments: list[str]) -> dict[str, Any]:
    options = read_options(Options, arguments)
    environment = {"PIGEONHOLE_BUNDLE": options.bundle} if options.bundle else {}
    with tempfile.TemporaryDirectory() as scratch:
        venv = Path(scratch) / "venv"
        say("installing the service group, then all of the serve group, from the lock")
        local_bytes = _install(venv, "service")
        size_bytes = _install(venv, "serve")
        packages = _in(venv, "import importlib.metadata as m; print(len({d.name for d in m.distributions()}))")
        importable = json.loads(_in(venv, FIND))
        _install(venv, "serve", "--compile-bytecode")
        say(f"starting {STARTS} times; the first start reads all files for the first time, and is told apart")
        starts = [_start(venv, Path(scratch) / f"log-{number}", environment) for number in range(STARTS)]
    seconds = [start["seconds"] for start in starts]
    return {
        "size_mb": {"service": round(local_bytes / 1e6, 1), "serve": round(size_bytes / 1e6, 1)},
        "packages": int(packages),
        "heavy_importable": importable,
        "torch_importable": "torch" in importable,
        "seconds_to_first_answer": {
            "first": seconds[0],
            "median": statistics.median(seconds[1:]),
            "least": min(seconds[1:]),
        },
        "cpu_seconds_to_first_answer": statistics.median(start["cpu_seconds"] for start in starts[1:]),
        "rss_mb": {
            "after_first_answer": max(start["rss_mb"] for start in starts),
            "peak": max(start["peak_mb"] for start in starts),
        },
        "load_average": os.getloadavg()[0],
    }


def _install(venv: Path, group: str, *more: str) -> int:
    """The bytes of all its files."""
    sync = ["uv", "sync", "--quiet", "--locked", "--no-editable", "--no-default-groups", "--group", group, *more]
    subprocess.run(sync, cwd=ROOT, env=_outside(UV_PROJECT_ENVIRONMENT=str(venv)), check=True)
    return sum(path.lstat().st_size for path in venv.rglob("*") if not path.is_dir())


def _outside(**more: str) -> dict[str, str]:
    """The environment without the virtual environment that this program runs in."""
    return {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"} | more


def _in(venv: Path, program: str) -> str:
    ran = subprocess.run([venv / "bin" / "python", "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return ran.stdout.strip()


def _start(venv: Path, log: Path, environment: dict[str, str]) -> dict[str, float]:
    port = free_port()
    variables = _outside(PORT=str(port), PIGEONHOLE_LOG=str(log), **environment)
    began = time.perf_counter()
    with _ended(
        subprocess.Popen([venv / "bin" / "serve"], cwd=ROOT, env=variables, stderr=subprocess.PIPE, text=True)
    ) as process:
        while not _answers(port):
            if process.poll() is not None:
                raise RunError(f"serve ended with {process.returncode}: {process.stderr.read() if process.stderr else ''}")
            if time.perf_counter() - began > START_S:
                raise RunError(f"serve has answered nothing with 200 for {START_S:.0f} s")
            time.sleep(0.002)
        seconds = time.perf_counter() - began
        status = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
        ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return {
        "seconds": round(seconds, 3),
        "cpu_seconds": round(sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"), 3),
        "rss_mb": round(int(status["VmRSS"].split()[0]) / 1000, 1),
        "peak_mb": round(int(status["VmHWM"].split()[0]) / 1000, 1),
    }


def _answers(port: int) -> bool:
    body = json.dumps({"text": "where is my parcel"}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/predict", body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310  our own port
            return bool(json.load(answer)["label"])
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


@contextlib.contextmanager
def _ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=20)


if __name__ == "__main__":
    command(run)()
