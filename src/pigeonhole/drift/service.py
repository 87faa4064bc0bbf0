"""`uv run drift`, the HTTP service: a run compares what the live version answered with its bundle's reference, and is kept."""

import logging
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import msgspec
import uvicorn
from fastapi import Depends, FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, generate_latest
from starlette.exceptions import HTTPException

from pigeonhole import storage
from pigeonhole.command import command, say, with_help
from pigeonhole.drift import report as reporting
from pigeonhole.drift.alarm import Alarm, Sender
from pigeonhole.drift.asked import check_host, read_body, read_query
from pigeonhole.drift.detectors import DETECTORS
from pigeonhole.drift.feedback import live_accuracy
from pigeonhole.drift.pages import add_pages
from pigeonhole.drift.report import Reports
from pigeonhole.drift.review import queue
from pigeonhole.drift.settings import Settings
from pigeonhole.drift.window import Reference, live_url, read_reference, read_sample
from pigeonhole.environment import describe_variables, read_variables
from pigeonhole.errors import ConfigError, NotFoundError, PigeonholeError, status_title
from pigeonhole.port import bind, is_own, url_of
from pigeonhole.prediction_log import new_id

LINKS = {
    "run": "POST /runs",
    "reports": "/reports/latest /reports/latest.json /reports/{n} /reports/{n}.json /reports/{n}/evidently",
    "stats": "/stats",
    "review": "/review?n=20",
    "versions": "/versions /versions/{version} /versions/{version}/rows?true_label=&label=&cell= /compare?before=&after=&label=",
    "traffic": "/traffic?hours=24&steps=48",
    "health": "/health",
    "metrics": "/metrics",
}
MAX_BODY_BYTES = 64 << 10
CAGE = {
    "content-security-policy": "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'unsafe-inline'; img-src data:; font-src data:"
}
"""Evidently writes labels into its scripts as they are, and a label may end a script: its page gets no origin and no network."""
SPAN_ALLOWED = 'nothing, {"hours": 24} or {"start": …, "end": …}'
PAGE_ALLOWED = "n (1 to 200) and hours (to 8760)"
HELP = f"""usage: [VARIABLE=value ...] uv run drift [--help]

Watch the prediction log for drift: POST /runs, GET /reports/latest /reports/latest.json /reports/N /stats /health /metrics.

The environment sets (variable, default, meaning):
{describe_variables(Settings)}
"""


