"""A service that is closed: what opens it, and all that must not."""

import datetime
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest
from starlette.datastructures import Headers
from tests.serving.conftest import Running, Start

from pigeonhole.prediction_log import new_id
from pigeonhole.serving.access import Access, _Bucket
from pigeonhole.serving.keys import KeyList, Scope, new_key, read_keys, revoke_key
from pigeonhole.serving.problem import Problem

KEYS: dict[str, tuple[Scope, ...]] = {
    "predict": ("predict",),
    "feedback": ("feedback",),
    "metrics": ("metrics",),
    "all": ("predict", "feedback", "metrics"),
    "expired": ("predict", "feedback", "metrics"),
    "revoked": ("predict", "feedback", "metrics"),
}


class Closed:
    """A running service and the keys to it, by what they are good for."""

    def __init__(self, running: Running, url: str, secrets: dict[str, str]) -> None:
        self.running = running
        self.url = url
        self.secrets = secrets

    def status(self, route: str, headers: list[tuple[str, str]]) -> tuple[int, str]:
        """What a right request to the route gets, with these headers; `{name}` in them is a key."""
        bodies = {
            "/predict": {"text": "parcel"},
            "/explain": {"text": "parcel"},
            "/feedback": {"prediction_id": new_id(), "label": "refund", "source": "agent"},
        }
        body = bodies.get(route.removeprefix("/v1").partition("?")[0])
        sent = [(name, value.format(**self.secrets)) for name, value in headers]
        answer = self.running.http.request("POST" if body else "GET", route.format(**self.secrets), headers=sent, json=body)
        for secret in self.secrets.values():
            assert secret not in answer.text
        if answer.status_code == 401:
            assert answer.headers["www-authenticate"] == "Bearer"
        return answer.status_code, answer.json()["code"] if answer.status_code >= 400 else ""


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, str]]:
    url = str(tmp_path_factory.mktemp("keys") / "keys.json")
    secrets, ids = {}, {}
    for name, scopes in KEYS.items():
        secrets[name], made = new_key(url, scopes, 1000, 90)
        ids[name] = made.id
    revoke_key(url, ids["revoked"])
    just_now = datetime.datetime.now(datetime.UTC) - datetime.timedelta(milliseconds=1)
    aged = tuple(
        msgspec.structs.replace(key, expires_at=just_now) if key.id == ids["expired"] else key for key in read_keys(url).keys
    )
    Path(url).write_bytes(msgspec.json.encode(KeyList(keys=aged)))
    return url, secrets


@pytest.fixture
def closed(start: Start, keys: tuple[str, dict[str, str]]) -> Iterator[Closed]:
    with start(keys=keys[0], poll_s=0.05, predict_route="/vertex:predict") as running:
        yield Closed(running, *keys)


ALLOWED = [
    ("/predict", "Bearer {predict}"),
    ("/predict", "bearer {all}"),
    ("/v1/predict", "Bearer {predict}"),
    ("/explain", "Bearer {predict}"),
    ("/model", "Bearer {predict}"),
    ("/feedback", "Bearer {feedback}"),
    ("/metrics", "Bearer {metrics}"),
]
NEGATIVE = [
    *(
        (route, [], 401, "missing_key")
        for route in ("/predict", "/v1/predict", "/explain", "/feedback", "/model", "/metrics", "/history")
    ),
    ("/predict", [("authorization", "")], 401, "invalid_key"),
    ("/predict", [("authorization", "Bearer")], 401, "invalid_key"),
    ("/predict", [("authorization", "Bearer {predict} {predict}")], 401, "invalid_key"),
    ("/predict", [("authorization", "Bearer  {predict}")], 401, "invalid_key"),
    ("/predict", [("authorization", "{predict}")], 401, "invalid_key"),
    ("/predict", [("authorization", "Basic {predict}")], 401, "invalid_key"),
    ("/predict", [("authorization", "Bearer {predict}x")], 401, "invalid_key"),
    ("/predict", [("authorization", "Bearer x{predict}")], 401, "invalid_key"),
    ("/predict", [("authorization", "Bearer {predict:.30}")], 401, "invalid_key"),
    ("/predict", [("authorization", "Bearer {predict},{all}")], 401, "invalid_key"),
    ("/predict", [("authorization", "Bearer " + "a" * 201)], 401, "invalid_key"),
    ("/predict", [("authorization", "Bearer {expired}")], 401, "invalid_key"),
    ("/predict", [("authorization", "Bearer {revoked}")], 401, "invalid_key"),
    ("/metrics", [("authorization", "Bearer {expired}")], 401, "invalid_key"),
    ("/feedback", [("authorization", "Bearer {revoked}")], 401, "invalid_key"),
    ("/predict", [("authorization", "Bearer {all}"), ("authorization", "Bearer {all}")], 401, "invalid_key"),
    ("/predict", [("authorization", "Bearer {all}"), ("x-api-key", "{all}")], 401, "invalid_key"),
    ("/predict", [("x-api-key", "")], 401, "invalid_key"),
    ("/predict", [("x-api-key", "Bearer {all}")], 401, "invalid_key"),
    ("/predict", [("x-api-key", "{all:.20}")], 401, "invalid_key"),
    ("/predict", [("cookie", "key={all}")], 401, "missing_key"),
    ("/predict?key={all}", [], 401, "missing_key"),
    ("/predict", [("authorization", "Bearer {feedback}")], 403, "missing_scope"),
    ("/predict", [("authorization", "Bearer {metrics}")], 403, "missing_scope"),
    ("/explain", [("authorization", "Bearer {feedback}")], 403, "missing_scope"),
    ("/model", [("authorization", "Bearer {metrics}")], 403, "missing_scope"),
    ("/feedback", [("authorization", "Bearer {predict}")], 403, "missing_scope"),
    ("/metrics", [("authorization", "Bearer {predict}")], 403, "missing_scope"),
    ("/history", [("authorization", "Bearer {predict}")], 403, "missing_scope"),
    ("/v1/metrics", [("authorization", "Bearer {feedback}")], 403, "missing_scope"),
]


