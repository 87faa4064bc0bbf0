"""Spans, as a collector gets them: an HTTP server that reads OpenTelemetry's own messages."""

import builtins
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from tests.serving.conftest import Start

from pigeonhole.errors import ConfigError
from pigeonhole.serving.tracing import Tracing


class Collector(ThreadingHTTPServer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[ExportTraceServiceRequest] = []

    def spans(self) -> list[Span]:
        scopes = [scope for request in self.requests for found in request.resource_spans for scope in found.scope_spans]
        return [span for scope in scopes for span in scope.spans]


class Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.requests.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with Collector() as server:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def attributes(span: Span) -> dict[str, Any]:
    return {found.key: found.value.string_value or found.value.int_value for found in span.attributes}


def test_a_request_is_a_span_of_its_callers_trace_and_holds_queue_and_model(start: Start, collector: Collector) -> None:
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    with start(traces="otlp") as service:
        service.http.post("/predict", json={"texts": ["parcel"] * 40}, headers={"traceparent": f"00-{trace}-{parent}-01"})
        service.http.get("/nope")
    spans = {span.name: span for span in collector.spans()}
    assert set(spans) == {"POST /predict", "queue", "model", "GET other"}
    request, queue, model = spans["POST /predict"], spans["queue"], spans["model"]
    assert {span.trace_id.hex() for span in (request, queue, model)} == {trace}
    assert request.parent_span_id.hex() == parent
    assert {queue.parent_span_id, model.parent_span_id} == {request.span_id}
    assert attributes(request) == {"http.request.method": "POST", "http.route": "/predict", "http.response.status_code": 200}
    assert attributes(model)["pigeonhole.model_version"] == "20260301-120000"
    assert request.start_time_unix_nano <= queue.start_time_unix_nano <= queue.end_time_unix_nano == model.start_time_unix_nano
    assert model.end_time_unix_nano <= request.end_time_unix_nano
    assert spans["GET other"].trace_id.hex() != trace
    (resource,) = {found.resource.SerializeToString() for found in collector.requests[0].resource_spans}
    assert b"pigeonhole" in resource


def test_a_caller_who_samples_nothing_gets_no_spans(start: Start, collector: Collector) -> None:
    with start(traces="otlp") as service:
        sent = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"}
        assert service.http.post("/predict", json={"text": "parcel"}, headers=sent).status_code == 200
    assert collector.spans() == []


def test_without_opentelemetry_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    there = builtins.__import__

    def absent(name: str, *rest: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ModuleNotFoundError(name)
        return there(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ConfigError, match="uv sync --group serve --group tracing"):
        Tracing()
