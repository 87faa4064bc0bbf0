"""The routes that only the page asks for: versions and their rows, comparison, the log over time. They read and move nothing."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, get_args

import msgspec
from fastapi import FastAPI, Request, Response

from pigeonhole.drift.asked import read_query
from pigeonhole.drift.held_out import Cell
from pigeonhole.drift.settings import Settings
from pigeonhole.drift.traffic import traffic
from pigeonhole.drift.versions import Versions

MOST_ROWS, MOST_HOURS, MOST_STEPS = 500, 8760, 240
Most = Annotated[int, msgspec.Meta(ge=1, le=MOST_ROWS)]
ROWS_ALLOWED = f"true_label, label, cell ({', '.join(get_args(Cell))}) and n (1 to {MOST_ROWS})"
COMPARE_ALLOWED = f"before, after, label and n (1 to {MOST_ROWS})"
TRAFFIC_ALLOWED = f"hours (to {MOST_HOURS}) and steps (1 to {MOST_STEPS})"


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
    hours: Annotated[float, msgspec.Meta(gt=0, le=MOST_HOURS)] = 24
    steps: Annotated[int, msgspec.Meta(ge=1, le=MOST_STEPS)] = 48


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
        asked = read_query(request.query_params.multi_items(), RowsQuery, ROWS_ALLOWED)
        return _json(versions.rows(version, asked.true_label, asked.label, asked.cell, asked.n))

    @app.get("/compare")
    def compared(request: Request) -> Response:
        asked = read_query(request.query_params.multi_items(), CompareQuery, COMPARE_ALLOWED)
        return _json(versions.compared(asked.before, asked.after, asked.label, asked.n))

    @app.get("/traffic")
    def over_time(request: Request) -> Response:
        asked = read_query(request.query_params.multi_items(), TrafficQuery, TRAFFIC_ALLOWED)
        end = datetime.now(UTC) + timedelta(seconds=1)
        return _json(traffic(settings.log, end - timedelta(hours=asked.hours), end, end, asked.steps, settings.audit_share))


def _json(body: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")
