import asyncio
import contextlib
import datetime as dt
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from tests.conftest import wait_until
from tests.serving.conftest import make_bundle

from pigeonhole import storage
from pigeonhole.bundle import Manifest
from pigeonhole.classifier import Classifier
from pigeonhole.command import call
from pigeonhole.port import bind, free_port
from pigeonhole.prediction_log import Record, read_window
from pigeonhole.registry import Registry
from pigeonhole.serving.protocol import LINGER_S
from pigeonhole.serving.serve import find_bundle, run
from pigeonhole.serving.server import Server, make_server
from pigeonhole.serving.settings import Settings

OURS = ("HOST", "PORT", "PIGEONHOLE_")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith(OURS)]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


needs_sigterm = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGTERM, not Windows")

PROGRAM = "from pigeonhole.serving.entry import main; main()"


def publish(registry: Registry, folder: Path, name: str, version: str) -> Manifest:
    manifest = make_bundle(folder / name / version, name, version)
    registry.publish(folder / name / version, manifest)
    registry.set_alias(name, "production", version, "test", expected=registry.alias(name, "production").version)
    return manifest


def records(log: Path) -> list[Record]:
    now = dt.datetime.now(dt.UTC)
    return list(read_window(str(log), now - dt.timedelta(hours=2), now + dt.timedelta(hours=1)))


