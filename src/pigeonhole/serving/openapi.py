"""What /openapi.json says beyond what FastAPI sees: the bodies of schemas.py, the limits, the refusals."""

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from pigeonhole.serving import schemas
from pigeonhole.serving.problem import MEDIA_TYPE


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may be refused with these."""
    meanings = {
        400: "Not JSON, or not HTTP as it should be",
        413: "The body is too large",
        415: "The body is not plain JSON",
        422: "JSON, but not a question; the detail names the field and the limit",
        503: "No answer now: too much is waiting, too late, or the prediction cannot be written down; try again later",
    }
    content = {MEDIA_TYPE: {"schema": _reference("ProblemDetails")}}
    return {status: {"description": meanings[status], "content": content} for status in statuses}


PREDICT_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"oneOf": [_reference(shape.__name__) for shape in schemas.REQUESTS.values()]},
                "examples": {
                    "one text": {"value": {"text": "Where is my parcel?"}},
                    "many texts": {"value": {"texts": ["Where is my parcel?", "I want my money back"], "top_k": 3}},
                    "Hugging Face": {"value": {"inputs": "Where is my parcel?", "parameters": {"top_k": 3}}},
                },
            }
        },
    },
}

_NESTED = {"type": "array", "items": {"type": "array", "items": _reference("LabelScore")}}

PREDICT_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "In the shape of the request; every prediction in it is in the prediction log",
        "content": {
            "application/json": {"schema": {"oneOf": [_reference("PredictReply"), _reference("PredictManyReply"), _NESTED]}}
        },
    },
    **problems(400, 413, 415, 422, 503),
}


def document(app: FastAPI) -> bytes:
    """The whole of it."""
    found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    found.setdefault("components", {}).setdefault("schemas", {}).update(schemas.components())
    return msgspec.json.encode(found)
