"""Build the images, start them and ask them something; one JSON object says what came out.

    uv run python dockerfiles/build.py serve [drift] [train] [bundle=FOLDER] [until=lock]

With Docker where its engine runs (read-only files, uid 10001); elsewhere, as root, with buildah (chroot isolation, vfs storage,
neither engine nor registry), on a stand-in for the base: Debian bookworm, its Python 3.11, by debootstrap. `bundle` is what serve
answers from; without it only its --help is asked for. `until=lock` builds train no further than the layer of the lock.
"""

import contextlib
import functools
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pigeonhole.command import command, say
from pigeonhole.errors import ConfigError, RunError

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ("serve", "drift", "train")
STAND_IN = "localhost/pigeonhole-stand-in-for-python:3.11-slim-bookworm"
BUILDAH = ["buildah", "--storage-driver", "vfs"]
CHROOT = ["--isolation", "chroot"]
QUESTION = {"text": "I was charged twice for the same order"}
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


@dataclass(frozen=True)
class Built:
    """An image in the engine's store and what it adds to its base."""

    name: str
    reference: str
    over_base_mb: float


def run(arguments: list[str]) -> dict[str, Any] | None:
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return None
    names = [name for name in arguments if "=" not in name]
    options = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    if not names or set(names) - set(IMAGES) or set(options) - {"bundle", "until"}:
        raise ConfigError(f"{' '.join(arguments)}: expected one of {', '.join(IMAGES)}, and bundle=FOLDER or until=lock")
    engine = find_engine()
    say(f"building with {engine}")
    return {"engine": engine, "images": [_try(engine, name, options) for name in names]}


def find_engine() -> str:
    """`docker` where its engine answers, else `buildah`. Raises ConfigError."""
    if shutil.which("docker") and subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0:
        return "docker"
    if all(map(shutil.which, ("buildah", "debootstrap"))):
        return "buildah"
    raise ConfigError("neither a Docker engine nor buildah is here; apt-get install buildah debootstrap, or start Docker")


def _try(engine: str, name: str, options: dict[str, str]) -> dict[str, Any]:
    began = time.perf_counter()
    if name == "train" and options.get("until") == "lock":
        _build(engine, name, "--target", "lock")
        return {"image": name, "until": "lock", "seconds": round(time.perf_counter() - began, 1)}
    built = _build(engine, name)
    report: dict[str, Any] = {"image": name, "over_base_mb": built.over_base_mb, "seconds": round(time.perf_counter() - began, 1)}
    if name == "serve" and "bundle" in options:
        return {**report, **_ask(engine, built, Path(options["bundle"]).resolve())}
    with _started(engine, built, ["--cfg", "job"] if name == "train" else ["--help"], {}, {}) as process:
        printed, _ = process.communicate(timeout=120)
    if process.returncode != 0:
        raise RunError(f"{name} ended with {process.returncode}: {printed[-500:]}")
    return {**report, "printed_lines": len(printed.splitlines())}


def _build(engine: str, name: str, *more: str) -> Built:
    reference = f"localhost/pigeonhole-{name}"
    dockerfile = ROOT / f"dockerfiles/{name}.dockerfile"
    if engine == "docker":
        _do(["docker", "build", "--platform", "linux/amd64", "--file", str(dockerfile), "--tag", reference, *more, str(ROOT)])
        base = _pinned_base(dockerfile)
        sizes = [int(_do(["docker", "image", "inspect", "--format", "{{.Size}}", which])) for which in (reference, base)]
        return Built(name, reference, round((sizes[0] - sizes[1]) / 1e6, 1))
    _make_stand_in()
    base = ["--build-arg", f"BASE={STAND_IN}"]
    _do([*BUILDAH, "build", *CHROOT, "--layers", *base, "--file", str(dockerfile), "--tag", reference, *more, str(ROOT)])
    return Built(name, reference, round((_size_bytes(reference) - _size_bytes(STAND_IN)) / 1e6, 1))


def _pinned_base(dockerfile: Path) -> str:
    found = re.search(r"^ARG BASE=(\S+)$", dockerfile.read_text(encoding="utf-8"), re.MULTILINE)
    assert found, f"{dockerfile} has no ARG BASE"
    return found.group(1)