class Span(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /runs: nothing, the last `hours`, or from `start` to `end`."""

    hours: Annotated[float, msgspec.Meta(gt=0, le=8760)] | None = None
    start: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    end: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    draw: bool | None = None


class Page(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The query of GET /review: how many predictions, of the last hours."""

    n: Annotated[int, msgspec.Meta(ge=1, le=200)] = 20
    hours: Annotated[float, msgspec.Meta(gt=0, le=8760)] | None = None


class BusyError(PigeonholeError):
    """Another run is under way."""


class Watch:
    """The runs: one at a time, each with a report that is kept."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.reports = Reports(settings.reports)
        self.telemetry = Telemetry()
        self._sender = Sender(settings.alarm_url, settings.alarm_secret) if settings.alarm_url else None
        self._reference: Reference | None = None
        self._reference_url = ""
        self._running = threading.Lock()

    def run(self, asked: Span) -> dict[str, Any]:
        """Raises BusyError, ConfigError, and what the registry, the bundle, the log and the reports' store raise."""
        span = self._span(asked)
        if not self._running.acquire(blocking=False):
            raise BusyError("another run is under way; wait for its report")
        try:
            return self._run(span, self.settings.draw == "yes" if asked.draw is None else asked.draw)
        except PigeonholeError:
            self.telemetry.failures.inc()
            raise
        finally:
            self._running.release()

    def _run(self, span: tuple[datetime, datetime], draws: bool) -> dict[str, Any]:
        began = time.perf_counter()
        reference = self._live_reference()
        sample = read_sample(self.settings.log, *span, reference)
        read_s = time.perf_counter() - began
        report = reporting.compare(reference, sample, span, budget=self.settings.budget, min_rows=self.settings.min_rows)
        drawing, told = None, "not asked for"
        if draws and report["verdict"] == "too_few_rows":
            told = "there are too few rows"
        elif draws:
            drawing, told = reporting.draw(reference, sample)
        report["drawing"] = told
        report["seconds"] |= {"read": round(read_s, 3), "total": round(time.perf_counter() - began, 3)}
        kept = self.reports.keep(report, drawing)
        self.telemetry.ran(kept)
        return {**kept, "alarm": self._tell(kept, self._sender)} if self._sender and kept["verdict"] == "drift" else kept

    def _tell(self, report: dict[str, Any], sender: Sender) -> dict[str, Any]:
        """Send the alarm of a report that is kept already."""
        alarm = Alarm(
            id=new_id(),
            at=report["at"],
            model=report["model"],
            version=report["version"],
            report=report["number"],
            detectors=report["alarms"],
            rows=report["rows"]["window"],
        )
        delivery = sender.deliver(alarm)
        self.telemetry.told.labels("sent" if delivery.sent else "lost").inc()
        if not delivery.sent:
            say(f"warning: the alarm of report {alarm.report} was not delivered: {delivery.why_not}")
        return {"id": alarm.id, **asdict(delivery)}

    def live_accuracy(self) -> dict[str, Any]:
        """Raises what the registry, the bundle and the log raise."""
        start, end = self._span(Span())
        return live_accuracy(self.settings.log, start, end, self._live_reference(), end, self.settings.audit_share)

    def review(self, asked: Page) -> dict[str, Any]:
        """Raises what the registry, the bundle and the log raise."""
        start, end = self._span(Span(hours=asked.hours))
        return queue(self.settings.log, start, end, end, self._live_reference(), asked.n, self.settings.audit_share)

    def _live_reference(self) -> Reference:
        """A version never changes: its reference is read once."""
        url = live_url(self.settings)
        if self._reference is None or url != self._reference_url:
            self._reference, self._reference_url = read_reference(url), url
        return self._reference

    def _span(self, asked: Span) -> tuple[datetime, datetime]:
        if asked.hours is not None and asked.start is not None:
            raise ConfigError("hours and start exclude each other; give hours, or start and end")
        try:
            end = (asked.end or datetime.now(UTC) + timedelta(seconds=1)).astimezone(UTC)
            start = (asked.start or end - timedelta(hours=asked.hours or self.settings.window_hours)).astimezone(UTC)
        except OverflowError as error:
            raise ConfigError("start and end have to lie in the years from 1 to 9999, in UTC") from error
        if start >= end:
            raise ConfigError(f"start={start.isoformat()} is not before end={end.isoformat()}")
        return start, end


class Telemetry:
    """For Prometheus; label values come from closed sets."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self._runs = Counter("pigeonhole_drift_runs", "Runs by verdict", ["verdict"], registry=registry)
        self.failures = Counter("pigeonhole_drift_failures", "Runs that ended with an error", registry=registry)
        self._alarm = Gauge("pigeonhole_drift_alarm", "1 where the last run alarmed", ["detector"], registry=registry)
        self._effect = Gauge("pigeonhole_drift_effect", "Effect size of the last run", ["detector"], registry=registry)
        self._rows = Gauge("pigeonhole_drift_window_rows", "Predictions that the last run read", registry=registry)
        self._at = Gauge("pigeonhole_drift_last_run_timestamp_seconds", "When the last run ended", registry=registry)
        self._seconds = Gauge("pigeonhole_drift_last_run_seconds", "How long the last run took", registry=registry)
        self.told = Counter(
            "pigeonhole_drift_alarms", "Alarms, by whether the receiver took them", ["outcome"], registry=registry
        )
        for outcome in ("sent", "lost"):
            self.told.labels(outcome)
        for verdict in ("drift", "no_drift", "too_few_rows"):
            self._runs.labels(verdict)
        for detector in DETECTORS:
            self._alarm.labels(detector.name)

    def ran(self, report: dict[str, Any]) -> None:
        self._runs.labels(report["verdict"]).inc()
        self._rows.set(report["rows"]["window"])
        self._at.set_to_current_time()
        self._seconds.set(report["seconds"]["total"])
        found = {finding["detector"]: finding for finding in report["findings"]}
        for detector in DETECTORS:  # those too that this run left out: what an earlier one said of them holds no longer
            effect = found[detector.name]["effect"] if detector.name in found else None
            self._alarm.labels(detector.name).set(detector.name in report["alarms"])
            self._effect.labels(detector.name).set(float("nan") if effect is None else effect)

    def exposition(self) -> bytes:
        return generate_latest(self._registry)


def create_app(settings: Settings) -> FastAPI:
    watch = Watch(settings)
    handlers: dict[Any, Any] = {PigeonholeError: _refuse, HTTPException: _refuse}
    # FastAPI's own pages fetch their scripts from a stranger's server; /openapi.json says the same.
    checks = [Depends(check_host)] if is_own(settings.host) else []
    app = FastAPI(title="Pigeonhole: drift", docs_url=None, redoc_url=None, exception_handlers=handlers, dependencies=checks)
    _add_runs(app, watch)
    _add_reports(app, watch.reports)
    add_pages(app, settings)

    @app.get("/")
    def links() -> dict[str, str]:
        return LINKS

    @app.get("/stats")
    def stats() -> dict[str, Any]:
        """The verdicts so far, and how often the live version was right by the feedback on the latest hours."""
        return {"reports": watch.reports.history(), "live_accuracy": watch.live_accuracy()}

    @app.get("/review")
    def review(request: Request) -> Response:
        """Predictions for a person to look at; the answer to each is feedback with its `source`."""
        page = read_query(request.query_params.multi_items(), Page, PAGE_ALLOWED)
        return Response(msgspec.json.encode(watch.review(page)), media_type="application/json")

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(watch.telemetry.exposition(), media_type=CONTENT_TYPE_LATEST)

    return app


def _add_runs(app: FastAPI, watch: Watch) -> None:
    @app.post("/runs", status_code=201)
    def run(body: Annotated[bytes, Depends(_body)]) -> Response:
        """Compare a window of the log with the live bundle's reference; answers with the report once it is kept."""
        report = watch.run(read_body(body, Span, SPAN_ALLOWED))
        headers = {"location": f"/reports/{report['number']}"}
        return Response(msgspec.json.encode(report), 201, headers, media_type="application/json")


async def _body(request: Request) -> bytes:
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
        raise HTTPException(403, "a page of another site may not start a run")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(413, f"a body has at most {MAX_BODY_BYTES} bytes")
    return body


def _add_reports(app: FastAPI, reports: Reports) -> None:
    @app.get("/reports/latest")
    def latest() -> Response:
        return Response(reports.read(reports.latest(), "html"), media_type="text/html")

    @app.get("/reports/latest.json")
    def latest_json() -> Response:
        return Response(reports.read(reports.latest(), "json"), media_type="application/json")

    @app.get("/reports/{number}.json")
    def numbered_json(number: str) -> Response:
        return Response(reports.read(_number(number), "json"), media_type="application/json")

    @app.get("/reports/{number}")
    def numbered(number: str) -> Response:
        return Response(reports.read(_number(number), "html"), media_type="text/html")

    @app.get("/reports/{number}/evidently")
    def evidently(number: str) -> Response:
        return Response(reports.read(_number(number), "evidently.html"), headers=CAGE, media_type="text/html")


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 6):
        raise NotFoundError(f"report {text[:20]!r}: a number is allowed, or latest")
    return int(text)


