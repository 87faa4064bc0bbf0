import time

import httpx
import pytest
from frontend.identity import GOOD_FOR_S, Identity, identity_for

PAGE = "https://pigeonhole-serve-1.europe-west4.run.app"


def client(answers: list[httpx.Response], asked: list[httpx.Request]) -> httpx.Client:
    """A client whose metadata server gives `answers`, one after another; all that was asked is kept."""

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return answers.pop(0) if "computeMetadata" in request.url.path else httpx.Response(200, json={})

    return httpx.Client(transport=httpx.MockTransport(handle), auth=Identity(PAGE))


def test_the_token_of_the_machine_goes_with_every_request_and_is_fetched_once() -> None:
    asked: list[httpx.Request] = []
    with client([httpx.Response(200, text="a-token")], asked) as http:
        for _ in range(2):
            http.get(f"{PAGE}/ready", headers={"authorization": "Bearer a-key"})
    assert [request.url.path.rsplit("/", 1)[-1] for request in asked] == ["identity", "ready", "ready"]
    assert asked[0].url.params["audience"] == PAGE
    assert asked[0].headers["metadata-flavor"] == "Google"
    for request in asked[1:]:
        assert request.headers["x-serverless-authorization"] == "Bearer a-token"
        assert request.headers["authorization"] == "Bearer a-key"


def test_a_token_that_ends_soon_is_fetched_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[httpx.Request] = []
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: 1e6 + now[0])
    with client([httpx.Response(200, text="first"), httpx.Response(200, text="second")], asked) as http:
        for now[0] in (0.0, GOOD_FOR_S - 1, GOOD_FOR_S):
            http.get(f"{PAGE}/ready")
    sent = [request.headers.get("x-serverless-authorization") for request in asked if request.url.path == "/ready"]
    assert sent == ["Bearer first", "Bearer first", "Bearer second"]


def test_without_a_token_the_service_itself_says_no() -> None:
    asked: list[httpx.Request] = []
    with client([httpx.Response(403)], asked) as http:
        http.get(f"{PAGE}/ready")
    assert "x-serverless-authorization" not in asked[-1].headers


def test_only_an_address_of_cloud_run_is_told_who_asks() -> None:
    assert identity_for(PAGE)
    assert identity_for("http://127.0.0.1:8080") is None
    assert identity_for("https://run.app.example.org") is None
    assert identity_for("https://pigeonhole-serve-1.europe-west4.run.app.example.org") is None
