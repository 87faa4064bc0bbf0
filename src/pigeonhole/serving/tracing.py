"""OpenTelemetry: a span a request, and under it the time in the queue and in the model. Off unless PIGEONHOLE_TRACES=otlp.

Where spans go, how many of them and under which name is OpenTelemetry's own to say: OTEL_EXPORTER_OTLP_ENDPOINT,
OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME. An exporter that hangs or fails loses spans, never a request.
"""

import asyncio
import time
from collections.abc import Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING

from pigeonhole.errors import ConfigError
from pigeonhole.serving.journal import Traceparent

if TYPE_CHECKING:  # the packages come with the group tracing alone
    from opentelemetry.trace import Span

CLOSE_MS = 500  # of the seconds that are left after SIGTERM

span_of_request: "ContextVar[Span | None]" = ContextVar("span_of_request", default=None)


class Tracing:
    """Makes spans on any thread; sends them from a thread of its own."""

    def __init__(self) -> None:
        """Raises ConfigError where OpenTelemetry is not installed."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import SERVICE_NAME, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise ConfigError("PIGEONHOLE_TRACES=otlp needs OpenTelemetry: uv sync --group serve --group tracing") from error
        named = Resource.create()
        service = named.attributes.get(SERVICE_NAME, "")
        own_name = {SERVICE_NAME: "pigeonhole"} if str(service).startswith("unknown_service") else {}
        self._provider = TracerProvider(resource=named.merge(Resource(own_name)), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("pigeonhole.serving")

    def request(self, method: str, parent: Traceparent | None) -> "Span":
        """The span of a request, under its caller's; `end_request` ends it."""
        from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags, set_span_in_context

        context = None
        if parent is not None:
            ids = int(parent.trace_id, 16), int(parent.span_id, 16)
            caller = SpanContext(*ids, is_remote=True, trace_flags=TraceFlags(parent.flags))
            context = set_span_in_context(NonRecordingSpan(caller))
        attributes = {"http.request.method": method}
        return self._tracer.start_span(method, context, SpanKind.SERVER, attributes)

    def end_request(self, span: "Span", method: str, route: str, status: int) -> None:
        from opentelemetry.trace import StatusCode

        span.update_name(f"{method} {route}")
        span.set_attributes({"http.route": route, "http.response.status_code": status})
        if status >= 500:
            span.set_status(StatusCode.ERROR)
        span.end()

    def batch(self, waited: "Sequence[tuple[Span, float]]", began: float, ended: float, version: str) -> None:
        """One batch in the model, for each request in it: its span, and since when it waited. Times are time.perf_counter()."""
        from opentelemetry.trace import set_span_in_context

        offset_s = time.time() - time.perf_counter()
        for span, queued in waited:
            context = set_span_in_context(span)
            for name, start, end in (("queue", queued, began), ("model", began, ended)):
                attributes: dict[str, str | int] = {"pigeonhole.model_version": version, "pigeonhole.batch_requests": len(waited)}
                child = self._tracer.start_span(name, context, attributes=attributes, start_time=_ns(start + offset_s))
                child.end(_ns(end + offset_s))

    async def close(self) -> None:
        """Send what is left, but do not wait for long."""
        await asyncio.to_thread(self._provider.force_flush, CLOSE_MS)


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
