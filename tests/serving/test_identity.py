"""ID tokens against a stand-in issuer: what opens the service, and all that must not."""

import base64
import hashlib
import hmac
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.conftest import wait_until
from tests.serving.conftest import Running, Start

from pigeonhole.errors import ConfigError
from pigeonhole.serving.access import UnknownCaller
from pigeonhole.serving.app import identity_of
from pigeonhole.serving.identity import Identity
from pigeonhole.serving.settings import Settings

AUDIENCE = "https://pigeonhole.example"
RSA = rsa.generate_private_key(65537, 2048)
NEXT_RSA = rsa.generate_private_key(65537, 2048)
ATTACKER = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())


def public(key: Any, kid: str, **more: str) -> dict[str, Any]:
    algorithm = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, **more}


class Issuer(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.keys = [
            public(RSA, "r1", use="sig"),
            public(EC, "e1"),
            public(ATTACKER, "enc", use="enc"),
            {"kty": "odd", "kid": "o"},
        ]
        self.reads = 0
        self.leads_to = ""


class Handler(BaseHTTPRequestHandler):
    server: Issuer

    def do_GET(self) -> None:
        if self.server.leads_to and not self.path.endswith("?led"):
            self.send_response(302)
            self.send_header("location", f"{self.server.leads_to}{self.path}?led")
            self.end_headers()
            return
        found = {
            "/.well-known/openid-configuration": {"jwks_uri": f"{self.server.url}/keys"},
            "/keys": {"keys": self.server.keys},
        }
        self.server.reads += self.path == "/keys"
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(found[self.path.removesuffix("?led")]).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with Issuer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def closed(start: Start, issuer: Issuer) -> Iterator[Running]:
    allowed = "agent@example.com, *@team.example ,robot-7"
    with start(oidc_issuer=issuer.url, oidc_audience=AUDIENCE, oidc_allowed=allowed, oidc_rate=1000, poll_s=0.05) as service:
        yield service


def now(seconds: int = 0) -> int:
    return int(time.time()) + seconds


def claims(issuer: Issuer, **changed: Any) -> dict[str, Any]:
    right = {"iss": issuer.url, "aud": AUDIENCE, "sub": "1", "email": "agent@example.com", "email_verified": True}
    found = {**right, "iat": now(), "exp": now(600), **changed}
    return {name: value for name, value in found.items() if value is not None}


def token(payload: dict[str, Any], key: Any = RSA, algorithm: str = "RS256", **headers: Any) -> str:
    return jwt.encode(payload, key, algorithm, {"kid": "r1", **headers})


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def hmac_token(payload: dict[str, Any], secret: bytes) -> str:
    """HS256 by hand: the library refuses to make what an attacker makes."""
    signed = f"{b64(json.dumps({'alg': 'HS256', 'kid': 'r1'}).encode())}.{b64(json.dumps(payload).encode())}"
    return f"{signed}.{b64(hmac.new(secret, signed.encode(), hashlib.sha256).digest())}"


def forged(right: str, **payload: Any) -> str:
    head, body, signature = right.split(".")
    changed = {**json.loads(base64.urlsafe_b64decode(body + "==")), **payload}
    return f"{head}.{b64(json.dumps(changed).encode())}.{signature}"


PEM = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
Made = Callable[[Issuer], str]
REFUSED: dict[str, Made] = {
    "expired": lambda i: token(claims(i, exp=now(-60))),
    "expired a day ago": lambda i: token(claims(i, iat=now(-90_000), exp=now(-86_400))),
    "not yet": lambda i: token(claims(i, nbf=now(120))),
    "issued in the future": lambda i: token(claims(i, iat=now(120))),
    "never ends": lambda i: token(claims(i, exp=None)),
    "no issue time": lambda i: token(claims(i, iat=None)),
    "an end that is no number": lambda i: token(claims(i, exp="soon")),
    "an end that is infinite": lambda i: forged(token(claims(i)), exp=float("inf")),
    "for another audience": lambda i: token(claims(i, aud="https://other.example")),
    "for a longer audience": lambda i: token(claims(i, aud=AUDIENCE + ".evil.example")),
    "for several others": lambda i: token(claims(i, aud=["https://a.example", "https://b.example"])),
    "for nobody": lambda i: token(claims(i, aud=None)),
    "for a number": lambda i: token(claims(i, aud=7)),
    "by another issuer": lambda i: token(claims(i, iss="https://accounts.google.com")),
    "by a longer issuer": lambda i: token(claims(i, iss=i.url + "/evil")),
    "by no issuer": lambda i: token(claims(i, iss=None)),
    "of no subject": lambda i: token(claims(i, sub=None)),
    "a subject that is no text": lambda i: token(claims(i, sub=["robot-7"])),
    "the pattern as a subject": lambda i: token(claims(i, sub="*@team.example", email=None)),
    "of somebody else": lambda i: token(claims(i, email="other@example.com")),
    "an address that nobody verified": lambda i: token(claims(i, email_verified=False)),
    "an address verified by a word": lambda i: token(claims(i, email_verified="true")),
    "an address without a verdict": lambda i: token(claims(i, email_verified=None)),
    "another case": lambda i: token(claims(i, email="Agent@example.com")),
    "a domain inside an address": lambda i: token(claims(i, email="evil@team.example@evil.example")),
    "a domain below": lambda i: token(claims(i, email="evil@sub.team.example")),
    "the pattern itself": lambda i: token(claims(i, email="*@team.example@x")),
    "an address that is somebody's subject": lambda i: token(claims(i, email="robot-7")),
    "signed by somebody else": lambda i: token(claims(i), ATTACKER),
    "signed by somebody else's curve": lambda i: token(claims(i), ec.generate_private_key(ec.SECP256R1()), "ES256", kid="e1"),
    "a key of another kind": lambda i: token(claims(i), EC, "ES256"),
    "another algorithm of the right key": lambda i: token(claims(i), RSA, "RS512"),
    "another padding of the right key": lambda i: token(claims(i), RSA, "PS256"),
    "unsigned": lambda i: jwt.encode(claims(i), "", "none", {"kid": "r1"}),
    "the public key as a secret": lambda i: hmac_token(claims(i), PEM),
    "the public key's bytes as a secret": lambda i: hmac_token(
        claims(i), b64(RSA.public_key().public_numbers().n.to_bytes(256)).encode()
    ),
    "a key for encryption": lambda i: token(claims(i), ATTACKER, kid="enc"),
    "a key that nobody knows": lambda i: token(claims(i), ATTACKER, kid="mine"),
    "no key named": lambda i: jwt.encode(claims(i), RSA, "RS256"),
    "a key named by a path": lambda i: token(claims(i), ATTACKER, kid="../../keys"),
    "its own key inside": lambda i: token(claims(i), ATTACKER, jwk=public(ATTACKER, "r1")),
    "its own key by URL": lambda i: token(claims(i), ATTACKER, jku="https://evil.example/keys"),
    "an extension that is critical": lambda i: token(claims(i), crit=["zebra"], zebra=1),
    "another address put in": lambda i: forged(token(claims(i, email="evil@example.com")), email="agent@example.com"),
    "another subject put in": lambda i: forged(token(claims(i, email=None)), sub="robot-7"),
    "its signature cut": lambda i: token(claims(i))[:-4],
    "no signature": lambda i: token(claims(i)).rpartition(".")[0] + ".",
    "no claims": lambda i: jwt.encode({}, RSA, "RS256", {"kid": "r1"}),
    "claims that are no object": lambda i: jwt.PyJWS().encode(b"[1]", RSA, "RS256", {"kid": "r1"}),
    "claims that are no JSON": lambda i: jwt.PyJWS().encode(b"zebra", RSA, "RS256", {"kid": "r1"}),
    "dots alone": lambda i: "..",
    "no base64": lambda i: "zebra.zebra.zebra",
    "two parts": lambda i: token(claims(i)).rpartition(".")[0],
    "five parts": lambda i: token(claims(i)) + ".a.b",
    "too long": lambda i: token(claims(i, zebra="a" * 9000)),
}


def ask(service: Running, *headers: tuple[str, str]) -> tuple[int, str]:
    answer = service.http.post("/predict", json={"text": "parcel"}, headers=list(headers))
    return answer.status_code, answer.json().get("code", "")


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"aud": ["https://other.example", AUDIENCE]},
        {"email": "anybody@team.example"},
        {"sub": "robot-7", "email": None},
    ],
)
def test_a_token_for_this_service_of_somebody_who_is_allowed_opens_it(
    closed: Running, issuer: Issuer, changed: dict[str, Any]
) -> None:
    assert ask(closed, ("authorization", f"Bearer {token(claims(issuer, **changed))}")) == (200, "")
    assert ask(closed, ("authorization", f"bearer {token(claims(issuer, **changed), EC, 'ES256', kid='e1')}")) == (200, "")
    late = token(claims(issuer, **changed, exp=now(-10)))  # clocks differ
    assert ask(closed, ("authorization", f"Bearer {late}")) == (200, "")
    metrics = closed.http.get("/metrics", headers={"authorization": f"Bearer {token(claims(issuer))}"})
    assert (metrics.status_code, metrics.json()["code"]) == (403, "missing_scope")