@contextlib.contextmanager
def served(**environment: str) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """The real command in a process of its own, once it answers."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "PORT": str(port), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as http:
        try:
            wait_until(lambda: process.poll() is not None or is_ready(http))
            assert process.poll() is None, process.communicate()
            yield process, http
        finally:
            process.kill()


def is_ready(http: httpx.Client) -> bool:
    with contextlib.suppress(httpx.ConnectError):
        return http.get("/ready").status_code == 200
    return False


def wait_until_read(http: httpx.Client) -> None:
    """What was sent on other connections before: a new one is taken after theirs, and its question read after what is there."""
    assert httpx.get(http.base_url.join("/ready")).status_code == 200


def wait_until_it_ends(http: httpx.Client) -> None:
    """Nobody listens any more, and each connection has been told so: both happen in one turn of the loop."""

    def nobody_listens() -> bool:
        try:
            socket.create_connection((http.base_url.host, http.base_url.port), timeout=5).close()
        except ConnectionRefusedError:
            return True
        return False

    wait_until(nobody_listens)


def test_help_names_every_variable_and_costs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(run, ["--help"]) == 0
    out, err = capsys.readouterr()
    assert "PIGEONHOLE_BUNDLE" in out
    assert "8080" in out
    assert err == ""


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["port=9"], {}, "unexpected argument 'port=9': the environment sets what is served, see uv run serve --help"),
        (["--workers"], {}, "--workers names no number; allowed is --workers N"),
        ([], {"PORT": "abc"}, "PORT='abc': allowed is a whole number from 1 to 65535"),
        ([], {"PORT": "0"}, "PORT='0': allowed is a whole number from 1 to 65535"),
        ([], {"PORT": "70000"}, "PORT='70000': allowed is a whole number from 1 to 65535"),
        ([], {}, "registry: no model is in production here; run `uv run train experiment=fast` first"),
        ([], {"PIGEONHOLE_MODEL": "tickets"}, "registry: model 'tickets' has no production version; models here: none"),
        (
            [],
            {"PIGEONHOLE_BUNDLE": "nowhere"},
            'nowhere: manifest.json is missing; a bundle is the folder that `train` printed as "bundle"',
        ),
        ([], {"HOST": "192.0.2.1", "PIGEONHOLE_PUBLIC": "true"}, "cannot listen there"),
        ([], {"HOST": "0.0.0.0"}, "is reached from other machines: name PIGEONHOLE_KEYS"),
    ],
)
def test_what_cannot_be_served_is_one_line_and_exit_code_2(
    arguments: list[str],
    environment: dict[str, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PORT", str(free_port()))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert call(run, arguments) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert (out, err.count("\n")) == ("", 1)


def test_a_bundle_with_a_changed_byte_is_refused_by_the_name_of_the_file(
    words_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(words_bundle, copy)
    model = bytearray((copy / "model.onnx").read_bytes())
    model[len(model) // 2] ^= 1
    (copy / "model.onnx").write_bytes(model)
    monkeypatch.setenv("PORT", str(free_port()))
    monkeypatch.setenv("PIGEONHOLE_BUNDLE", str(copy))
    assert call(run, []) == 2
    assert "model.onnx was changed after it was sealed" in capsys.readouterr().err


def test_a_log_that_cannot_be_written_is_refused_before_the_first_request(
    words_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PORT", str(free_port()))
    monkeypatch.setenv("PIGEONHOLE_BUNDLE", str(words_bundle))
    for log, message in (
        (str(tmp_path / "file"), "cannot be written here"),
        ("nonsense://log", "nonsense:// cannot be used here"),
    ):
        monkeypatch.setenv("PIGEONHOLE_LOG", log)
        assert call(run, []) == 2
        assert message in capsys.readouterr().err


def test_a_port_in_use_is_told_before_the_model_is_opened(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("PORT", str(taken.getsockname()[1]))
        monkeypatch.setenv("PIGEONHOLE_BUNDLE", "nowhere")
        assert call(run, []) == 2
    assert "cannot listen there (Address already in use); set another PORT or HOST" in capsys.readouterr().err


def test_the_production_version_of_the_registry_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registry = Registry(str(tmp_path / "registry"))
    publish(registry, tmp_path / "made", "words", "v1")
    publish(registry, tmp_path / "made", "words", "v2")
    settings = Settings(registry=str(tmp_path / "registry"))
    assert find_bundle(settings).manifest.version == "v2"
    registry.set_alias("words", "production", "v1", "back", expected="v2")
    assert find_bundle(settings).manifest.version == "v1"
    assert capsys.readouterr().err == ""


def test_a_service_copies_only_the_model_that_it_serves(tiny_bundle: Path) -> None:
    """Another one may have four times its bytes, and an instance of Cloud Run keeps its files in memory."""
    memory = fsspec.filesystem("memory")
    memory.put(str(tiny_bundle), "/served/models/tiny/versions/v1", recursive=True)
    alone = find_bundle(Settings(bundle="memory://served/models/tiny/versions/v1"))
    assert sorted(path.name for path in alone.folder.glob("*.onnx")) == ["model.int8.onnx"]
    assert Classifier.open(alone).precision == "int8"


def test_a_bundle_from_a_bucket_is_served_and_its_copy_does_not_stay_on_the_disk(
    words_bundle: Path, bucket: str, tmp_path: Path
) -> None:
    url, scratch = storage.join(bucket, "words"), tmp_path / "scratch"
    for file in words_bundle.iterdir():
        storage.write(storage.join(url, file.name), file.read_bytes())
    scratch.mkdir()
    environment = {"TMPDIR": str(scratch), "FSSPEC_GS_TOKEN": "anon", "PIGEONHOLE_LOG": str(tmp_path / "log")}
    with served(PIGEONHOLE_BUNDLE=url, **environment) as (_, http):
        assert http.post("/predict", json={"text": "parcel"}).json()["label"] == "delivery"
        assert not list(scratch.glob("pigeonhole-bundle-*"))


def test_of_several_models_the_one_promoted_last_is_served_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "pigeonhole.serving.serve")
    registry = Registry(str(tmp_path / "registry"))
    for name in ("alpha", "beta", "alpha"):
        publish(registry, tmp_path / "made", name, f"v{time.monotonic_ns()}")
        time.sleep(0.005)  # the history counts milliseconds
    registry.publish(tmp_path / "spare", make_bundle(tmp_path / "spare", "candidate-only", "v1"))
    settings = Settings(registry=str(tmp_path / "registry"))
    assert find_bundle(settings).manifest.name == "alpha"
    assert caplog.messages == ["serving alpha, promoted last; set PIGEONHOLE_MODEL for another one (beta)"]
    assert find_bundle(Settings(registry=settings.registry, model="beta")).manifest.name == "beta"
    assert len(caplog.messages) == 1


needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: the kernel shares out the connections")


@pytest.mark.parametrize("arguments", [[], pytest.param(["--workers", "2"], marks=needs_linux)])
def test_as_json_every_line_is_an_object_the_last_one_too_which_says_why_it_does_not_start(
    tmp_path: Path, arguments: list[str]
) -> None:
    registry = Registry(str(tmp_path / "registry"))
    for name in ("alpha", "beta"):
        publish(registry, tmp_path / "made", name, "v1")
    (tmp_path / "registry" / "models" / "beta" / "versions" / "v1" / "golden.json").unlink()
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env={**os.environ, "PORT": str(free_port()), "PIGEONHOLE_STDERR": "json"},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    assert ended.returncode == 2
    assert lines[0]["message"].startswith("serving beta, promoted last")
    assert (lines[-1]["severity"], "golden.json is missing" in lines[-1]["message"]) == ("ERROR", True)


@needs_sigterm
def test_sigterm_under_load_answers_all_that_was_accepted_ships_the_log_and_ends_with_0(
    words_bundle: Path, tmp_path: Path
) -> None:
    answered: list[str] = []
    asked_at: list[float] = []

    def ask(headers: dict[str, str]) -> None:
        with httpx.Client(base_url=http.base_url, timeout=20) as mine, contextlib.suppress(httpx.ConnectError, httpx.ReadError):
            # Until nobody listens any more. A connection that the kernel has taken and the server has not is reset when the
            # server stops listening: a ReadError, and no question that the server ever had.
            while True:
                try:
                    answer = mine.post("/predict", json={"texts": ["parcel"] * 20}, headers=headers)
                except httpx.RemoteProtocolError:  # this machine was too busy to send while the connection lingered
                    assert asked_at
                    assert time.monotonic() - asked_at[0] >= LINGER_S
                    return
                if answer.status_code == 200:
                    answered.extend(found["prediction_id"] for found in answer.json()["predictions"])

    log = tmp_path / "log"
    with served(PIGEONHOLE_BUNDLE=str(words_bundle), PIGEONHOLE_LOG=str(log), PIGEONHOLE_LOGS="typo") as (process, http):
        threads = [threading.Thread(target=ask, args=(headers,)) for headers in [{}, {"connection": "close"}] * 3]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(answered) >= 400)
        asked_at.append(time.monotonic())
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=10)
        assert time.monotonic() - asked_at[0] < 8
        for thread in threads:
            thread.join()
    assert process.returncode == 0
    assert out == ""
    assert err.splitlines() == [
        "ignored: PIGEONHOLE_LOGS is no variable of serve; see uv run serve --help",
        f"serving words 20260301-120000 at http://127.0.0.1:{http.base_url.port} (see http://127.0.0.1:{http.base_url.port}/docs)",
        "open to this machine; `uv run keys --help` and PIGEONHOLE_KEYS close it",
    ]
    assert len(answered) == len(set(answered))
    assert set(answered) == {record.prediction_id for record in records(log)}  # what was computed was answered
    assert list((log / "spool").rglob("*.jsonl")) == []


@needs_sigterm
def test_a_request_that_was_on_its_way_at_sigterm_is_answered_and_is_the_last_of_its_connection(
    words_bundle: Path, tmp_path: Path
) -> None:
    with served(PIGEONHOLE_BUNDLE=str(words_bundle), PIGEONHOLE_LOG=str(tmp_path / "log")) as (process, http):
        assert "connection" not in http.post("/predict", json={"text": "parcel"}).headers
        process.send_signal(signal.SIGTERM)
        wait_until_it_ends(http)
        last = http.post("/predict", json={"text": "parcel"})
        assert (last.status_code, last.headers["connection"]) == (200, "close")
        assert process.wait(20) == 0


@needs_sigterm
def test_a_head_that_is_on_its_way_in_pieces_at_sigterm_is_waited_for(words_bundle: Path, tmp_path: Path) -> None:
    with served(PIGEONHOLE_BUNDLE=str(words_bundle), PIGEONHOLE_LOG=str(tmp_path / "log")) as (process, http):
        with socket.create_connection((http.base_url.host, http.base_url.port), timeout=5) as connection:
            connection.sendall(b"GET /model HTTP/1.1\r\nho")
            wait_until_read(http)
            process.send_signal(signal.SIGTERM)
            wait_until_it_ends(http)
            connection.sendall(b"st: x\r\n\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        assert process.wait(20) == 0


@needs_sigterm
def test_a_request_of_which_only_the_body_is_missing_at_sigterm_is_waited_for(words_bundle: Path, tmp_path: Path) -> None:
    body = b'{"text":"parcel"}'
    head = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    with served(PIGEONHOLE_BUNDLE=str(words_bundle), PIGEONHOLE_LOG=str(tmp_path / "log")) as (process, http):
        address = (http.base_url.host, http.base_url.port)
        with socket.create_connection(address, timeout=5) as connection:
            connection.sendall(head + body[:3])
            wait_until_read(http)
            process.send_signal(signal.SIGTERM)
            wait_until_it_ends(http)
            time.sleep(1.5 * LINGER_S)  # past that of a connection without a question
            connection.sendall(body[3:])
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        assert process.wait(20) == 0


def wait_for_child(pid: int) -> str:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    wait_until(lambda: bool(children.read_text()))
    return children.read_text()


def is_caught(pid: int, number: int) -> bool:
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(status["SigCgt"], 16) >> number - 1 & 1)


def can_be_process_1() -> bool:
    return bool(shutil.which("unshare")) and subprocess.run(["unshare", "-pf", "true"], check=False).returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: /proc")
@pytest.mark.parametrize("place", [[], ["unshare", "-pf", "--kill-child"]], ids=["a process", "process 1"])
@pytest.mark.parametrize("later_s", [0.0, 0.4, 0.9])
def test_sigterm_before_the_service_is_ready_ends_it_with_0_even_as_process_1_of_a_container(
    words_bundle: Path, tmp_path: Path, place: list[str], later_s: float
) -> None:
    if place and not can_be_process_1():
        pytest.skip("needs the right to make a process namespace")
    environment = {"PORT": str(free_port()), "PIGEONHOLE_BUNDLE": str(words_bundle), "PIGEONHOLE_LOG": str(tmp_path / "log")}
    with subprocess.Popen([*place, sys.executable, "-c", PROGRAM], env={**os.environ, **environment}) as process:
        try:
            child = int(wait_for_child(process.pid) if place else process.pid)
            wait_until(lambda: is_caught(child, signal.SIGTERM))
            time.sleep(later_s)
            os.kill(child, signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: /proc")
@pytest.mark.parametrize("later_s", [0.0, 0.1, 0.3, 0.6, 0.9])
def test_ctrl_c_before_the_service_is_ready_is_one_line_and_130(words_bundle: Path, tmp_path: Path, later_s: float) -> None:
    environment = {"PORT": str(free_port()), "PIGEONHOLE_BUNDLE": str(words_bundle), "PIGEONHOLE_LOG": str(tmp_path / "log")}
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: is_caught(process.pid, signal.SIGTERM))
            time.sleep(later_s)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 130
    assert said.endswith("interrupted\n")
    assert "Traceback" not in said


@needs_sigterm
def test_sigterm_while_a_version_is_opened_ends_it_with_0(words_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime aborts at the interpreter's end, one time in three, where a thread is inside it; here that always happens."""
    monkeypatch.setitem(globals(), "PROGRAM", f"import atexit, os; atexit.register(os.abort); {PROGRAM}")
    with served(PIGEONHOLE_BUNDLE=str(words_bundle)) as (process, _):
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
        assert process.returncode == 0


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL, not Windows")
def test_kill_9_loses_no_answer_that_was_given(words_bundle: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with served(PIGEONHOLE_BUNDLE=str(words_bundle), PIGEONHOLE_LOG=str(log)) as (process, http):
        ids = [http.post("/predict", json={"text": "parcel"}).json()["prediction_id"] for _ in range(50)]
        process.kill()
        process.wait()
    assert [record.prediction_id for record in records(log)] == ids


def test_the_kernel_holds_hundreds_of_connections_that_the_loop_has_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    async def start_nothing(server: Server, _: list[socket.socket]) -> None:
        server.should_exit = True

    monkeypatch.setattr(uvicorn.Server, "startup", start_nothing)
    server = make_server(Starlette())
    with bind("127.0.0.1", 0) as listener, contextlib.ExitStack() as connections:
        asyncio.run(server.startup([listener]))
        for _ in range(200):
            connections.enter_context(socket.create_connection(listener.getsockname(), timeout=0.5))