async def _refuse(_: Request, error: Exception) -> Response:
    """Problem+json (RFC 9457); what the asker cannot mend is a 500 whose cause is in the service's own log."""
    if isinstance(error, HTTPException):
        status, code = error.status_code, status_title(error.status_code).lower().replace(" ", "_")
        detail = f"there is: {', '.join(LINKS.values())}" if status in (404, 405) else error.detail
    elif isinstance(error, NotFoundError):
        status, code, detail = 404, "not_found", "there is no such report, or version"
    elif isinstance(error, BusyError):
        status, code, detail = 409, "busy", str(error)
    elif isinstance(error, ConfigError):
        status, code, detail = 422, "invalid_request", str(error)
    else:
        say(f"error: {error}")
        status, code, detail = 500, "failed", "this failed; the service's own log says why"
    kind = f"urn:pigeonhole:problem:{code}"
    body = {"type": kind, "title": status_title(status), "status": status, "code": code, "detail": detail}
    headers = error.headers if isinstance(error, HTTPException) else None  # of a 405: what is allowed
    return Response(msgspec.json.encode(body), status, headers, media_type="application/problem+json")


@with_help(HELP)
def run(arguments: list[str]) -> None:
    if arguments:
        raise ConfigError(f"unexpected argument {arguments[0]!r}: the environment sets it all, see uv run drift --help")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    watch(os.environ)


def watch(environment: Mapping[str, str]) -> None:
    """Until SIGTERM or SIGINT. Raises ConfigError, StorageError before the port is opened."""
    settings = read_variables(Settings, environment)
    logged = storage.exists(settings.log)
    storage.exists(settings.reports)
    with bind(settings.host, settings.port) as listener:
        config = uvicorn.Config(create_app(settings), log_level="error", access_log=False, server_header=False)
        say(f"drift at {url_of(settings.host, settings.port)} (POST /runs)")
        if not logged:
            say(f"PIGEONHOLE_LOG={settings.log}: there is no log here yet; until a service writes one, runs find too few rows")
        uvicorn.Server(config).run([listener])


main = command(run)
