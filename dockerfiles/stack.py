"""Start compose.yaml with podman, visit what it started and end it; one JSON object says what came out.

    uv run python -m dockerfiles.stack

On the images that dockerfiles/build.py made with buildah, in a folder of its own, at the ports that compose.yaml names. Where
Prometheus is installed an image of it stands in for the published one, which an image registry would have to give. Knows
nothing of how an image is built.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from dockerfiles.build import QUESTION, Answer, ask_once
from dockerfiles.engine import ROOT, STAND_IN, Build, Buildah, do, storage_driver
from frontend.ports import API_PORT, DRIFT_PORT, PAGE_PORT, PROMETHEUS_PORT, local
from monitoring.alarm import until
from tests.keyword_bundle import keyword_bundle, keyword_rows

from pigeonhole.command import command, say, with_help
from pigeonhole.errors import ConfigError, RunError
from pigeonhole.registry import Registry

COMPOSE = ROOT / "compose.yaml"
SERVICES = ("serve", "drift", "frontend")
USER = 1000  # who owns the folders of the host, as compose.yaml has it
# Debian's crun refuses machines that have both kinds of control groups; podman's own limits may be higher than ours.
SETTINGS = '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=2048:2048"]\n[engine]\nruntime = "runc"\n'
SETTINGS += 'cgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
WRITE = "open('/venv/written', 'w')"
REACH = "import os, urllib.request as r; [r.urlopen(os.environ[k] + p, timeout=5) for k, p in {}]"


@with_help(__doc__)
def run(arguments: list[str]) -> dict[str, Any]:
    if arguments:
        raise ConfigError(f"{' '.join(arguments)}: no argument is known")
    _check_tools()
    engine = Buildah()
    if refused := engine.refused():
        raise ConfigError(f"no container can be made here: {refused}")
    if absent := [name for name in SERVICES if not engine.has(Build(name))]:
        raise ConfigError(f"no image of {', '.join(absent)}; uv run invoke images builds them")
    with tempfile.TemporaryDirectory() as scratch, _prometheus_image() as profile:
        stack = Stack(Path(scratch), profile)
        stack.lay_out()
        try:
            stack.compose("up", "--detach", "--no-build")
            found = visit(stack)
            stack.compose("stop")
            found["exit_codes"] = {name: stack.exit_code(name) for name in SERVICES}
        except RunError:
            stack.tell_logs()
            raise
        finally:
            stack.compose("down")
    if set(found["exit_codes"].values()) != {0}:
        raise RunError(f"ended with {found['exit_codes']}; expected 0 of each after SIGTERM")
    return found


def _check_tools() -> None:
    missing = [name for name in ("podman", "runc", "buildah", "mmdebstrap", "bwrap") if not shutil.which(name)]
    if missing:
        raise ConfigError(f"{', '.join(missing)}: not here; apt-get install podman runc buildah mmdebstrap bubblewrap")


@dataclass(frozen=True)
class Stack:
    """compose.yaml in a folder of its own, with a registry that holds one bundle."""

    folder: Path
    profile: str

    def lay_out(self) -> None:
        (self.folder / COMPOSE.name).write_text(without_digests(COMPOSE.read_text(encoding="utf-8")), encoding="utf-8")
        shutil.copytree(ROOT / "monitoring", self.folder / "monitoring")
        bundle = keyword_bundle(self.folder / "bundle", "v1", held_out=keyword_rows())
        registry = Registry(str(self.folder / "registry"))
        registry.publish(bundle.folder, bundle.manifest)
        registry.set_alias(bundle.manifest.name, "production", "v1", "the first", expected=None)
        for name in ("log", "drift-reports"):
            (self.folder / name).mkdir()
        for path in self.folder.rglob("*"):
            os.chown(path, USER, USER)
        self.folder.chmod(0o755)
        (self.folder / "containers.conf").write_text(SETTINGS, encoding="utf-8")
        for name in SERVICES:
            self.podman("tag", Build(name).reference, f"localhost/pigeonhole_{name}")

    def compose(self, *words: str) -> str:
        profile = ["--profile", self.profile] if self.profile else []
        line = [str(Path(sys.executable).with_name("podman-compose")), *profile, *words]
        return do(line, cwd=self.folder, variables=self._variables())

    def podman(self, *words: str) -> str:
        return do(["podman", *words], cwd=self.folder, variables=self._variables())

    def exit_code(self, service: str) -> int:
        return int(self.podman("inspect", "--format", "{{.State.ExitCode}}", container(service)))

    def tell_logs(self) -> None:
        """What each container said last, for the person who has to find out."""
        line, environment = ["podman", "logs", "--tail", "8"], {**os.environ, **self._variables()}
        for name in (*SERVICES, *([self.profile] if self.profile else [])):
            ran = subprocess.run([*line, container(name)], capture_output=True, text=True, check=False, env=environment)
            say(f"{name}: {ran.stdout}{ran.stderr}".rstrip())

    def _variables(self) -> dict[str, str]:
        return {
            "CONTAINERS_CONF": str(self.folder / "containers.conf"),
            "STORAGE_DRIVER": storage_driver(),
            "USER_ID": str(USER),
            "GROUP_ID": str(USER),
        }


def without_digests(compose: str) -> str:
    """A stand-in goes by the published image's name and tag; its digest is its own."""
    return re.sub(r"@sha256:[0-9a-f]{64}", "", compose)


