"""The routes, each a few lines, and the edge around them."""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from pigeonhole.classifier import Classifier
from pigeonhole.errors import ConfigError, status_title
from pigeonhole.prediction_log import LogWriter
from pigeonhole.registry import Registry
from pigeonhole.serving import docs, openapi
from pigeonhole.serving.access import Access, caller_of
from pigeonhole.serving.canary import KEY_HEADER
from pigeonhole.serving.door import Door
from pigeonhole.serving.edge import MAX_BODY_BYTES, Accounts, Edge, check_content, deadline_asked, idempotency_key
from pigeonhole.serving.history import read_span
from pigeonhole.serving.keys import SCOPES
from pigeonhole.serving.poller import Poller
from pigeonhole.serving.problem import Problem
from pigeonhole.serving.protocol import Clocks
from pigeonhole.serving.quick import Quick
from pigeonhole.serving.replies import Reply
from pigeonhole.serving.rollout import Canary, Production, Rollout, Seat, Shadowed
from pigeonhole.serving.routing import Routes
from pigeonhole.serving.schemas import MAX_CHARS, MAX_TEXTS, read_explain, read_feedback, read_question
from pigeonhole.serving.service import Service
from pigeonhole.serving.settings import Settings
from pigeonhole.serving.stalls import StallWatch
from pigeonhole.serving.tracing import Tracing

if TYPE_CHECKING:
    from pigeonhole.serving.identity import Identity

PATHS = ("predict", "explain", "feedback", "model", "health", "ready", "metrics", "history", "docs", "openapi.json")
LINKS = {name: f"/{name}" for name in PATHS}


def create_app(
    settings: Settings,
    classifier: Classifier,
    log: LogWriter,
    feedback: LogWriter,
    followed: Registry | None = None,
    tell: Callable[[], None] = lambda: None,
) -> Starlette:
    """The service over a classifier that has passed its golden answers. The logs stay their maker's to close.

    `followed`: the registry whose production alias decides what answers from now on. `tell` is called, many times a second, while
    the event loop turns and the model's worker does not hang.
    """
    tracing = Tracing() if settings.traces == "otlp" else None
    service = Service(settings, classifier, log, feedback, tracing)
    accounts = Accounts(service.telemetry, tracing)

    def note(late_s: float) -> None:
        service.telemetry.stall(late_s)
        if service.batcher.alive:
            tell()

    stalls = StallWatch(note)
    identity = identity_of(settings)
    access = Access(settings.keys, share=settings.workers, identity=identity, private=settings.is_private)
    pollers = []
    if identity is not None:
        pollers.append(Poller("issuer", identity.look, settings.poll_s))
    if settings.keys:
        pollers.append(Poller("keys", access.look, settings.poll_s))
    if followed is not None:
        seats: list[Seat] = [Production(service), Shadowed(service), *([Canary(service)] if settings.canary_share else [])]
        for seat in seats:
            rollout = Rollout(followed, service, settings.threads, seat)
            pollers.append(Poller(f"rollout of {seat.alias}", rollout.look, settings.poll_s))

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[dict[str, object]]:
        service.start()
        stalls.start()
        for poller in pollers:
            poller.start()
        door = Door(lambda: service.is_full(stalls.late_s), service.telemetry.turned_away)
        yield {
            "door": door,
            "quick": Quick(service, settings, access, accounts, route="/predict"),
            "clocks": Clocks(),
            "is_crowded": lambda: service.batcher.is_crowded,
        }
        for poller in pollers:
            poller.stop()
        await service.stop()
        stalls.stop()
        if tracing is not None:
            await tracing.close()

    routes = Routes()
    _add_predict(routes, service, settings, access)
    _add_feedback(routes, service, access)
    _add_state(routes, service, access)
    _add_pages(routes, f"Pigeonhole: {classifier.manifest.name}")
    everything = [*routes.runnable(), *routes.runnable("/v1"), *_vertex(routes, settings).runnable()]
    app = Starlette(
        routes=everything,
        lifespan=lifespan,
        middleware=[Middleware(Edge, accounts=accounts)],
        exception_handlers={HTTPException: _refuse},
    )
    app.router.redirect_slashes = False  # the target would be made of the caller's own host header
    return app


def identity_of(settings: Settings) -> "Identity | None":
    """Raises ConfigError."""
    if settings.oidc_issuer is None:
        return None
    try:
        from pigeonhole.serving.identity import Identity  # cryptography is loaded only where it is needed
    except ImportError as error:
        raise ConfigError("PIGEONHOLE_OIDC_ISSUER needs PyJWT: uv sync --group service --group identity") from error
    scopes = tuple(scope for scope in SCOPES if scope in settings.oidc_scopes.split(","))
    return Identity(settings.oidc_issuer, settings.oidc_audience, settings.oidc_allowed, scopes, settings.oidc_rate)


def _add_predict(routes: Routes, service: Service, settings: Settings, access: Access) -> None:
    needed = [access.needs("predict")]

    def deadline_s(request: Request) -> float:
        return min(settings.deadline_s, deadline_asked(request.headers))

    @routes.post("/predict", dependencies=needed, responses=openapi.PREDICT_RESPONSES, openapi_extra=openapi.PREDICT_BODY)
    async def predict(request: Request) -> Response:
        """One text, many texts, Hugging Face's `inputs` or Vertex AI's `instances`."""
        check_content(request.headers)
        until = time.monotonic() + deadline_s(request)
        key = idempotency_key(request.headers)
        canary_key = request.headers.get(KEY_HEADER, "")
        body = await request.body()
        question = read_question(body)

        async def answer() -> Reply:
            dropped = service.dropped()
            found = await service.answer(
                question, request.state.request_id, request.state.began, until - time.monotonic(), canary_key
            )
            return Reply(found, service.kept_since(dropped, settings.sample))

        if key is None:
            reply = await answer()
        else:
            whose = f"predict {caller_of(request.headers)} {key}"
            reply = await service.replies.once(whose, hashlib.sha256(body).digest(), answer, until)
        return _logged(reply)

    routes.alias("/predict/batch", routes.at("/predict"))

    @routes.post("/explain", dependencies=needed, responses=openapi.EXPLAIN_RESPONSES, openapi_extra=openapi.EXPLAIN_BODY)
    async def explain(request: Request) -> Response:
        """What each word does to the probability of a label; the first words only, and never logged."""
        check_content(request.headers)
        question = read_explain(await request.body())
        return _json(await service.explain(question, request.state.request_id, deadline_s(request)))


