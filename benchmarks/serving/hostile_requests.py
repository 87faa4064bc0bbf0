"""Requests that nobody should send, as bytes: a corpus, mutants of it, JSON from hypothesis, schemathesis by OpenAPI."""

import gzip
import json
import random
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

CASES = Path(__file__).parents[2] / "tests" / "serving" / "http_cases.json"
PIECES = [
    *(bytes([byte]) for byte in (0, 9, 10, 13, 32, 34, 44, 58, 91, 92, 93, 123, 125, 127, 128, 255)),
    *(
        b"\r\n",
        b"\r\n\r\n",
        b"\\ud800",
        b"\\u0000",
        b"NaN",
        b"1e999",
        b"-1",
        b"null",
        b"true",
        b"[]",
        b"{}",
        b'"text":',
        b'"top_k":0,',
    ),
    *(b"9" * 400, b"[" * 600, b"a" * 9000, b"%00", b"%2e%2e/", b"chunked", b"gzip", "é".encode(), "\N{PILE OF POO}".encode()),
    *(b"content-length: 5\r\n", b"transfer-encoding: chunked\r\n", b"expect: 100-continue\r\n", b"connection: close\r\n"),
]


def corpus() -> list[bytes]:
    """The cases of the tests, good and bad."""
    cases: dict[str, list[dict[str, Any]]] = json.loads(CASES.read_text(encoding="utf-8"))
    whole = []
    for case in cases["cases"]:
        body = "".join(text * times for text, times in case["body"]).encode(case.get("encoding", "utf-8"))
        whole.append(request(case["method"], case["path"], case["headers"], gzip.compress(body) if case.get("gzip") else body))
    streams = ["".join(text * times for text, times in case["bytes"]).encode("latin-1") for case in cases["raw_cases"]]
    return [*whole, *streams]


def request(method: str, path: str, headers: dict[str, str], body: bytes) -> bytes:
    """With its length, and with a host, where they are not given."""
    given_names = {name.lower() for name in headers}
    own = {"host": "x", "content-length": str(len(body))}
    lines = [f"{name}: {value}" for name, value in [*own.items(), *headers.items()] if name not in given_names or name in headers]
    return f"{method} {path} HTTP/1.1\r\n".encode() + "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + body


def mutants(chance: random.Random) -> Iterator[bytes]:
    """For ever: a member of the corpus with one to four changes, half of them in the body with a length that fits."""
    members = [found for found in corpus() if len(found) < 50_000]
    while True:
        head, separator, body = chance.choice(members).partition(b"\r\n\r\n")
        if chance.random() < 0.5:
            body = mutated(body, chance)
            lines = [line for line in head.split(b"\r\n") if not line.lower().startswith((b"content-length", b"transfer-enc"))]
            yield b"\r\n".join([*lines, b"content-length: %d" % len(body)]) + separator + body
        else:
            yield mutated(head + separator + body, chance)


def mutated(data: bytes, chance: random.Random) -> bytes:
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(data) + 1)
        end = min(len(data), start + chance.choice((0, 0, 1, 1, 2, 8, 64)))
        new = chance.choice((b"", data[start:end] * 2, chance.choice(PIECES), chance.randbytes(chance.randint(1, 8))))
        data = data[:start] + new + data[end:]
    return data


def by_hypothesis(count: int, number: int) -> list[bytes]:
    """JSON of any shape under the fields that the service reads, to each of its routes."""
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40)
    values = st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    )
    fields = st.sampled_from(
        ["text", "texts", "inputs", "instances", "parameters", "top_k", "partial", "label", "source", "prediction_id"]
    )
    bodies = st.dictionaries(fields | st.text(max_size=8), values, max_size=4) | values
    routes = st.sampled_from(["/predict", "/v1/predict", "/predict/batch", "/explain", "/feedback"])
    found: list[bytes] = []

    @seed(number)
    @settings(max_examples=count, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(route=routes, body=bodies)
    def collect(route: str, body: object) -> None:
        data = json.dumps(body).encode("utf-8", "surrogatepass")
        found.append(request("POST", route, {"content-type": "application/json"}, data))

    collect()
    return found


def by_schemathesis(document: dict[str, Any], count: int, number: int) -> list[bytes]:
    """Right and wrong requests by the OpenAPI document, about `count` of them; without deadlines, which ask for a 503."""
    import requests
    import schemathesis  # only the group load has it
    from schemathesis.generation import GenerationMode

    found: list[bytes] = []
    operations = [result.ok() for result in schemathesis.openapi.from_dict(document).get_all_operations()]
    writing = [operation for operation in operations if operation.method.upper() == "POST"]  # a GET takes nothing to vary
    for operation in writing:
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            @seed(number)
            @settings(
                max_examples=count // (2 * len(writing)),
                database=None,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def collect(case: Any) -> None:
                known = ("method", "url", "headers", "json", "data", "params", "cookies")
                parts = {name: value for name, value in case.as_transport_kwargs(base_url="http://x").items() if name in known}
                made: Any = requests.Request(**parts).prepare()
                headers = {name: value for name, value in made.headers.items() if name.lower() != "x-request-timeout-ms"}
                body = made.body.encode() if isinstance(made.body, str) else made.body or b""
                found.append(request(made.method, made.path_url, headers, body))

            collect()
    return found


def quoted(data: bytes) -> str:
    """Something to print."""
    return urllib.parse.quote_from_bytes(data[:300], safe=b' :/{}[]",.-_?=\r\n').replace("\r\n", "\\r\\n")
