"""Every request of http_cases.json against a real server on a real socket."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from tests.serving.conftest import Running

CASES: dict[str, list[dict[str, Any]]] = json.loads(Path(__file__).with_name("http_cases.json").read_text())
PROBLEM_FIELDS = {"type", "title", "status", "code"}


def joined(parts: list[tuple[str, int]]) -> str:
    return "".join(text * times for text, times in parts)


def body_of(case: dict[str, Any]) -> bytes:
    body = joined(case["body"]).encode(case.get("encoding", "utf-8"))
    return gzip.compress(body) if case.get("gzip") else body


def check_refusal(status: int, content_type: str, body: bytes) -> None:
    assert content_type == "application/problem+json"
    details = json.loads(body)
    assert set(details) >= PROBLEM_FIELDS
    assert details["status"] == status
    assert len(body) <= 4096
    for never in (b"zebra", b"Traceback", b"/src/", b".py"):
        assert never not in body


@pytest.mark.parametrize("case", CASES["cases"], ids=lambda case: case["id"])
def test_each_request_is_answered_as_listed(running_once: Running, case: dict[str, Any]) -> None:
    answer = running_once.http.request(case["method"], case["path"], headers=case["headers"], content=body_of(case))
    assert answer.status_code in case["status"]
    if answer.status_code >= 400:
        check_refusal(answer.status_code, answer.headers["content-type"], answer.content)
    elif "has" in case:
        assert answer.json()[case["has"]] is True
    elif "predictions" in case:
        assert len(answer.json()["predictions"]) == case["predictions"]
    assert running_once.http.get("/health").status_code == 200


@pytest.mark.parametrize("case", CASES["raw_cases"], ids=lambda case: case["id"])
def test_each_stream_of_bytes_is_answered_as_listed(running_once: Running, case: dict[str, Any]) -> None:
    head, _, body = running_once.raw(joined(case["bytes"]).encode("latin-1")).partition(b"\r\n\r\n")
    status = int(head.split(b" ")[1])
    assert status in case["status"]
    headers = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:])
    assert b"set-cookie" not in headers
    if case["problem"]:
        check_refusal(status, headers[b"content-type"].decode(), body[: int(headers[b"content-length"])])
    assert running_once.http.get("/health").status_code == 200