def test_nothing_else_does(closed: Running, issuer: Issuer) -> None:
    assert len(REFUSED) >= 50
    for name, made in REFUSED.items():
        status, code = ask(closed, ("authorization", f"Bearer {made(issuer)}"))
        assert (name, status) == (name, 401)
        assert code in ("invalid_token", "invalid_key")
    right = token(claims(issuer))
    for headers in [
        [],
        [("authorization", right)],
        [("authorization", f"Basic {right}")],
        [("authorization", f"Bearer  {right} {right}")],
        [("authorization", f"Bearer {right}"), ("authorization", f"Bearer {right}")],
        [("authorization", f"Bearer {right}"), ("x-api-key", "pgh_1")],
        [("cookie", f"authorization={right}")],
    ]:
        assert ask(closed, *headers)[0] == 401
    assert closed.http.post(f"/predict?access_token={right}", json={"text": "parcel"}).status_code == 401
    assert closed.http.get("/health").status_code == 200


def test_a_new_key_of_the_issuer_is_known_within_a_look_and_strangers_cost_one_reading_a_look(
    closed: Running, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuer, "keys", [public(RSA, "r1"), public(NEXT_RSA, "r2")])
    fresh = f"Bearer {token(claims(issuer), NEXT_RSA, kid='r2')}"
    assert ask(closed, ("authorization", fresh)) == (401, "invalid_token")
    wait_until(lambda: ask(closed, ("authorization", fresh))[0] == 200)
    began, reads = time.monotonic(), issuer.reads
    for number in range(50):
        ask(closed, ("authorization", f"Bearer {token(claims(issuer), ATTACKER, kid=f'k{number}')}"))
    assert issuer.reads - reads <= (time.monotonic() - began) / 0.03 + 1


