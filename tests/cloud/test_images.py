"""The dockerfiles, as far as they can be read; dockerfiles/build.py really builds them and asks them something."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from dockerfiles import build, engine
from tests.conftest import wait_until

from pigeonhole.errors import ConfigError, RunError

ROOT = Path(__file__).parents[2]
BAKED = ROOT / "dockerfiles/serve_baked.dockerfile"  # on top of serve; its context is a bundle
FILES = sorted(set((ROOT / "dockerfiles").glob("*.dockerfile")) - {BAKED})
HADOLINT = Path(sysconfig.get_path("scripts")) / f"hadolint{'.exe' if sys.platform == 'win32' else ''}"


def hadolint(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([HADOLINT, "--no-color", str(path)], capture_output=True, text=True, check=False)


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def dockerfile(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


def test_hadolint_finds_nothing(dockerfile: Path) -> None:
    answer = hadolint(dockerfile)
    assert (answer.returncode, answer.stdout) == (0, "")


@pytest.mark.parametrize(
    ("right", "wrong", "rule"),
    [
        ("uv==0.13.8", "uv", "DL3013"),
        ("WORKDIR /build", "WORKDIR build", "DL3000"),
        ("WORKDIR /build", "WORKDR /build", "unexpected"),
        ('ENTRYPOINT ["serve"]', "ENTRYPOINT serve", "DL3025"),
        ("EXPOSE 8080", "EXPOSE 80800", "DL3011"),
    ],
)
def test_a_planted_fault_is_caught(right: str, wrong: str, rule: str, tmp_path: Path) -> None:
    text = (ROOT / "dockerfiles/serve.dockerfile").read_text()
    assert right in text
    file = tmp_path / "Dockerfile"
    file.write_text(text.replace(right, wrong, 1))
    answer = hadolint(file)
    assert answer.returncode != 0
    assert rule in answer.stdout + answer.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs Linux")
def test_a_program_that_does_not_end_is_ended_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "LONGEST_BUILD_S", 0.1)
    with pytest.raises(RunError, match=r"still runs after 0\.1 s, and was ended"):
        engine.do(["sleep", "60"])


@pytest.mark.skipif(sys.platform == "win32", reason="needs Linux")
def test_a_container_that_does_not_end_is_ended_and_told_with_what_it_said(tmp_path: Path) -> None:
    """As of bubblewrap: whoever is killed in the place of process 1 leaves it behind, with the pipe that is read to its end."""
    told = tmp_path / "first"
    line = ["sh", "-c", f"echo here I am; sleep 60 & echo $! > {told}.new && mv {told}.new {told}; wait"]
    with engine._started(line) as (process, output):
        wait_until(told.exists)
        container = engine.Container(process, int(told.read_text()), output)
        with pytest.raises(RunError, match=r"train still runs after 0\.5 s: here I am"):
            build.printed(container, "train", 0.5)


TALKER = """
import http.server, os, signal, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print("x" * 300_000, flush=True)  # more than a pipe holds
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"ok")

signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""


class Here:
    """Starts a program of this machine in the place of an image, under the name of the engine whose user is looked at."""

    def __init__(self, name: str, program: str) -> None:
        self.name, self.program = name, program

    @contextlib.contextmanager
    def run(self, _: object, __: object, variables: Mapping[str, str], ___: object) -> Iterator[engine.Container]:
        line = ["env", *(f"{name}={value}" for name, value in variables.items()), sys.executable, "-c", self.program]
        with engine._started(line) as (process, output):
            yield engine.Container(process, process.pid, output)


@pytest.mark.skipif(sys.platform == "win32", reason="needs Linux")
def test_a_service_that_prints_more_than_a_pipe_holds_answers_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "PATIENCE_S", 20)
    here: Any = Here("docker", TALKER)
    answer = build.ask(here, engine.Build("frontend"), {}, {}, "/", None)
    assert (answer["text"], answer["after_sigterm"]) == ("ok", 0)