def container(service: str) -> str:
    return f"pigeonhole_{service}_1"


def visit(stack: Stack) -> Answer:
    """What a person would do first. Raises RunError for what does not answer, or is not as compose.yaml says."""
    answer = until("POST /predict", lambda: ask_once(f"{local(API_PORT)}/predict", QUESTION))
    drift = until("drift's /health", lambda: ask_once(f"{local(DRIFT_PORT)}/health", None))
    page = until("the page", lambda: ask_once(f"{local(PAGE_PORT)}/", None))
    if "<title>" not in page["text"]:
        raise RunError(f"the page is {page['text'][:200]}")
    for name in SERVICES:
        stack.podman("healthcheck", "run", container(name))
        _refuse_to_write(stack, name)
    asked = (("PIGEONHOLE_API_URL", "/ready"), ("PIGEONHOLE_DRIFT_URL", "/health"))
    stack.podman("exec", container("frontend"), "python", "-c", REACH.format(asked))
    owners = {path.stat().st_uid for path in (stack.folder / "log").rglob("*") if path.is_file()}
    if owners != {USER}:
        raise RunError(f"the log's files belong to {owners}; expected those of user {USER}")
    report = until("POST /runs", lambda: ask_once(f"{local(DRIFT_PORT)}/runs", {"hours": 1, "draw": False}))
    if report["rows"]["window"] < 1:
        raise RunError("drift read no record, though serve wrote one")
    found = {"label": answer["label"], "drift": drift["status"], "page": "200", "drift_rows": report["rows"]["window"]}
    return found | ({"prometheus": _targets()} if stack.profile else {"left_out": "prometheus"})


def _refuse_to_write(stack: Stack, name: str) -> None:
    try:
        stack.podman("exec", container(name), "python", "-c", WRITE)
    except RunError as error:
        if "Read-only file system" not in str(error):
            raise
    else:
        raise RunError(f"{name} wrote to /venv; compose.yaml says that its root is read-only")


def _targets() -> Answer:
    """Which job Prometheus sees up. Raises RunError where one stays away, or no rule is loaded."""
    base = f"{local(PROMETHEUS_PORT)}/api/v1"
    query = f"{base}/query?query={urllib.parse.quote('up == 1')}"

    def both() -> Answer | None:
        found = ask_once(query, None)
        jobs = {row["metric"]["job"]: "up" for row in found["data"]["result"]} if found else {}
        return jobs if set(jobs) == {"pigeonhole", "pigeonhole-drift"} else None

    jobs = until("Prometheus to see both services", both)
    rules = ask_once(f"{base}/rules", None)
    if not (rules and len(rules["data"]["groups"]) > 1):
        raise RunError(f"Prometheus has no rules: {rules}")
    return jobs


@contextmanager
def _prometheus_image() -> Iterator[str]:
    """The profile to start, with an image of this machine's Prometheus under the published one's name while it runs."""
    program = shutil.which("prometheus")
    if not program:
        say("left out: prometheus, which is not installed (apt-get install prometheus)")
        yield ""
        return
    name = yaml.safe_load(without_digests(COMPOSE.read_text(encoding="utf-8")))["services"]["prometheus"]["image"]
    base = ["buildah", "--storage-driver", storage_driver()]
    made = do([*base, "from", "--pull-never", STAND_IN]).strip()
    do([*base, "copy", "--quiet", made, program, "/bin/prometheus"])
    do([*base, "run", "--isolation", "chroot", made, "--", "install", "--directory", "--owner=nobody", "/prometheus"])
    command_line = json.dumps(["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"])
    do([*base, "config", "--entrypoint", '["/bin/prometheus"]', "--cmd", command_line, "--user", "nobody", made])
    do([*base, "commit", "--quiet", "--rm", made, name])
    try:
        yield "prometheus"
    finally:
        subprocess.run([*base, "rmi", name], capture_output=True, check=False)


if __name__ == "__main__":
    command(run)()