def test_the_right_key_opens_and_what_shows_nothing_is_open(closed: Closed) -> None:
    for route, value in ALLOWED:
        assert closed.status(route, [("authorization", value)]) == (200, "")
    assert closed.status("/predict", [("x-api-key", "{predict}")]) == (200, "")
    for route in ("/health", "/ready", "/docs", "/openapi.json", "/"):
        assert closed.running.http.get(route).status_code == 200


def test_nothing_else_opens(closed: Closed) -> None:
    assert len(NEGATIVE) >= 30
    found = {number: closed.status(*case[:2]) for number, case in enumerate(NEGATIVE)}
    assert found == {number: case[2:] for number, case in enumerate(NEGATIVE)}
    assert closed.running.http.post("/vertex:predict", json={"instances": ["a"]}).status_code == 401
    assert closed.running.http.post("/predict/batch", json={"texts": ["a"]}).status_code == 401
    assert closed.running.records() == []


@pytest.mark.parametrize("length", [17, 1_000_000])
def test_who_may_ask_is_decided_before_a_body_is_read(closed: Closed, length: int) -> None:
    head = f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n"
    for sent, status in {
        "": 401,
        "authorization: Bearer pgh_0_0\r\n": 401,
        f"x-api-key: {closed.secrets['expired']}\r\n": 401,
        f"x-api-key: {closed.secrets['feedback']}\r\n": 403,
    }.items():
        assert closed.running.raw(f"{head}{sent}\r\n".encode(), patience_s=2).startswith(b"HTTP/1.1 %d " % status)


def test_looking_at_a_head_takes_nothing_from_a_keys_rate(tmp_path: Path) -> None:
    url = str(tmp_path / "keys.json")
    secret, _ = new_key(url, ("predict",), 1, 0)
    access, headers = Access(url), Headers({"x-api-key": secret})
    assert [access.knows(headers, scope) for scope in ("predict", "predict", "metrics")] == [True, True, False]
    access.admit(headers, "predict")
    with pytest.raises(Problem, match="rate_limited"):
        access.admit(headers, "predict")


def test_above_its_rate_a_key_has_to_wait_and_the_others_have_not(closed: Closed) -> None:
    secret, _ = new_key(closed.url, ("predict",), 2, 0)
    answers: list[httpx.Response] = []
    deadline = time.monotonic() + 10
    while len(answers) < 6:
        answer = closed.running.http.post("/predict", json={"text": "a"}, headers={"x-api-key": secret})
        assert time.monotonic() < deadline
        if answer.status_code != 401:  # the service has not looked at the list yet
            answers.append(answer)
    statuses = [answer.status_code for answer in answers]
    assert statuses[:2] == [200, 200]
    assert 429 in statuses
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert (refused.json()["code"], refused.headers["retry-after"]) == ("rate_limited", "1")
    assert closed.status("/predict", [("x-api-key", "{predict}")]) == (200, "")


