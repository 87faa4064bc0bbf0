"""Against a real HTTP server in this process, which answers as it is told."""

import contextlib
import http.server
import json
import socket
import threading
from collections.abc import Callable, Iterator

import httpx
import pytest
from frontend import client
from frontend.client import Down, Refused, Service

Answer = tuple[int, bytes]


@pytest.fixture
def answering() -> Iterator[Callable[..., tuple[str, list[str]]]]:
    """Starts a server that gives these answers in order, then the last for ever; beside it the tokens it was shown."""
    with contextlib.ExitStack() as running:

        def start(*answers: Answer) -> tuple[str, list[str]]:
            left, tokens = list(answers), list[str]()

            class Handler(http.server.BaseHTTPRequestHandler):
                def do_GET(self) -> None:
                    tokens.append(self.headers.get("authorization", ""))
                    status, body = left.pop(0) if len(left) > 1 else left[0]
                    self.send_response(status)
                    self.send_header("content-length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

                do_POST = do_GET  # noqa: N815  http.server's name

                def log_message(self, format: str, *args: object) -> None:
                    pass

            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            running.callback(thread.join)
            running.callback(server.server_close)
            running.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}", tokens

        yield start


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PAUSE_S", 0.0)


@contextlib.contextmanager
def service(url: str, key: str = "") -> Iterator[Service]:
    made = Service(url, key)
    try:
        yield made
    finally:
        made.close()


Answering = Callable[..., tuple[str, list[str]]]


@pytest.mark.parametrize("status", [502, 503, 504])  # the first and the last of a proxy before it
def test_a_service_that_is_busy_is_asked_again(answering: Answering, status: int) -> None:
    url, tokens = answering((status, b'{"detail": "later"}'), (200, b'{"a": 1}'))
    with service(url) as made:
        assert made.get("/") == {"a": 1}
    assert len(tokens) == 2


def test_a_service_that_stays_busy_is_down_with_its_own_words(answering: Answering) -> None:
    url, tokens = answering((503, b'{"detail": "too many texts are waiting"}'))
    with service(url) as made, pytest.raises(Down, match="too many texts are waiting"):
        made.get("/")
    assert len(tokens) == 3


def test_nobody_at_the_address_is_down() -> None:
    with service("http://127.0.0.1:9") as made, pytest.raises(Down, match="does not answer"):
        made.get("/")


def test_a_service_that_takes_the_question_and_says_nothing_is_not_asked_again() -> None:
    """Three waits of half a minute each, for the page; three records of one text, for the log."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        made = Service(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_s=0.2)
        with contextlib.closing(made), pytest.raises(Down, match=r"does not answer \(ReadTimeout\)"):
            made.predict("my parcel")
        listener.settimeout(1)
        listener.accept()[0].close()
        with pytest.raises(TimeoutError):
            listener.accept()


def test_a_refusal_carries_what_the_service_said_and_is_not_repeated(answering: Answering) -> None:
    url, tokens = answering((422, b'{"detail": "text is blank"}'))
    with service(url) as made, pytest.raises(Refused, match="text is blank"):
        made.get("/")
    assert len(tokens) == 1


def test_the_drift_service_is_asked_once_since_a_run_takes_half_a_minute(answering: Answering) -> None:
    url, tokens = answering((503, b"{}"))
    with contextlib.closing(Service.drift({"PIGEONHOLE_DRIFT_URL": url})) as made, pytest.raises(Down):
        made.get("/")
    assert len(tokens) == 1


@pytest.mark.parametrize("status", [401, 403])
def test_a_wrong_token_names_its_variable_and_never_shows_it(answering: Answering, status: int) -> None:
    url, tokens = answering((status, b"{}"))
    with service(url, "secret-token") as made, pytest.raises(Refused, match="PIGEONHOLE_API_KEY") as caught:
        made.get("/")
    assert tokens == ["Bearer secret-token"]
    assert "secret-token" not in str(caught.value)


def test_a_service_that_asks_for_a_key_is_not_said_to_refuse_one_that_is_not_there(answering: Answering) -> None:
    url, tokens = answering((401, b"{}"))
    with service(url) as made, pytest.raises(Refused, match="asks for a key, and PIGEONHOLE_API_KEY is not set"):
        made.get("/")
    assert tokens == [""]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (httpx.Response(403, html="Your client does not have permission"), "roles/run.invoker.*cloud.setup"),
        (httpx.Response(401, json={"detail": "no key"}), "asks for a key"),
    ],
)
def test_who_is_refused_by_cloud_run_is_not_sent_for_a_key_of_the_service(answer: httpx.Response, told: str) -> None:
    with service("https://pigeonhole-serve-1.europe-west4.run.app") as made:
        made._http = httpx.Client(base_url=made.url, transport=httpx.MockTransport(lambda _: answer))
        with pytest.raises(Refused, match=told):
            made.get("/ready")


ABOUT = {"model": "m", "model_version": "1", "created_at": "2026", "task": "single_label", "precision": "int8", "max_length": 32}
ABOUT |= {"labels": ["a"], "metrics": {}, "limits": {}, "thresholds": {}, "temperature": 1.0, "windowing": {}}
ANSWER = {"model": "m", "model_version": "1", "prediction_id": "p", "label": "a", "score": 1.0, "probabilities": {"a": 1.0}}
ANSWER |= {"decision": "accept", "truncated": False, "n_tokens": 3}


@pytest.mark.parametrize("name", ["task", "windowing"])
def test_a_service_of_a_release_that_says_less_of_its_model_is_told_apart(answering: Answering, name: str) -> None:
    """Each key is one that a page reads without asking whether it is there."""
    less = {key: value for key, value in ABOUT.items() if key != name}
    url, _ = answering((200, json.dumps(less).encode()), (200, json.dumps(ABOUT).encode()))
    with service(url) as made:
        with pytest.raises(Refused, match=f"has no {name}: .* of one release"):
            made.get("/model")
        assert made.get("/model") == ABOUT


@pytest.mark.parametrize("name", ["score", "decision", "probabilities"])
def test_an_answer_of_a_release_that_says_less_is_told_apart(answering: Answering, name: str) -> None:
    less = {key: value for key, value in ANSWER.items() if key != name}
    url, _ = answering((200, json.dumps(less).encode()), (200, json.dumps(ANSWER).encode()))
    with service(url) as made:
        with pytest.raises(Refused, match=f"has no {name}: .* of one release"):
            made.predict("my parcel")
        assert made.predict("my parcel").body == ANSWER


@pytest.mark.parametrize("body", [b"<html>", b"[1]"])
def test_another_service_at_the_address_is_told_apart(answering: Answering, body: bytes) -> None:
    url, _ = answering((200, body))
    with service(url) as made, pytest.raises(Refused, match="address of the service"):
        made.get("/")


def test_the_environment_says_where_and_with_which_token() -> None:
    made = Service.api({"PIGEONHOLE_API_URL": "http://elsewhere:1/"})
    assert made.url == "http://elsewhere:1"
    made.close()