@pytest.mark.skipif(sys.platform == "win32", reason="needs Linux")
def test_an_image_that_runs_as_another_user_and_one_that_never_answers_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    here: Any = Here("buildah", TALKER)
    with pytest.raises(RunError, match=rf"frontend: uid {os.geteuid()}, ended with 0 after SIGTERM; expected 10001 and 0"):
        build.ask(here, engine.Build("frontend"), {}, {}, "/", None)
    monkeypatch.setattr(build, "PATIENCE_S", 5)
    silent: Any = Here("buildah", TALKER.replace("self.send_response(200)", "import time; time.sleep(60)"))
    with pytest.raises(RunError, match="frontend gave no answer: x"):
        build.ask(silent, engine.Build("frontend"), {}, {}, "/", None)


@pytest.mark.skipif(sys.platform == "win32", reason="needs Linux")
def test_a_container_of_docker_is_gone_when_its_client_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL ends the client alone: what answers nothing would keep its memory and its port for ever."""
    program = tmp_path / "docker"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\ncase $1 in run) exec sleep 60;; esac\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with engine.Docker().run(engine.Build("serve"), [], {}, {}):
        asked = tmp_path / "asked"
        wait_until(lambda: asked.exists() and asked.read_text().endswith("\n"))
    started, ended = asked.read_text().splitlines()
    (name,) = re.findall(r"--name (\S+)", started)
    assert "--read-only --network host --mount type=tmpfs,destination=/tmp" in started  # as Cloud Run and compose.yaml start it
    assert ended == f"rm --force {name}"


@pytest.fixture
def no_containers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that has all the tools and whose kernel lets nobody make a container."""
    for name in ("buildah", "mmdebstrap"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2; exit 1\n")
    for file in tmp_path.iterdir():
        file.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 0, raising=False)
    engine.storage_driver.cache_clear()
    return tmp_path


@pytest.mark.skipif(sys.platform == "win32", reason="needs Linux")
def test_where_no_container_can_be_made_the_images_are_skipped_by_name_and_only_if_that_is_allowed(
    no_containers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = build.run(["serve", "drift", "skip=allowed"])
    assert told == {
        "engine": "buildah",
        "images": [],
        "skipped": ["serve", "drift"],
        "reason": "bwrap: No permissions to create new namespace",
    }
    assert "SKIPPED the images serve, drift: no container can be made here: bwrap: No perm" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="no container can be made here"):
        build.run(["serve"])
    (no_containers / "mmdebstrap").unlink()
    with pytest.raises(ConfigError, match="apt-get install buildah mmdebstrap bubblewrap"):
        build.run(["serve", "skip=allowed"])


def test_a_word_that_is_no_image_and_a_folder_that_is_no_bundle_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="imagse: expected some of serve, drift"):
        build.run(["imagse"])
    with pytest.raises(ConfigError, match="serve skip=yes: expected some of"):
        build.run(["serve", "skip=yes"])
    with (
        pytest.raises(ConfigError, match=r"has no manifest\.json; give the folder of a bundle, or none"),
        build._bundle(str(tmp_path)),
    ):
        pass


def test_a_bill_of_materials_that_lacks_what_an_image_holds_is_refused(tmp_path: Path) -> None:
    for folder in ("google_auth-2.0.dist-info", "Jinja2-3.dist-info", "setuptools/_vendor/zipp-3.19.2.dist-info"):
        (tmp_path / "image/venv/lib/python3.11/site-packages" / folder).mkdir(parents=True)
    held = build.packages(engine.do(["find", str(tmp_path / "image"), "-xdev", *build.DIST_INFO]).splitlines())
    assert held == {"google-auth", "jinja2"}
    assert build.write_sbom("serve", tmp_path, held - {"jinja2"}) > 50
    with pytest.raises(RunError, match="serve holds jinja2, which its bill of materials does not name"):
        build.write_sbom("serve", tmp_path, held)


def test_a_file_of_ours_that_git_does_not_track_is_found_in_an_image() -> None:
    """A key beside the code, a model: .dockerignore lets the folder in."""
    package = "/venv/lib/python3.11/site-packages/pigeonhole"
    known = [f"{package}/storage.py", f"{package}/configs/train.yaml", "/app/frontend/client.py"]
    assert build.strangers(known) == []
    planted = [f"{package}/.env", f"{package}/configs/key.json", "/app/frontend/model.onnx"]
    assert build.strangers([*known, *planted]) == ["configs/key.json", "frontend/model.onnx", "src/pigeonhole/.env"]