def test_while_the_issuer_is_away_the_known_keys_hold(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = Identity(issuer.url, AUDIENCE, "robot-7", ("predict",), 10)
    monkeypatch.setattr(issuer, "keys", [])
    monkeypatch.setattr("pigeonhole.serving.identity.FRESH_S", 0.0)
    identity.look()
    assert identity.verify(token(claims(issuer, sub="robot-7"))) == "robot-7"


def test_a_key_that_the_issuer_has_taken_back_holds_no_longer_than_keys_are_fresh(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = Identity(issuer.url, AUDIENCE, "robot-7", ("predict",), 10)
    right = token(claims(issuer, sub="robot-7"))
    monkeypatch.setattr(issuer, "keys", [public(NEXT_RSA, "r2")])
    identity.look()
    assert identity.verify(right) == "robot-7"
    monkeypatch.setattr("pigeonhole.serving.identity.FRESH_S", 0.0)
    identity.look()
    with pytest.raises(UnknownCaller):
        identity.verify(right)


def test_a_stranger_costs_one_reading_and_not_one_a_look_from_then_on(issuer: Issuer) -> None:
    identity = Identity(issuer.url, AUDIENCE, "robot-7", ("predict",), 10)
    with pytest.raises(UnknownCaller):
        identity.verify(token(claims(issuer), ATTACKER, kid="unheard-of"))
    reads = issuer.reads
    for _ in range(3):
        identity.look()
    assert issuer.reads == reads + 1


def test_googles_issuer_is_known_with_and_without_its_scheme(issuer: Issuer) -> None:
    identity = Identity(issuer.url, AUDIENCE, "robot-7", ("predict",), 10)
    identity._issuer = "https://accounts.google.com"
    for name in ("https://accounts.google.com", "accounts.google.com"):
        assert identity.verify(token(claims(issuer, iss=name, sub="robot-7"))) == "robot-7"


def test_an_issuer_whose_name_ends_with_a_slash_is_known_by_it(issuer: Issuer) -> None:
    """As Auth0's do."""
    identity = Identity(f"{issuer.url}/", AUDIENCE, "robot-7", ("predict",), 10)
    for name in (issuer.url, f"{issuer.url}/"):
        assert identity.verify(token(claims(issuer, iss=name, sub="robot-7"))) == "robot-7"


@pytest.mark.parametrize(
    "url", ["http://issuer.example", "ftp://issuer.example", "file:///etc/passwd", "http://127.0.0.1:" + "@issuer.example:1"]
)
def test_an_issuer_is_read_over_https_alone(url: str) -> None:
    with pytest.raises(ConfigError, match="https:// alone"):
        Identity(url, AUDIENCE, "robot-7", ("predict",), 10)


def test_an_issuer_that_leads_away_from_https_is_not_followed(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(issuer, "leads_to", issuer.url.replace("127.0.0.1", "127.1"))
    with pytest.raises(ConfigError, match=r"cannot be read .*https:// alone"):
        Identity(issuer.url, AUDIENCE, "robot-7", ("predict",), 10)


OCT = {"kty": "oct", "k": "emVicmE", "kid": "h", "alg": "HS256"}


@pytest.mark.parametrize("keys", [None, 5, {"a": 1}, ["zebra"], [5], [None], [{"kty": "RSA"}], [OCT]])
def test_keys_that_are_none_are_refused(issuer: Issuer, monkeypatch: pytest.MonkeyPatch, keys: Any) -> None:
    monkeypatch.setattr(issuer, "keys", keys)
    with pytest.raises(ConfigError, match="has no key for RS256 or ES256"):
        Identity(issuer.url, AUDIENCE, "robot-7", ("predict",), 10)


@pytest.mark.parametrize(
    "answer", [b"zebra\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\n" + b"[" * 100_000, b"HTTP/1.0 200 OK\r\n\r\nzebra"]
)
def test_an_issuer_that_answers_with_something_else_is_refused(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    monkeypatch.setattr(Handler, "do_GET", lambda handler: handler.wfile.write(answer))
    with pytest.raises(ConfigError, match=r"(?s)cannot be read .*is PIGEONHOLE_OIDC_ISSUER right"):
        Identity(issuer.url, AUDIENCE, "robot-7", ("predict",), 10)


@pytest.mark.parametrize("url", ["http://127.0.0.1:port", "https://issuer .example"])
def test_an_issuer_whose_url_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"(?s)cannot be read .*is PIGEONHOLE_OIDC_ISSUER right"):
        Identity(url, AUDIENCE, "robot-7", ("predict",), 10)


def test_each_caller_has_a_rate_of_its_own(start: Start, issuer: Issuer) -> None:
    with start(oidc_issuer=issuer.url, oidc_audience=AUDIENCE, oidc_allowed="*@team.example", oidc_rate=1) as service:
        mine, other = (token(claims(issuer, sub=sub, email=f"{sub}@team.example")) for sub in ("1", "2"))
        assert [ask(service, ("authorization", f"Bearer {mine}"))[0] for _ in range(2)] == [200, 429]
        assert ask(service, ("authorization", f"Bearer {other}"))[0] == 200


def test_without_pyjwt_an_issuer_is_refused_with_the_group_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pigeonhole.serving.identity")
    monkeypatch.setitem(sys.modules, "jwt", None)
    with pytest.raises(ConfigError, match="needs PyJWT: uv sync --group service --group identity"):
        identity_of(Settings(oidc_issuer="https://issuer.example", oidc_audience=AUDIENCE, oidc_allowed="*@x"))
