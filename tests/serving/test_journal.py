import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.serving.conftest import Start
from tests.serving.test_serve import served

from pigeonhole.errors import BundleError
from pigeonhole.serving import journal
from pigeonhole.serving.journal import Traceparent, traceparent_of

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


@pytest.fixture
def _logging_as_before() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("pigeonhole")
    before = root.handlers[:], root.level, ours.level, journal.requests.level
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])
    journal.requests.setLevel(before[3])


@pytest.mark.usefixtures("_logging_as_before")
def test_in_json_each_request_is_a_line_with_its_ids_and_without_its_text(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    with start() as service:
        journal.begin("json")
        sent = {"x-request-id": "r-1", "traceparent": TRACEPARENT}
        service.http.post("/predict", json={"text": "zebra"}, headers=sent)
        service.http.post("/predict", json={"text": "zebra", "zebra": "\n"})
        service.http.request("ZEBRA", "/zebra")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert "zebra" not in json.dumps(lines).lower()
    first, second, third = lines
    assert first["time"].endswith("Z")
    assert {name: first[name] for name in first if name not in ("time", "ms")} == {
        "severity": "INFO",
        "logger": "pigeonhole.requests",
        "message": "POST /predict 200",
        "request_id": "r-1",
        "trace_id": TRACE,
        "method": "POST",
        "route": "/predict",
        "status": 200,
    }
    assert first["ms"] > 0
    assert (second["message"], third["message"]) == ("POST /predict 422", "other other 404")
    assert len({line["trace_id"] for line in lines}) == 3


@pytest.mark.usefixtures("_logging_as_before")
def test_in_json_a_failure_is_one_line_with_its_stack(capsys: pytest.CaptureFixture[str]) -> None:
    journal.begin("json")
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        logging.getLogger("pigeonhole.serving.edge").exception("request %s failed", "r-1")
    (line,) = capsys.readouterr().err.splitlines()
    found = json.loads(line)
    assert (found["severity"], found["message"]) == ("ERROR", "request r-1 failed")
    assert "ValueError: first\nsecond" in found["exception"]


@pytest.mark.usefixtures("_logging_as_before")
@pytest.mark.parametrize("asked", ["", "1"])
def test_in_json_the_end_has_its_stack_where_that_is_asked_for(
    asked: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIGEONHOLE_TRACEBACK", asked)
    journal.begin("json")
    with pytest.raises(SystemExit) as left, journal.to_the_end("json"):
        raise BundleError("golden.json is missing")
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert ("BundleError" in json.loads(line).get("exception", "")) == bool(asked)


@pytest.mark.usefixtures("_logging_as_before")
def test_in_json_a_name_that_is_no_utf8_costs_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    journal.begin("json")
    logging.getLogger("pigeonhole.serving").info("ignored: %s", os.fsdecode(b"PIGEONHOLE_\xff"))
    (line,) = capsys.readouterr().err.splitlines()
    found = json.loads(line)
    assert (found["message"], found["time"][-1]) == ("ignored: PIGEONHOLE_\udcff", "Z")


@pytest.mark.usefixtures("_logging_as_before")
def test_in_text_a_note_is_plain_and_a_warning_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    journal.begin("text")
    logger = logging.getLogger("pigeonhole.serving")
    logger.info("serving words")
    logger.warning("version %s is refused", "v2")
    journal.requests.info("POST /predict 200")
    assert capsys.readouterr().err.splitlines() == ["serving words", "WARNING pigeonhole.serving: version v2 is refused"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGTERM, not Windows")
def test_the_command_says_everything_in_json_where_it_is_told_to(words_bundle: Path, tmp_path: Path) -> None:
    environment = {"PIGEONHOLE_BUNDLE": str(words_bundle), "PIGEONHOLE_LOG": str(tmp_path / "log"), "PIGEONHOLE_STDERR": "json"}
    with served(**environment) as (process, http):
        http.post("/predict", json={"text": "parcel"})
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=10)
    messages = [json.loads(line)["message"] for line in err.splitlines()]
    assert messages[0].startswith("serving words 20260301-120000 at http://127.0.0.1:")
    assert messages[-1] == "POST /predict 200"


@pytest.mark.parametrize(
    "value",
    [
        "",
        "zebra",
        TRACEPARENT.upper(),
        TRACEPARENT + "-extra",
        "ff" + TRACEPARENT[2:],
        TRACEPARENT.replace(TRACE, "0" * 32),
        TRACEPARENT.replace("00f067aa0ba902b7", "0" * 16),
        TRACEPARENT + "\n",
        " " + TRACEPARENT,
    ],
)
def test_a_broken_traceparent_is_as_good_as_none(value: str) -> None:
    assert traceparent_of([(b"traceparent", value.encode())]) is None


def test_a_traceparent_is_taken_over_unless_there_are_two() -> None:
    one = (b"traceparent", TRACEPARENT.encode())
    assert traceparent_of([one]) == Traceparent(TRACE, "00f067aa0ba902b7", 1)
    assert traceparent_of([(b"traceparent", b"cc" + one[1][2:] + b"-what-comes")]) == Traceparent(TRACE, "00f067aa0ba902b7", 1)
    assert traceparent_of([(b"traceparent", one[1][:-2] + b"ff")]) == Traceparent(TRACE, "00f067aa0ba902b7", 255)
    assert traceparent_of([one, one]) is None