def test_the_base_is_one_digest_for_all() -> None:
    bases = {found for path in FILES for found in re.findall(r"^ARG BASE=(.*)$", path.read_text(), re.MULTILINE)}
    assert len(bases) == 1
    assert re.fullmatch(r"docker\.io/library/python:3\.11-slim-bookworm@sha256:[0-9a-f]{64}", bases.pop())


def test_an_image_holds_its_own_group_and_runs_as_nobody(dockerfile: Path) -> None:
    text = dockerfile.read_text()
    syncs = re.findall(r"uv sync (.*)$", text, re.MULTILINE)
    group = {"score": "score-cluster"}.get(dockerfile.stem, dockerfile.stem)
    flags = f"--locked --no-default-groups --group {group}"
    if dockerfile.stem == "frontend":  # imports nothing of the package, so the package stays out
        assert syncs == ["--locked --only-group frontend"]
        assert "COPY src" not in text
    else:
        assert syncs == [f"{flags} --no-install-project", f"{flags} --no-editable"]
        assert text.index("COPY pyproject.toml uv.lock ./") < text.index("--no-install-project") < text.index("COPY src src")
    assert "USER 10001:10001" in text.split("FROM ${BASE}\n")[1]
    assert re.search(r'^ENTRYPOINT \["[\w-]+"(, "[\w-]+")*\]$', text, re.MULTILINE)
    assert secrets_in(text) == []


def secrets_in(text: str) -> list[str]:
    """What an ARG or an ENV would leave in a layer for all who have the image."""
    return re.findall(r"(?i)\w*(?:api_key|secret|token|password|credential)\w*", text)


@pytest.mark.parametrize("line", ["ARG WANDB_API_KEY", "ENV GOOGLE_APPLICATION_CREDENTIALS=/key.json", "RUN echo $TOKEN"])
def test_a_secret_in_a_layer_is_caught(line: str) -> None:
    text = (ROOT / "dockerfiles/serve.dockerfile").read_text()
    assert len(secrets_in(text.replace("WORKDIR /tmp", line))) == 1


def test_a_bundle_is_baked_in_by_its_seal_alone() -> None:
    text = BAKED.read_text()
    assert re.findall(r"^(?:FROM|COPY|ENV|USER|ENTRYPOINT) .*$", text, re.MULTILINE) == [
        "FROM ${BASE}",
        "COPY . /bundle/",
        "ENV PIGEONHOLE_BUNDLE=/bundle",
    ]
    assert hadolint(BAKED).stdout == ""
    assert "open_bundle('/bundle').manifest.seal; assert found == os.environ['SEAL']" in text


def test_an_entry_point_is_a_command_of_the_project(dockerfile: Path) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert set(re.findall(r'^ENTRYPOINT \["([\w-]+)"\]$', dockerfile.read_text(), re.MULTILINE)) <= set(scripts)


def test_everything_that_an_image_copies_is_let_in_and_nothing_else() -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = {line.removeprefix("!") for line in ignore if line.startswith("!")}
    copied = {
        word
        for path in FILES
        for line in re.findall(r"^COPY (?!--from)(.*) \S+$", path.read_text(), re.MULTILINE)
        for word in line.split()
    }
    assert ignore[1] == "*"
    assert copied == let_in


def test_the_wheel_carries_the_configuration(tmp_path: Path) -> None:
    uv = os.environ.get("UV") or shutil.which("uv")
    assert uv, "uv runs these tests and is not to be found"
    # Offline: `uv sync` has fetched the build backend already.
    subprocess.run([uv, "build", "--wheel", "--offline", "--out-dir", str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    expected = {f"pigeonhole/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert expected <= names
    assert {"pigeonhole/serving/docs.html", "pigeonhole/py.typed", "pigeonhole/dataset/tickets/tickets.csv"} <= names
