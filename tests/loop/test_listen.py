import base64
import json
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fastapi.testclient import TestClient
from tests.conftest import wait_until

from pigeonhole.command import call
from pigeonhole.drift.alarm import SIGNATURE, Alarm, sign
from pigeonhole.errors import ConfigError
from pigeonhole.loop.listen import Jobs, Settings, create_app, listen, run

OWN = "http://localhost"


def alarm(name: str = "a1", model: str = "tiny") -> bytes:
    return msgspec.json.encode(
        Alarm(id=name, at="2026-03-01T12:00:00+00:00", model=model, version="v1", report=3, detectors=["n_chars"], rows=9)
    )


def job_that(program: str) -> list[str]:
    return [sys.executable, "-c", program]


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    """Each job runs until the file `go` is there, at the latest at the end of the test, then prints its result."""
    wait = f"while not pathlib.Path({str(tmp_path / 'go')!r}).exists(): time.sleep(0.01)"
    yield Jobs(job_that(f"import json, pathlib, time\n{wait}\nprint(json.dumps(dict(decision='WAIT')))"))
    (tmp_path / "go").touch()


@pytest.fixture
def client(jobs: Jobs) -> TestClient:
    return TestClient(create_app(Settings(secret="key"), jobs), OWN)


def post(client: TestClient, body: bytes, **headers: str) -> Any:
    return client.post("/alarms", content=body, headers=headers or {SIGNATURE: sign("key", body, int(time.time()))})


def ended(client: TestClient) -> dict[str, Any]:
    def last() -> dict[str, Any]:
        found: dict[str, Any] = client.get("/jobs").json()["jobs"][0]
        return found

    wait_until(lambda: last()["ended"] is not None)
    return last()


def test_an_alarm_starts_one_job_and_its_result_is_kept(client: TestClient, tmp_path: Path) -> None:
    answer = post(client, alarm())
    assert (answer.status_code, answer.json()) == (202, {"alarm": "a1", "did": "started"})
    (tmp_path / "go").touch()
    job = ended(client)
    assert (job["exit_code"], job["result"], job["alarm"]["id"]) == (0, {"decision": "WAIT"}, "a1")


def test_the_same_alarm_twice_and_another_meanwhile_start_nothing(client: TestClient, tmp_path: Path) -> None:
    assert [post(client, alarm(name)).json()["did"] for name in ("a1", "a1", "a2", "a2")] == ["started", "known", "busy", "known"]
    (tmp_path / "go").touch()
    ended(client)
    assert post(client, alarm("a3")).json()["did"] == "started"
    ended(client)
    assert [job["alarm"]["id"] for job in client.get("/jobs").json()["jobs"]] == ["a3", "a1"]


def test_of_alarms_that_arrive_together_one_starts_a_job(client: TestClient, tmp_path: Path) -> None:
    did: list[str] = []
    senders = [
        threading.Thread(target=lambda name=f"a{n}": did.append(post(client, alarm(name)).json()["did"])) for n in range(6)
    ]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert sorted(did) == ["busy"] * 5 + ["started"]
    (tmp_path / "go").touch()
    ended(client)


@pytest.mark.parametrize(
    "headers",
    [
        {"x-nothing": "x"},
        {SIGNATURE: sign("other", alarm(), int(time.time()))},
        {SIGNATURE: sign("key", alarm(), int(time.time()) - 1_000)},
        {"authorization": "Bearer other"},
        {"authorization": "Bearer "},
    ],
)
def test_without_the_key_nothing_starts(client: TestClient, headers: dict[str, str]) -> None:
    assert post(client, alarm(), **headers).status_code == 401
    assert client.get("/jobs").json() == {"jobs": []}


def test_a_page_that_its_dns_leads_here_reads_no_jobs_and_an_alarm_through_a_tunnel_is_taken(
    client: TestClient, jobs: Jobs, tmp_path: Path
) -> None:
    named = {"host": "evil.example.org:8082"}
    assert client.get("/jobs", headers=named).status_code == 403
    assert client.get("/health", headers=named).status_code == 200
    body = alarm()
    assert post(client, body, **named, **{SIGNATURE: sign("key", body, int(time.time()))}).status_code == 202
    reached = TestClient(create_app(Settings(secret="key", host="0.0.0.0"), jobs))
    assert reached.get("/jobs", headers=named).status_code == 200


