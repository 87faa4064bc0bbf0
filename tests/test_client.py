"""The client against the real service, and against servers that fail in every way that a network has."""

import contextlib
import datetime
import ipaddress
import json
import random
import socket
import ssl
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from tests.conftest import wait_until
from tests.serving.conftest import run_service, words_bundle  # noqa: F401  a fixture

from pigeonhole import client as module
from pigeonhole.bundle import open_bundle
from pigeonhole.classifier import Classifier
from pigeonhole.client import Client, Explanation, Prediction, Predictions, TextError, WordWeight
from pigeonhole.errors import ConfigError, ServiceError
from pigeonhole.prediction_log import new_id
from pigeonhole.serving.settings import Settings

ANSWER = {
    "label": "delivery",
    "score": 0.9,
    "probabilities": {"delivery": 0.9},
    "prediction_id": "p-1",
    "decision": "accept",
    "truncated": False,
    "n_tokens": 3,
    "model": "words",
    "model_version": "v1",
    "request_id": "r-1",
}


def test_every_route_has_its_call_and_its_type(words_bundle: Path, tmp_path: Path) -> None:  # noqa: F811
    classifier = Classifier.open(open_bundle(str(words_bundle)))
    with run_service(classifier, tmp_path / "log", Settings()) as service, Client(service.url) as client:
        found = client.predict("my parcel", top_k=1)
        assert (found.label, list(found.probabilities), found.model_version) == ("delivery", ["delivery"], "20260301-120000")
        (one,) = client.predict_many(["parcel"], top_k=1).predictions
        assert one is not None
        assert list(one.probabilities) == ["delivery"]
        many = client.predict_many(["parcel", " "], partial=True)
        assert [each and each.label for each in many.predictions] == ["delivery", None]
        assert many.errors == [TextError(1, "blank_text", "texts[1] is blank")]
        assert client.explain("my parcel").words[1].word == "parcel"
        assert client.explain("my parcel", label="refund").label == "refund"
        assert len(client.feedback(found.prediction_id, "refund", "agent")) == 32
        assert client.model()["labels"] == ["billing", "delivery", "refund"]
        with pytest.raises(ServiceError, match="refused with 422 blank_text: text is blank") as refused:
            client.predict(" ")
        assert (refused.value.status, refused.value.code) == (422, "blank_text")
        with ThreadPoolExecutor(8) as pool:
            labels = list(pool.map(lambda _: client.predict("refund").label, range(40)))
        assert labels == ["refund"] * 40


def test_the_types_have_the_fields_that_the_service_documents() -> None:
    schemas = json.loads((Path(__file__).parent / "serving" / "openapi.json").read_text())["components"]["schemas"]
    documented: dict[str, type[msgspec.Struct]] = {
        "PredictReply": Prediction,
        "PredictManyReply": Predictions,
        "ExplainReply": Explanation,
        "WordWeight": WordWeight,
        "TextError": TextError,
    }
    for name, shape in documented.items():
        assert set(schemas[name]["properties"]) == {field.name for field in msgspec.structs.fields(shape)}


