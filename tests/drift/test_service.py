import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import fsspec
import msgspec
import pytest
from fastapi.testclient import TestClient
from tests.conftest import tiny_rows
from tests.drift.conftest import NOON, Receiver

from pigeonhole import storage
from pigeonhole.bundle import Bundle
from pigeonhole.command import call
from pigeonhole.drift.alarm import SIGNATURE, Alarm, is_signed
from pigeonhole.drift.service import Span, Watch, create_app, run, watch
from pigeonhole.drift.settings import Settings
from pigeonhole.drift.window import Reference, read_reference
from pigeonhole.errors import ConfigError, StorageError
from pigeonhole.prediction_log import Feedback, LogWriter, Record, new_id

TEXTS = [text for text, _ in tiny_rows()]
SPAN = {"start": NOON.isoformat(), "end": (NOON + timedelta(hours=1)).isoformat()}


@pytest.fixture
def client(settings: Settings) -> TestClient:
    return TestClient(create_app(settings))


def test_importing_the_service_loads_none_of_trainings_libraries_nor_evidently() -> None:
    heavy = ["torch", "transformers", "datasets", "hydra", "evidently", "pandas", "sklearn", "matplotlib", "wandb"]
    program = f"import sys, pigeonhole.drift.service; print([name for name in {heavy} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_a_run_on_usual_traffic_has_no_drift_and_is_kept(
    client: TestClient, records_of: Callable[..., list[Record]], write_log: Callable[[list[Record]], None]
) -> None:
    write_log(records_of(TEXTS[::2]))
    answer = client.post("/runs", json=SPAN)
    assert (answer.status_code, answer.json()["verdict"]) == (201, "no_drift")
    assert answer.headers["location"] == "/reports/1"
    assert client.get("/reports/latest.json").json() == answer.json() == client.get("/reports/1.json").json()
    assert "no drift" in client.get("/reports/latest").text
    assert client.get("/reports/1").headers["content-type"].startswith("text/html")


def test_other_traffic_raises_the_alarm_everywhere(
    client: TestClient, records_of: Callable[..., list[Record]], write_log: Callable[[list[Record]], None]
) -> None:
    write_log(records_of([f"{text} {text} zxqw {text}" for text in TEXTS]))
    report = client.post("/runs", json=SPAN).json()
    assert report["verdict"] == "drift"
    assert {"n_chars", "n_words"} <= set(report["alarms"])
    stats = client.get("/stats").json()
    assert stats["reports"][0]["alarms"] == report["alarms"]
    assert (stats["live_accuracy"]["n"], stats["live_accuracy"]["accuracy"]) == (0, None)
    exposition = client.get("/metrics").text
    assert 'pigeonhole_drift_alarm{detector="n_words"} 1.0' in exposition
    assert 'pigeonhole_drift_runs_total{verdict="drift"} 1.0' in exposition


def test_a_detector_that_a_run_leaves_out_no_longer_alarms(
    client: TestClient, records_of: Callable[..., list[Record]], write_log: Callable[[list[Record]], None]
) -> None:
    write_log(records_of(["entirely other words about clouds and rain"] * 60))
    assert "embedding" in client.post("/runs", json=SPAN).json()["alarms"]
    usual = records_of(TEXTS[::2], NOON + timedelta(hours=1))
    bare = [msgspec.structs.replace(each, features=msgspec.structs.replace(each.features, sketch=None)) for each in usual]
    write_log(bare)
    span = {"start": SPAN["end"], "end": (NOON + timedelta(hours=2)).isoformat()}
    assert client.post("/runs", json=span).json()["left_out"] == ["embedding"]
    exposition = client.get("/metrics").text
    assert 'pigeonhole_drift_alarm{detector="embedding"} 0.0' in exposition
    assert 'pigeonhole_drift_effect{detector="embedding"} NaN' in exposition