def test_pubsubs_push_is_an_alarm_too(client: TestClient, tmp_path: Path) -> None:
    pushed = {
        "message": {"data": base64.b64encode(alarm()).decode(), "messageId": "7"},
        "subscription": "projects/p/subscriptions/s",
    }
    answer = post(client, json.dumps(pushed).encode(), authorization="Bearer key")
    assert (answer.status_code, answer.json()["alarm"]) == (202, "a1")
    (tmp_path / "go").touch()
    ended(client)


def test_no_page_of_the_listener_asks_another_server(client: TestClient) -> None:
    assert [client.get(path).status_code for path in ("/docs", "/redoc", "/openapi.json")] == [404, 404, 200]


def test_an_alarm_of_a_model_named_message_is_no_push(client: TestClient, tmp_path: Path) -> None:
    answer = post(client, alarm(model="message"))
    assert (answer.status_code, answer.json()) == (202, {"alarm": "a1", "did": "started"})
    (tmp_path / "go").touch()
    ended(client)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"id": 3}',
        b'{"id": "\xff"}',
        b'{"a":' * 50_000,
        b'{"message": {"data": "%%%"}}',
        b'{"message": {"data": "%%' + base64.b64encode(alarm()) + b'"}}',
        b'{"message": 3}',
        b"x" * 200_000,
        alarm() + b" " * 200_000,
    ],
)
def test_what_is_no_alarm_is_a_422(client: TestClient, body: bytes) -> None:
    assert post(client, body, authorization="Bearer key").status_code == 422


def test_a_job_that_fails_without_a_result_is_told(tmp_path: Path) -> None:
    client = TestClient(create_app(Settings(secret="key"), Jobs(job_that("print('no json'); raise SystemExit(3)"))), OWN)
    post(client, alarm())
    job = ended(client)
    assert (job["exit_code"], job["result"]) == (3, None)


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGTERM, not Windows")
def test_a_listener_that_is_stopped_stops_its_job(client: TestClient, jobs: Jobs) -> None:
    jobs.stop()  # there is none yet
    post(client, alarm())
    jobs.stop()
    assert ended(client)["exit_code"] == -signal.SIGTERM


def test_an_alarm_whose_job_cannot_be_started_may_come_again(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise BlockingIOError("no more processes")

    with monkeypatch.context() as patched:
        patched.setattr("pigeonhole.loop.listen.subprocess.Popen", fail)
        assert post(client, alarm()).status_code == 503
    assert client.get("/jobs").json() == {"jobs": []}
    assert post(client, alarm()).json()["did"] == "started"
    (tmp_path / "go").touch()
    ended(client)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("zebra=1", "zebra=1"),
        ("window_hours=abc", "window_hours=abc: expected float"),
        ("trainer.epoch=3", "did you mean trainer.epochs?"),
        ("gate.margins=0.1", "did you mean gate.margin"),
        ("always='true", "PIGEONHOLE_RETRAIN=.*: No closing quotation"),
    ],
)
def test_it_does_not_start_without_a_key_or_with_arguments_that_retrain_would_refuse(arguments: str, said: str) -> None:
    with pytest.raises(ConfigError, match="PIGEONHOLE_ALARM_SECRET is not set"):
        listen({})
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match=said):
        listen({"PIGEONHOLE_ALARM_SECRET": "key", "PIGEONHOLE_RETRAIN": arguments, "PORT": str(taken.getsockname()[1])})


def test_a_port_that_is_taken_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"PORT={port}: cannot listen there"):
            listen({"PIGEONHOLE_ALARM_SECRET": "key", "PORT": str(port)})
    assert capsys.readouterr().err == ""


def test_help_names_every_variable_and_arguments_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(run, ["--help"]) == 0
    assert "PIGEONHOLE_RETRAIN" in capsys.readouterr().out
    assert call(run, ["port=1"]) == 2