class Script(ThreadingHTTPServer):
    """Answers one attempt after the other as it is told; the last answer is repeated."""

    def __init__(self, *answers: Callable[["Handler"], None]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = list(answers)
        self.attempts: list[dict[str, str]] = []  # path and headers
        self.bodies: list[dict[str, Any]] = []
        self.opened = self.closed = 0  # connections

    def get_request(self) -> Any:
        self.opened += 1
        return super().get_request()

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        self.closed += 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client whose deadline is over has gone
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    server: Script
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.server.attempts.append({"path": self.path, **{name.lower(): value for name, value in self.headers.items()}})
        answer = self.server.answers.pop(0) if len(self.server.answers) > 1 else self.server.answers[0]
        answer(self)

    def log_message(self, *_: Any) -> None:
        pass


def say(status: int, body: object = None, **headers: str) -> Callable[[Handler], None]:
    def answer(handler: Handler) -> None:
        data = json.dumps(body).encode() if body is not None else b"<html>a proxy's page</html>"
        handler.send_response(status)
        for name, value in {"content-length": str(len(data)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def hang_up(handler: Handler) -> None:
    handler.close_connection = True


def break_off(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("content-length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"label"')
    handler.close_connection = True


OK = say(200, ANSWER)
Serve = Callable[..., Script]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.001)
    running: list[tuple[Script, threading.Thread]] = []

    def start(*answers: Callable[[Handler], None]) -> Script:
        script = Script(*answers)
        thread = threading.Thread(target=script.serve_forever, args=(0.01,))
        thread.start()
        running.append((script, thread))
        return script

    yield start
    for script, thread in running:
        script.shutdown()
        thread.join()
        script.server_close()


def ask(script: Script, **options: Any) -> Prediction:
    with Client(f"http://127.0.0.1:{script.server_address[1]}/", **options) as client:
        return client.predict("parcel")


@pytest.mark.parametrize(
    "failure", [hang_up, break_off, say(503), say(502), say(504), say(429), say(503, {"code": "overloaded"})]
)
def test_what_may_pass_is_asked_again_with_the_same_key_and_a_shorter_deadline(
    serve: Serve, failure: Callable[[Handler], None]
) -> None:
    script = serve(failure, failure, OK)
    assert ask(script, key="secret", canary_key="user-1").label == "delivery"
    assert len(script.attempts) == 3
    assert len({attempt["idempotency-key"] for attempt in script.attempts}) == 1
    deadlines = [int(attempt["x-request-timeout-ms"]) for attempt in script.attempts]
    assert 10_000 >= deadlines[0] >= deadlines[1] >= deadlines[2] > 5_000
    assert (script.attempts[0]["authorization"], script.attempts[0]["x-canary-key"]) == ("Bearer secret", "user-1")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 500])
def test_what_does_not_pass_is_told_at_once(serve: Serve, status: int) -> None:
    script = serve(say(status, {"code": "some_code", "detail": "why", "request_id": "r-1"}), OK)
    with pytest.raises(ServiceError, match=rf"refused with {status} some_code: why \(request r-1\)") as refused:
        ask(script)
    assert (refused.value.status, refused.value.code, len(script.attempts)) == (status, "some_code", 1)


def test_retry_after_is_waited_for_and_beyond_the_deadline_not_even_begun(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    assert ask(serve(say(429, {}, retry_after="2"), OK)).label == "delivery"
    assert waited == [2.0]
    script = serve(say(503, {"code": "overloaded"}, retry_after="60"), OK)
    with pytest.raises(ServiceError, match="no answer within 10 s: overloaded") as late:
        ask(script)
    assert (late.value.status, late.value.code, len(script.attempts)) == (503, "no_answer", 1)


def test_pauses_double_up_to_a_limit_and_are_random(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    bounds: list[float] = []

    def bottom(least: float, most: float) -> float:
        bounds.append(most)
        return least

    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(random, "uniform", bottom)
    ask(serve(*[say(503)] * 15, OK))
    assert bounds == [min(module.LONGEST_PAUSE_S, 0.001 * 2**attempt) for attempt in range(15)]


def test_the_deadline_ends_a_silent_server_and_nobody_there(serve: Serve) -> None:
    done = threading.Event()
    script = serve(lambda _: (done.wait(5), None)[1])
    with pytest.raises(ServiceError, match=r"no answer within 0\.2 s: TimeoutError") as late:
        ask(script, timeout_s=0.2)
    assert late.value.status is None
    done.set()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ServiceError, match="ConnectionRefusedError"):
        Client(f"http://127.0.0.1:{port}", timeout_s=0.05).predict("parcel")


def drip_body(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("content-length", "1000")
    handler.end_headers()
    drip(handler, b"{" * 1000)


def drip_head(handler: Handler) -> None:
    drip(handler, b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 90)


def drip(handler: Handler, data: bytes) -> None:
    handler.close_connection = True
    with contextlib.suppress(OSError):  # the client has gone
        for byte in data:
            handler.wfile.write(bytes([byte]))
            time.sleep(0.05)


@pytest.mark.parametrize("slow", [drip_body, drip_head])
def test_the_deadline_ends_an_answer_that_comes_byte_by_byte(serve: Serve, slow: Callable[[Handler], None]) -> None:
    began = time.monotonic()
    with pytest.raises(ServiceError, match=r"no answer within 0\.3 s: TimeoutError"):
        ask(serve(slow), timeout_s=0.3)
    assert time.monotonic() - began < 15  # the answer takes over 25


def test_threads_that_come_and_go_leave_no_connection_each_and_close_ends_them_all(serve: Serve) -> None:
    script = serve(OK)
    with Client(f"http://127.0.0.1:{script.server_address[1]}") as client:
        for _ in range(20):
            thread = threading.Thread(target=client.predict, args=("parcel",))
            thread.start()
            thread.join()
        assert script.opened == 1
        client.close()
        client.predict("parcel")
    wait_until(lambda: script.closed == script.opened == 2)


def test_a_server_that_was_started_again_costs_one_attempt_however_many_connections_it_had(serve: Serve) -> None:
    def answer_and_hang_up(handler: Handler) -> None:
        OK(handler)
        handler.close_connection = True

    together = threading.Barrier(8)

    def meet(handler: Handler) -> None:
        together.wait(10)
        answer_and_hang_up(handler)

    script = serve(*[meet] * 8, OK)
    with Client(f"http://127.0.0.1:{script.server_address[1]}", timeout_s=20) as client:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(client.predict, ["parcel"] * 8))
        with pytest.MonkeyPatch.context() as patched:
            pauses: list[float] = []
            patched.setattr(time, "sleep", pauses.append)
            client.predict("parcel")
        assert len(pauses) <= 1


def test_an_answer_of_another_shape_is_an_error_of_ours(serve: Serve) -> None:
    with pytest.raises(ServiceError, match="not what this client knows"):
        ask(serve(say(200, {"label": "delivery"})))


def test_what_cannot_be_sent_is_said_before_it_is_sent() -> None:
    for url in ("127.0.0.1:8080", "ftp://host", "http://"):
        with pytest.raises(ConfigError, match="begins with http"):
            Client(url)
    for url in ("http://host:port", "http://host:99999", "http://[::1", "http://a b", "http://host\n", "http://host/ö"):
        with pytest.raises(ConfigError, match="url="):
            Client(url)
    for url in ("http://a..b", f"http://{'a' * 64}", "http://a\x01b", "http://host/\x7f"):
        with pytest.raises(ConfigError, match="url="):
            Client(url)
    user = "me:zebra"
    for url in (f"http://{user}@host", "http://me@host", "http://host/?a=zebra", "http://host/#zebra"):
        with pytest.raises(ConfigError, match="url has a user, a query or a fragment, which would not be sent") as refused:
            Client(url)
        assert "zebra" not in str(refused.value)
    for url in ("http://[::1]:8080", "https://bücher.example/v1/", "http://127.0.0.1", "http://host_a"):
        Client(url).close()
    for timeout_s in (0, -1, float("nan"), float("inf"), 1e6):
        with pytest.raises(ConfigError, match="allowed are seconds above 0 to 999999"):
            Client("http://host", timeout_s=timeout_s)
    wrong: list[dict[str, Any]] = [{"key": "zebra\n"}, {"key": "зебра"}, {"canary_key": "斑馬"}]
    for given in wrong:
        with pytest.raises(ConfigError, match=r"^(canary_)?key has a character that no header can carry"):
            Client("http://host", **given)
    client = Client("http://127.0.0.1:1")
    with pytest.raises(ConfigError, match="257 texts: at most 256"):
        client.predict_many(["a"] * 257)
    with pytest.raises(ConfigError, match="a list of texts; a single one is for predict"):
        client.predict_many("my parcel")
    with pytest.raises(ConfigError, match="half a surrogate pair"):
        client.predict("\ud800")


def test_a_retry_after_a_lost_answer_leaves_one_record(words_bundle: Path, tmp_path: Path) -> None:  # noqa: F811
    classifier = Classifier.open(open_bundle(str(words_bundle)))
    with run_service(classifier, tmp_path / "log", Settings()) as service:
        key = new_id()
        asked = {"idempotency-key": key}
        first = service.http.post("/predict", json={"text": "parcel"}, headers=asked).json()
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(uuid, "uuid4", lambda: key)  # as if the first attempt's answer had been lost on its way
            with Client(service.url) as client:
                again = client.predict("parcel")
        assert again.prediction_id == first["prediction_id"]
        assert len(service.records()) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_told_with_where_it_leads_and_what_to_do(serve: Serve, status: int) -> None:
    script = serve(say(status, location="https://other.example/v2/predict"), OK)
    with pytest.raises(ServiceError) as refused:
        ask(script, key="a-key")
    assert "https://other.example/v2/predict" in str(refused.value)
    assert "give the Client the URL of the service itself" in str(refused.value)
    assert "unknown" not in str(refused.value)
    assert (refused.value.status, refused.value.code, len(script.attempts)) == (status, "redirected", 1)


def test_a_redirect_that_names_no_place_says_so(serve: Serve) -> None:
    with pytest.raises(ServiceError, match="redirected with 301 to nowhere"):
        ask(serve(say(301)))


@pytest.mark.parametrize(("end", "path"), [("", "/predict"), ("/", "/predict"), ("/v1", "/v1/predict"), ("/v1/", "/v1/predict")])
def test_a_service_may_stand_below_a_path(serve: Serve, end: str, path: str) -> None:
    script = serve(OK)
    with Client(f"http://127.0.0.1:{script.server_address[1]}{end}") as client:
        client.predict("parcel")
    assert [(attempt["path"], attempt["content-type"]) for attempt in script.attempts] == [(path, "application/json")]


@pytest.mark.parametrize(("label", "said"), [("a", {"label": "a"}), (("a", "b"), {"labels": ["a", "b"]}), ([], {"labels": []})])
def test_feedback_is_one_label_or_a_list_of_any_number(serve: Serve, label: str | Sequence[str], said: dict[str, object]) -> None:
    script = serve(say(200, {"feedback_id": "f-1"}))
    with Client(f"http://127.0.0.1:{script.server_address[1]}") as client:
        assert client.feedback("p-1", label, "agent") == "f-1"
    assert script.bodies == [{"prediction_id": "p-1", "source": "agent", **said}]


def test_the_deadline_ends_a_server_that_reads_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        client = Client(f"http://127.0.0.1:{deaf.getsockname()[1]}", timeout_s=0.2)
        with pytest.raises(ServiceError, match=r"no answer within 0\.2 s: TimeoutError"):
            client.predict_many(["a" * 100_000] * 256)


def own_certificate(path: Path) -> Path:
    """Of 127.0.0.1, signed by itself, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(private + made.public_bytes(Encoding.PEM))
    return path


def test_over_https_a_server_is_asked_whose_certificate_is_trusted_and_no_other(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem = own_certificate(tmp_path / "own.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem)
    script = serve(OK)
    script.socket = context.wrap_socket(script.socket, server_side=True)
    url = f"https://127.0.0.1:{script.server_address[1]}"
    with pytest.raises(ServiceError, match="SSLCertVerificationError"):
        Client(url, "secret", timeout_s=0.2).predict("parcel")
    assert script.attempts == []
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    with Client(url) as client:
        assert client.predict("parcel").label == "delivery"


def test_an_answer_that_comes_after_the_deadline_is_none(serve: Serve) -> None:
    with pytest.raises(ServiceError, match=r"no answer within 1e-06 s: TimeoutError"):
        ask(serve(OK), timeout_s=1e-6)