@functools.cache
def _make_stand_in() -> None:
    """Debian bookworm with its own Python 3.11, called `python` as in the official image, and this host's roots of trust."""
    if subprocess.run([*BUILDAH, "inspect", STAND_IN], capture_output=True, check=False).returncode == 0:
        return
    say("making the stand-in base by debootstrap")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "root"
        packages = "--include=ca-certificates,python3,python3-pip,python3-venv"
        _do(["debootstrap", "--variant=minbase", packages, "bookworm", str(root)])
        (root / "usr/bin/python").symlink_to("python3")
        for marker in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
            marker.unlink()  # the official image's pip installs without asking, too
        if CERTIFICATES.exists():
            shutil.copy(CERTIFICATES, root / "etc/ssl/certs/ca-certificates.crt")
        shutil.rmtree(root / "var/cache/apt", ignore_errors=True)
        container = _do([*BUILDAH, "from", "scratch"]).strip()
        _do([*BUILDAH, "add", "--quiet", container, str(root), "/"])
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        trust = [f"{name}=/etc/ssl/certs/ca-certificates.crt" for name in ("SSL_CERT_FILE", "PIP_CERT")]
        _do([*BUILDAH, "config", *(word for line in (path, *trust) for word in ("--env", line)), container])
        _do([*BUILDAH, "commit", "--quiet", "--rm", container, STAND_IN])


def _size_bytes(reference: str) -> int:
    """What the files of an image take, without counting hard links twice."""
    container = _do([*BUILDAH, "from", reference]).strip()
    try:
        mounted = _do([*BUILDAH, "mount", container]).strip()
        return int(_do(["du", "--bytes", "--summarize", mounted]).split()[0])
    finally:
        _do([*BUILDAH, "rm", container])


def _ask(engine: str, built: Built, bundle: Path) -> dict[str, Any]:
    """Start the service on a free port with nothing but the bundle, and put the README's question to it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    variables = {"PORT": str(port), "PIGEONHOLE_BUNDLE": "/bundle", "PIGEONHOLE_LOG": "log"}
    with _started(engine, built, [], variables, {bundle: "/bundle"}) as process:
        began = time.perf_counter()
        while (answer := _post(port)) is None:
            if process.poll() is not None or time.perf_counter() - began > 120:
                raise RunError(f"serve gave no answer: {process.communicate()[0] if process.stdout else ''}")
            time.sleep(0.05)
        seconds = time.perf_counter() - began
        _check_user("/venv/bin/serve")
    return {"seconds_to_first_answer": round(seconds, 2), "label": answer["label"]}


def _post(port: int) -> dict[str, Any] | None:
    url = f"http://127.0.0.1:{port}/predict"
    request = urllib.request.Request(url, json.dumps(QUESTION).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310  our own port
            found: dict[str, Any] = json.load(answer)
            return found
    except (urllib.error.URLError, ConnectionError):
        return None


def _check_user(command: str) -> None:
    """Raises RunError where the process that runs a command of the image is not there, or does not run as uid 10001."""
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            if command.encode() in (status.parent / "cmdline").read_bytes().split(b"\0")[:2]:
                uid = dict(line.split(":", 1) for line in status.read_text().splitlines())["Uid"].split()[0]
                if uid != "10001":
                    raise RunError(f"{command} runs as uid {uid}, not as 10001")
                return
    raise RunError(f"no process runs {command}")


@contextlib.contextmanager
def _started(
    engine: str, built: Built, words: list[str], variables: dict[str, str], mounts: dict[Path, str]
) -> Iterator["subprocess.Popen[str]"]:
    """A container of the image, running its entry point; ended with SIGTERM, as Cloud Run does."""
    options = [word for name, value in variables.items() for word in ("--env", f"{name}={value}")]
    options += [word for host, inside in mounts.items() for word in ("--volume", f"{host}:{inside}:ro")]
    with contextlib.ExitStack() as stack:
        if engine == "docker":
            head = [
                "docker",
                "run",
                "--rm",
                "--init",
                "--read-only",
                "--mount",
                "type=tmpfs,destination=/tmp",
                "--network",
                "host",
            ]
            line = [*head, *options, built.reference]
        else:
            container = _do([*BUILDAH, "from", built.reference]).strip()
            stack.callback(_do, [*BUILDAH, "rm", container])
            line = [*BUILDAH, "run", *CHROOT, *options, container, "--", *_entry_point(built.reference)]
        process = subprocess.Popen([*line, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        yield stack.enter_context(_ended(process))


def _entry_point(reference: str) -> list[str]:
    config = json.loads(_do([*BUILDAH, "inspect", "--type", "image", reference]))["OCIv1"]["config"]
    words: list[str] = config["Entrypoint"]
    return words


@contextlib.contextmanager
def _ended(process: "subprocess.Popen[str]") -> Iterator["subprocess.Popen[str]"]:
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _do(line: list[str]) -> str:
    """Run a program; what it prints on stdout. Raises RunError with the end of what it said."""
    ran = subprocess.run(line, capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, "BUILDAH_FORMAT": "oci"})
    if ran.returncode:
        raise RunError(f"{' '.join(line[:6])} … ended with {ran.returncode}: {(ran.stderr or ran.stdout).strip()[-2000:]}")
    return ran.stdout


if __name__ == "__main__":
    command(run)()
