"""The routes that only the page asks for: versions and their rows, comparison, the log over time. They read and move nothing."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, TypeVar

import msgspec
from fastapi import FastAPI, Request, Response

from pigeonhole.drift.held_out import Cell
from pigeonhole.drift.settings import Settings
from pigeonhole.drift.traffic import traffic
from pigeonhole.drift.versions import Versions
from pigeonhole.errors import ConfigError

Most = Annotated[int, msgspec.Meta(ge=1, le=500)]


class RowsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A cell, a row or a column of the confusion matrix, or one of the four cells of one label; neither: all wrong rows."""

    true_label: str | None = None
    label: str | None = None
    cell: Cell | None = None
    n: Most = 50


class CompareQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`label`: the flips of this label alone."""

    before: str
    after: str
    label: str | None = None
    n: Most = 100


class TrafficQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    hours: Annotated[float, msgspec.Meta(gt=0, le=8760)] = 24
    steps: Annotated[int, msgspec.Meta(ge=1, le=240)] = 48


Query = TypeVar("Query")


def add_pages(app: FastAPI, settings: Settings) -> None:
    versions = Versions(settings)

    @app.get("/versions")
    def listed() -> Response:
        return _json(versions.listed())

    @app.get("/versions/{version}")
    def about(version: str) -> Response:
        return _json(versions.about(version))

    @app.get("/versions/{version}/rows")
    def rows(version: str, request: Request) -> Response:
        asked = _read(request.query_params, RowsQuery)
        return _json(versions.rows(version, asked.true_label, asked.label, asked.cell, asked.n))

    @app.get("/compare")
    def compared(request: Request) -> Response:
        asked = _read(request.query_params, CompareQuery)
        return _json(versions.compared(asked.before, asked.after, asked.label, asked.n))

    @app.get("/traffic")
    def over_time(request: Request) -> Response:
        asked = _read(request.query_params, TrafficQuery)
        end = datetime.now(UTC) + timedelta(seconds=1)
        return _json(traffic(settings.log, end - timedelta(hours=asked.hours), end, end, asked.steps))


def _read(query: Mapping[str, str], shape: type[Query]) -> Query:
    try:
        return msgspec.convert(dict(query), shape, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"the query: {error}; allowed are {_allowed(shape)}") from error


def _allowed(shape: type[Any]) -> str:
    return ", ".join(field.name for field in msgspec.structs.fields(shape))


def _json(body: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")