def test_who_is_to_be_told_is_told_of_drift_and_of_nothing_else(
    settings: Settings,
    receiver: Receiver,
    records_of: Callable[..., list[Record]],
    write_log: Callable[[list[Record]], None],
) -> None:
    client = TestClient(create_app(replace(settings, alarm_url=receiver.url, alarm_secret="key")))
    assert "alarm" not in client.post("/runs", json=SPAN).json()
    write_log(records_of([f"{text} {text} zxqw {text}" for text in TEXTS]))
    report = client.post("/runs", json=SPAN).json()
    ((_, headers, body),) = receiver.got
    assert is_signed("key", body, headers[SIGNATURE.lower()], time.time())
    alarm = msgspec.json.decode(body, type=Alarm)
    assert report["alarm"] == {"id": alarm.id, "sent": True, "attempts": 1, "why_not": None}
    assert (alarm.report, alarm.at, alarm.rows) == (report["number"], report["at"], len(TEXTS))
    assert (alarm.model, alarm.version, alarm.detectors) == (report["model"], report["version"], report["alarms"])
    assert 'pigeonhole_drift_alarms_total{outcome="sent"} 1.0' in client.get("/metrics").text


def test_an_alarm_that_nobody_takes_is_counted_and_the_report_is_kept(
    settings: Settings,
    receiver: Receiver,
    records_of: Callable[..., list[Record]],
    write_log: Callable[[list[Record]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    receiver.codes = [404]
    client = TestClient(create_app(replace(settings, alarm_url=receiver.url)))
    write_log(records_of([f"{text} {text} zxqw {text}" for text in TEXTS]))
    assert client.post("/runs", json=SPAN).json()["alarm"]["why_not"] == "the receiver answered 404"
    assert "warning: the alarm of report 1 was not delivered: the receiver answered 404" in capsys.readouterr().err
    assert client.get("/reports/latest.json").json()["verdict"] == "drift"
    assert 'pigeonhole_drift_alarms_total{outcome="lost"} 1.0' in client.get("/metrics").text


def test_an_empty_window_has_too_few_rows(client: TestClient) -> None:
    assert client.post("/runs").json()["verdict"] == "too_few_rows"


def test_the_latest_hours_are_read_when_nothing_else_is_asked(
    client: TestClient, records_of: Callable[..., list[Record]], write_log: Callable[[list[Record]], None]
) -> None:
    write_log(records_of(TEXTS[:30]))
    assert client.post("/runs", json={"hours": 1}).json()["rows"]["window"] == 0


def test_a_promotion_changes_what_traffic_is_compared_with(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    watch = Watch(settings)

    def reads(url: str) -> Reference:
        opened.append(url)
        return read_reference(url.rstrip("/"))

    monkeypatch.setattr("pigeonhole.drift.service.read_reference", reads)
    watch.run(Span())
    watch.run(Span())
    assert len(opened) == 1
    monkeypatch.setattr("pigeonhole.drift.service.live_url", lambda _: opened[0] + "/")
    watch.run(Span())
    assert len(opened) == 2


def test_of_a_remote_bundle_nothing_is_copied_to_this_machine(
    settings: Settings, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.filesystem("memory").put(str(bundle.folder), "/drift/tiny", recursive=True)
    monkeypatch.setattr("pigeonhole.bundle.tempfile.mkdtemp", lambda *_, **__: pytest.fail("a copy of the bundle is made"))
    report = Watch(replace(settings, bundle="memory://drift/tiny")).run(Span())
    assert report["version"] == bundle.manifest.version


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "the body"),
        (b'{"hour": 1}', "unknown field"),
        (b'{"hours": 0}', "hours"),
        (b'{"start": "2026-03-01T12:00:00"}', "start"),
        (b'{"start": "2026-03-02T12:00:00Z", "end": "2026-03-01T12:00:00Z"}', "is not before"),
        (b'{"start": "2026-03-01T12:00:00Z", "end": "2026-03-01T13:00:00+01:00"}', "is not before"),
        (b'{"start": "2026-03-02T12:00:00Z", "hours": 2}', "exclude each other"),
    ],
)
def test_a_bad_span_is_a_422_that_names_it(client: TestClient, body: bytes, said: str) -> None:
    answer = client.post("/runs", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert said in answer.json()["detail"]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/runs", b'{"zebra": 1}'),
        ("POST", "/runs", b'{"start": "zebra"}'),
        ("GET", "/review?zebra=1", b""),
        ("GET", "/traffic?hours=zebra", b""),
        ("GET", "/review?n=1&n=2", b""),
        ("GET", "/versions/v1/rows?cell=zebra", b""),
        ("GET", "/versions/zebra/rows", b""),
        ("GET", "/zebra", b""),
    ],
)
def test_a_refusal_is_a_problem_with_a_code_that_repeats_nothing_of_what_was_asked(
    client: TestClient, method: str, path: str, body: bytes
) -> None:
    answer = client.request(method, path, content=body)
    assert answer.status_code in (404, 422)
    assert answer.headers["content-type"] == "application/problem+json"
    assert {"type", "title", "status", "code", "detail"} == set(answer.json())
    assert answer.json()["type"] == f"urn:pigeonhole:problem:{answer.json()['code']}"
    assert "zebra" not in answer.text


@pytest.mark.parametrize("origin", ["https://stranger.example", "null", "http://[", "http://testserver.stranger.example"])
def test_a_page_of_another_site_that_somebody_visits_starts_no_run(client: TestClient, origin: str) -> None:
    """A browser sends it anywhere, this machine included, where its content is text/plain."""
    answer = client.post("/runs", content=b"{", headers={"origin": origin, "content-type": "text/plain"})
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert client.post("/runs", content=b"{", headers={"origin": "http://testserver"}).status_code == 422


@pytest.mark.parametrize("path", ["/review", "/stats", "/reports/latest", "/versions", "/metrics"])
def test_a_page_whose_name_leads_to_this_machine_reads_nothing(client: TestClient, settings: Settings, path: str) -> None:
    """DNS rebinding: to the browser the answers are of the page's own site."""
    answer = client.get(path, headers={"host": "stranger.example:8081", "origin": "http://stranger.example:8081"})
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert client.get("/stats", headers={"host": "localhost:8081"}).status_code == 200
    for_all = TestClient(create_app(replace(settings, host="0.0.0.0")))
    assert for_all.get("/stats", headers={"host": "drift.example"}).status_code == 200


def test_a_label_that_ends_evidentlys_script_gets_no_origin_and_no_network(client: TestClient, settings: Settings) -> None:
    storage.write(storage.join(settings.reports, "000001.evidently.html"), b"<script>")
    policy = client.get("/reports/1/evidently").headers["content-security-policy"]
    assert policy.startswith("sandbox allow-scripts; default-src 'none';")
    assert "allow-same-origin" not in policy


def test_a_body_of_more_than_64_kib_is_not_read_to_its_end(client: TestClient) -> None:
    parts = (b" " * 1024 for _ in range(1024))
    answer = client.post("/runs", content=parts)
    assert (answer.status_code, answer.json()["code"]) == (413, "content_too_large")
    assert "65536 bytes" in answer.json()["detail"]


@pytest.mark.parametrize(
    "span",
    [
        {"end": "0001-01-01T00:00:00Z"},
        {"end": "0001-01-01T00:00:00+14:00"},
        {"start": "0001-01-01T00:00:00+14:00", "end": "2026-03-01T00:00:00Z"},
        {"start": "2026-03-01T00:00:00Z", "end": "9999-12-31T23:59:59-14:00"},
    ],
)
def test_a_span_outside_the_calendar_is_a_422(client: TestClient, span: dict[str, str]) -> None:
    answer = client.post("/runs", json=span)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


def test_a_span_of_all_times_is_a_span(client: TestClient) -> None:
    answer = client.post("/runs", json={"start": "0001-01-01T00:00:00Z", "end": "9999-12-31T23:59:59Z"})
    assert (answer.status_code, answer.json()["verdict"]) == (201, "too_few_rows")


def test_no_page_of_the_service_asks_another_server(client: TestClient) -> None:
    assert [client.get(path).status_code for path in ("/docs", "/redoc", "/openapi.json")] == [404, 404, 200]


@pytest.mark.parametrize("path", ["/reports/latest", "/reports/latest.json", "/reports/7", "/reports/x.json", "/nothing"])
def test_what_is_not_there_is_a_404(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.json()["status"]) == (404, 404)


def test_a_method_that_is_not_allowed_is_told_with_the_one_that_is(client: TestClient) -> None:
    answer = client.get("/runs")
    assert (answer.status_code, answer.json()["code"], answer.headers["allow"]) == (405, "method_not_allowed", "POST")


def test_a_second_run_meanwhile_is_a_409(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    client = TestClient(create_app(settings))
    met: list[int] = []

    def slow(settings: Settings) -> str:
        met.append(client.post("/runs").status_code)
        raise ConfigError("enough")

    monkeypatch.setattr("pigeonhole.drift.service.live_url", slow)
    assert client.post("/runs").status_code == 422
    assert met == [409]
    assert "pigeonhole_drift_failures_total 1.0" in client.get("/metrics").text


def test_an_empty_registry_is_a_500_without_its_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    client = TestClient(create_app(Settings(registry=str(tmp_path / "none"), reports=str(tmp_path / "reports"))))
    answer = client.post("/runs")
    assert answer.status_code == 500
    assert str(tmp_path) not in answer.text
    assert "no model is in production" in capsys.readouterr().err


def test_small_windows_are_not_drawn_though_drawing_was_asked(settings: Settings) -> None:
    report = TestClient(create_app(replace(settings, draw="yes"))).post("/runs").json()
    assert report["drawing"] == "there are too few rows"


def test_evidentlys_page_is_kept_beside_the_report(
    client: TestClient,
    records_of: Callable[..., list[Record]],
    write_log: Callable[[list[Record]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pigeonhole.drift.report.draw", lambda *_: (b"<html>drawn</html>", "drawn"))
    write_log(records_of(TEXTS[:60]))
    assert client.post("/runs", json={**SPAN, "draw": True}).json()["drawing"] == "drawn"
    assert client.get("/reports/1/evidently").text == "<html>drawn</html>"
    assert 'src="1/evidently"' in client.get("/reports/1").text


def test_links_and_health(client: TestClient) -> None:
    assert client.get("/").json()["run"] == "POST /runs"
    assert client.get("/health").json() == {"status": "ok"}


def test_help_names_every_variable_and_arguments_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(run, ["--help"]) == 0
    assert "PIGEONHOLE_ALARM_BUDGET" in capsys.readouterr().out
    assert call(run, ["port=1"]) == 2


def test_a_port_that_is_taken_is_refused_in_one_line_before_anything_is_said(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        variables = {"PORT": str(port), "PIGEONHOLE_REPORTS": settings.reports, "PIGEONHOLE_LOG": settings.log}
        with pytest.raises(ConfigError, match=rf"HOST='127\.0\.0\.1' PORT={port}: cannot listen there \(.+\); set another"):
            watch(variables)
    assert capsys.readouterr().err == ""


def test_a_run_reads_the_hours_that_it_is_told_or_those_of_the_settings_up_to_now(
    settings: Settings, records_of: Callable[..., list[Record]], write_log: Callable[[list[Record]], None]
) -> None:
    now = datetime.now(UTC)
    write_log(records_of(TEXTS[:3], now - timedelta(hours=30)))
    write_log(records_of(TEXTS[:5], now - timedelta(minutes=90)))
    write_log(records_of(TEXTS[:1], now))
    client = TestClient(create_app(replace(settings, window_hours=48)))

    def rows(**asked: object) -> int:
        return int(client.post("/runs", json=asked).json()["rows"]["window"])

    assert (rows(), rows(hours=2), rows(hours=1)) == (9, 6, 1)
    assert rows(hours=2, end=(now - timedelta(hours=1)).isoformat()) == 5


def test_a_run_is_held_against_the_settings_budget_and_least_rows(
    settings: Settings, records_of: Callable[..., list[Record]], write_log: Callable[[list[Record]], None]
) -> None:
    write_log(records_of(TEXTS[:30]))
    report = TestClient(create_app(replace(settings, budget=0.05, min_rows=50))).post("/runs", json=SPAN).json()
    assert (report["budget"], report["min_rows"], report["verdict"]) == (0.05, 50, "too_few_rows")


def test_the_settings_ask_for_a_drawing_unless_the_run_does_not_want_one(
    settings: Settings,
    records_of: Callable[..., list[Record]],
    write_log: Callable[[list[Record]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pigeonhole.drift.report.draw", lambda *_: (b"<html>", "drawn"))
    write_log(records_of(TEXTS[:60]))
    client = TestClient(create_app(replace(settings, draw="yes")))
    told = [client.post("/runs", json=asked).json()["drawing"] for asked in (SPAN, {**SPAN, "draw": False})]
    assert told == ["drawn", "not asked for"]


def test_every_series_is_there_from_the_start_and_a_run_says_when_it_was_and_what_it_read(
    client: TestClient, records_of: Callable[..., list[Record]], write_log: Callable[[list[Record]], None]
) -> None:
    """An alert on a rate does not see the first of a series that was not there."""
    before = client.get("/metrics").text.splitlines()
    for verdict in ("drift", "no_drift", "too_few_rows"):
        assert f'pigeonhole_drift_runs_total{{verdict="{verdict}"}} 0.0' in before
    assert 'pigeonhole_drift_alarms_total{outcome="lost"} 0.0' in before
    assert 'pigeonhole_drift_alarm{detector="n_words"} 0.0' in before
    write_log(records_of(TEXTS[:30]))
    began = time.time()
    report = client.post("/runs", json=SPAN).json()
    lines = client.get("/metrics").text.splitlines()
    found = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert float(found["pigeonhole_drift_window_rows"]) == 30
    assert began <= float(found["pigeonhole_drift_last_run_timestamp_seconds"]) <= time.time()
    assert float(found["pigeonhole_drift_last_run_seconds"]) == report["seconds"]["total"] > report["seconds"]["read"] > 0


def test_a_reports_place_that_cannot_be_is_refused_before_the_port_is_taken() -> None:
    with pytest.raises(StorageError, match="zebra:// cannot be used here"):
        watch({"PIGEONHOLE_REPORTS": "zebra://reports", "HOST": "192.0.2.1"})


def test_the_queue_is_as_long_reaches_as_far_and_is_drawn_as_it_is_asked(
    settings: Settings, records_of: Callable[..., list[Record]], write_log: Callable[[list[Record]], None]
) -> None:
    """With an audit share of 1 all are drawn, and each answer counts in the accuracy."""
    now = datetime.now(UTC)
    early, late = records_of(TEXTS[:30], now - timedelta(minutes=90)), records_of(TEXTS[30:33], now - timedelta(minutes=1))
    write_log([*early, *late])
    client = TestClient(create_app(replace(settings, audit_share=1.0)))
    found = client.get("/review?n=2").json()
    assert (found["waiting"], len(found["items"])) == (33, 2)
    assert client.get("/review?hours=1").json()["waiting"] == 3
    with LogWriter(settings.log, "feedback") as log:
        for record in early:
            id_, label = record.prediction_id, record.label
            log.append([Feedback(feedback_id=new_id(), at=now, prediction_id=id_, label=label, source="review")])
    reviewed = client.get("/stats").json()["live_accuracy"]["reviewed"]
    assert (reviewed["n"], reviewed["audit_share"]) == (30, 1.0)
