"""The routes as they are written down in app.py: Starlette runs them, FastAPI describes them for /openapi.json when it is asked.

FastAPI's own way from a route to its function takes longer than all that we do for a request, and its import a third of a start.
"""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

Endpoint = Callable[[Request], Awaitable[Response]]
Check = Callable[[Request], Awaitable[None]]


@dataclass(frozen=True)
class Entry:
    """`responses` and `extra` are FastAPI's words for /openapi.json; `checks` come before the body is read.

    `name` is the first path, by which telemetry calls its aliases too.
    """

    method: str
    path: str
    name: str
    endpoint: Endpoint
    checks: tuple[Check, ...]
    responses: Mapping[int | str, dict[str, Any]]
    extra: Mapping[str, Any]
    response_class: type[Response] | None
    described: bool

    async def answer(self, request: Request) -> Response:
        for check in self.checks:
            await check(request)
        return await self.endpoint(request)


class Routes:
    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def get(self, path: str, **about: Any) -> Callable[[Endpoint], Endpoint]:
        return self._add("GET", path, **about)

    def post(self, path: str, **about: Any) -> Callable[[Endpoint], Endpoint]:
        return self._add("POST", path, **about)

    def at(self, path: str) -> Entry:
        return next(entry for entry in self.entries if entry.path == path)

    def alias(self, path: str, entry: Entry) -> None:
        """One more path, which is not described."""
        self.entries.append(replace(entry, path=path, described=False))

    def runnable(self, prefix: str = "") -> list[Route]:
        return [_runnable(prefix + entry.path, entry) for entry in self.entries]

    def _add(
        self,
        method: str,
        path: str,
        *,
        dependencies: Sequence[Check] = (),
        responses: Mapping[int | str, dict[str, Any]] | None = None,
        openapi_extra: Mapping[str, Any] | None = None,
        response_class: type[Response] | None = None,
        include_in_schema: bool = True,
    ) -> Callable[[Endpoint], Endpoint]:
        def add(endpoint: Endpoint) -> Endpoint:
            about = (tuple(dependencies), responses or {}, openapi_extra or {}, response_class, include_in_schema)
            self.entries.append(Entry(method, path, path, endpoint, *about))
            return endpoint

        return add


def _runnable(path: str, entry: Entry) -> Route:
    async def endpoint(request: Request) -> Response:
        request.scope["route"] = entry  # telemetry names it, by one path for all its aliases
        return await entry.answer(request)

    route = Route(path, endpoint, methods=[entry.method], name=entry.name)  # of a 405 it is Starlette's route that is known
    route.path_regex = re.compile(re.escape(path) + r"\Z")  # Starlette's own ends with $: /metrics%0a would be /metrics
    return route