def test_a_revoked_key_stops_within_a_look_and_a_list_that_is_gone_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = str(tmp_path / "keys.json")
    secret, made = new_key(url, ("predict",), 10, 0)
    new_key(url, ("predict",), 10, 0)
    access = Access(url)
    assert access._key(secret).id == made.id
    list_of_keys = Path(url).read_bytes()
    Path(url).unlink()
    access.look()
    access.look()
    assert access._key(secret).id == made.id
    assert caplog.text.count("the known one holds") == 1
    Path(url).write_bytes(list_of_keys)
    revoke_key(url, made.id)
    access.look()
    with pytest.raises(Problem, match="invalid_key"):
        access._key(secret)
    Path(url).unlink()
    access.look()
    assert caplog.text.count("the known one holds") == 2


def test_a_bucket_gives_a_seconds_worth_at_once_and_then_the_rate() -> None:
    bucket = _Bucket(0.0)
    assert [bucket.take(2, 0.0) for _ in range(3)] == [0, 0, 0.5]
    assert bucket.take(2, 0.5) == 0
    assert bucket.take(2, 100.0) == bucket.take(2, 100.0) == 0
    assert bucket.take(2, 100.0) == 0.5
    slow = _Bucket(0.0)
    assert [slow.take(0.1, at_s) for at_s in (0.0, 0.0, 5.0)] == [0, 10, 5]


def test_a_reply_is_kept_for_its_own_caller_alone(closed: Closed) -> None:
    def ask(name: str) -> str:
        headers = {"x-api-key": closed.secrets[name], "idempotency-key": "k-1"}
        answer = closed.running.http.post("/predict", json={"text": "parcel"}, headers=headers)
        return str(answer.json()["prediction_id"])

    assert ask("predict") == ask("predict") != ask("all")


def test_processes_that_share_a_port_share_a_keys_rate(tmp_path: Path) -> None:
    url = str(tmp_path / "keys.json")
    secret, _ = new_key(url, ("predict",), 8, 90)
    headers = Headers({"x-api-key": secret})
    access = Access(url, share=4)
    for _ in range(2):
        access.admit(headers, "predict")
    with pytest.raises(Problem, match="rate_limited") as refused:
        access.admit(headers, "predict")
    assert refused.value.detail == "at most 8 requests a second with this key"


OPEN_ROUTES = [
    ("POST", "/predict", {"text": "parcel"}),
    ("POST", "/explain", {"text": "parcel"}),
    ("POST", "/feedback", {"prediction_id": new_id(), "label": "refund", "source": "agent"}),
    ("GET", "/model", None),
    ("GET", "/metrics", None),
    ("GET", "/history", None),
]


@pytest.mark.parametrize(
    "host", ["a.example", "a.example:8080", "A.Example.", "127.0.0.1.a.example", "localhost.a.example", "local.example:80"]
)
def test_a_page_whose_name_leads_here_is_refused_where_this_machine_alone_may_ask(running_once: Running, host: str) -> None:
    """DNS rebinding: to the browser the answers are of the page's own site, which may read them and send JSON."""
    for method, route, body in OPEN_ROUTES:
        for more in ({}, {"x-unheard-of": "1"}):  # the short way and the long one
            answer = running_once.http.request(method, route, json=body, headers={"host": host, **more})
            assert (answer.status_code, answer.json()["code"]) == (403, "foreign_host")
            assert "example" not in answer.text
    assert running_once.http.get("/ready", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "localhost:80",
        "LOCALHOST.",
        "127.0.0.1",
        "10.0.0.1:80",
        "[::1]:80",
        "[::ffff:127.0.0.1]",
        "serve:80",
        "a.localhost",
        "laptop.local",
        "host.docker.internal:80",
        "",
    ],
)
def test_addresses_and_names_that_no_stranger_can_have_lead_here(running_once: Running, host: str) -> None:
    for more in ({}, {"x-unheard-of": "1"}):
        answer = running_once.http.post("/predict", json={"text": "parcel"}, headers={"host": host, **more})
        assert answer.status_code == 200


def test_any_name_leads_to_a_service_that_is_public_or_asks_for_keys(closed: Closed, start: Start) -> None:
    assert closed.status("/predict", [("host", "a.example"), ("x-api-key", "{predict}")]) == (200, "")
    with start(public="true") as service:
        assert service.http.post("/predict", json={"text": "parcel"}, headers={"host": "a.example"}).status_code == 200
    with start(host="0.0.0.0") as service:
        assert service.http.post("/predict", json={"text": "parcel"}, headers={"host": "a.example"}).status_code == 200
