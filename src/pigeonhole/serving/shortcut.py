"""The short way to `POST /predict`: past FastAPI's routing, which takes longer than all that we do for a request.

The same function answers, after the same dependencies; only the way to it differs, and only for the exact path and method.
"""

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send

PATHS = ("/predict", "/v1/predict")


class Shortcut:
    """ASGI middleware, inside the edge."""

    def __init__(self, app: ASGIApp, routes: APIRouter) -> None:
        self._app = app
        route = next(route for route in routes.routes if isinstance(route, APIRoute) and route.path == "/predict")
        self._endpoint: Callable[[Request], Awaitable[Response]] = route.endpoint
        self._checks: list[Callable[[Request], Awaitable[None]]] = [
            depends.dependency for depends in route.dependencies if depends.dependency is not None
        ]
        self._routes = {path: _Named(path) for path in PATHS}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._routes.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route  # telemetry names it, as it does FastAPI's
        request = Request(scope, receive)
        for check in self._checks:
            await check(request)
        response = await self._endpoint(request)
        await response(scope, receive, send)


class _Named:
    def __init__(self, path: str) -> None:
        self.path = path