def _add_feedback(routes: Routes, service: Service, access: Access) -> None:
    needed = [access.needs("feedback")]

    @routes.post("/feedback", dependencies=needed, responses=openapi.FEEDBACK_RESPONSES, openapi_extra=openapi.FEEDBACK_BODY)
    async def feedback(request: Request) -> Response:
        """The true label of a prediction; it is in the log before the answer, and the same one twice is one."""
        check_content(request.headers)
        dropped = service.dropped()
        reply = await service.feedback.take(read_feedback(await request.body()))
        return _logged(Reply(reply, service.kept_since(dropped)))


def _vertex(routes: Routes, settings: Settings) -> Routes:
    """The paths that Vertex AI chooses, for the routes that it means."""
    chosen = Routes()
    for path, entry in ((settings.predict_route, routes.at("/predict")), (settings.health_route, routes.at("/ready"))):
        if path:
            chosen.alias(path, entry)
    return chosen


def _add_state(routes: Routes, service: Service, access: Access) -> None:
    @routes.get("/health", responses=openapi.problems(503))
    async def health(_: Request) -> Response:
        """Whether the process is of any use; where it is not, restart it."""
        if not service.batcher.alive:
            raise Problem(503, "not_alive", "the worker that answers is gone")
        return _json(b'{"status":"ok"}')

    @routes.get("/ready", responses=openapi.problems(503))
    async def ready(_: Request) -> Response:
        """Whether requests should come here. The golden answers of the bundle came out before the port was opened."""
        if not service.ready:
            raise Problem(503, "not_ready", "the service does not take questions now")
        manifest = service.classifier.manifest
        return _json(msgspec.json.encode({"status": "ready", "model": manifest.name, "model_version": manifest.version}))

    @routes.get("/model", dependencies=[access.needs("predict")], responses=openapi.problems(401, 403, 429))
    async def model(_: Request) -> Response:
        """What answers here, how well it did on its test split, and the limits of a question."""
        classifier = service.classifier
        manifest = classifier.manifest
        about = {
            "model": manifest.name,
            "model_version": manifest.version,
            "created_at": manifest.created_at,
            "task": manifest.task,
            "labels": manifest.labels,
            "precision": classifier.precision,
            "max_length": manifest.max_length,
            "windowing": manifest.windowing,
            "temperature": manifest.temperature,
            "thresholds": manifest.thresholds,
            "threshold_target": manifest.threshold_target,
            "out_of_scope": manifest.out_of_scope,
            "accept_score": manifest.accept_score,
            "metrics": manifest.metrics,
            "candidate": _canary(service),
            "shadow": service.shadow.report(),
            "limits": {"characters": MAX_CHARS, "texts": MAX_TEXTS, "body_bytes": MAX_BODY_BYTES},
        }
        return _json(msgspec.json.encode(about))

    @routes.get(
        "/metrics", dependencies=[access.needs("metrics")], response_class=Response, responses=openapi.problems(401, 403, 429)
    )
    async def metrics(_: Request) -> Response:
        """For Prometheus."""
        return Response(service.telemetry.exposition(), media_type=CONTENT_TYPE_LATEST)

    @routes.get(
        "/history",
        dependencies=[access.needs("metrics")],
        responses=openapi.HISTORY_RESPONSES,
        openapi_extra=openapi.HISTORY_QUERY,
    )
    async def history(request: Request) -> Response:
        """What became of the questions (POST) over time: by minute, for a week, since the service was started."""
        return _json(msgspec.json.encode(service.telemetry.history.told(read_span(request.query_params.multi_items()))))


def _add_pages(routes: Routes, title: str) -> None:
    @routes.get("/")
    async def links(_: Request) -> Response:
        """What there is."""
        return _json(msgspec.json.encode(LINKS))

    @routes.get("/openapi.json", include_in_schema=False)
    async def document(_: Request) -> Response:
        return _json(await asyncio.to_thread(openapi.document, title, routes))

    @routes.get("/docs", include_in_schema=False)
    async def page(_: Request) -> Response:
        return docs.page()


def _canary(service: Service) -> dict[str, object] | None:
    canary = service.canary
    return {"model_version": canary.manifest.version, "share": service.canary_share} if canary else None


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")


def _logged(reply: Reply) -> Response:
    """The answer names how safe its records are: what they survive, as PIGEONHOLE_DURABILITY says."""
    return Response(reply.body, media_type="application/json", headers={"x-log-durability": reply.level})


async def _refuse(_: Request, error: Exception) -> Response:
    """Starlette's own refusals (404, 405), handed to the edge like all others."""
    assert isinstance(error, HTTPException)  # registered for nothing else
    headers = dict(error.headers or {})
    code = status_title(error.status_code).lower().replace(" ", "_")
    methods = headers.get("Allow")
    detail = f"allowed here is {methods}" if methods else f"there is: {', '.join(LINKS.values())}"
    raise Problem(error.status_code, code, detail, headers)
