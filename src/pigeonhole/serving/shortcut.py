"""The short way to `POST /predict`: past the routing, for the exact path and method, to the same function and checks."""

from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from pigeonhole.serving.routing import Entry

PATHS = ("/predict", "/v1/predict")


class Shortcut:
    """ASGI middleware, inside the edge."""

    def __init__(self, app: ASGIApp, predict: Entry) -> None:
        self._app = app
        self._predict = predict
        self._routes = {path: Route(path, predict.answer, methods=["POST"]) for path in PATHS}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._routes.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route  # telemetry names it
        response = await self._predict.answer(Request(scope, receive))
        await response(scope, receive, send)
