"""What /openapi.json says beyond what FastAPI sees: the bodies of schemas.py, the limits, the refusals."""

from typing import Any, get_args

import msgspec

from pigeonhole.prediction_log import Durability
from pigeonhole.serving import explain, history, schemas
from pigeonhole.serving.batcher import BATCH_TEXTS, NEXT_S
from pigeonhole.serving.edge import MAX_BODY_BYTES, MAX_TIMEOUT_MS
from pigeonhole.serving.problem import MEDIA_TYPE
from pigeonhole.serving.replies import KEEP_S
from pigeonhole.serving.routing import Routes

DESCRIPTION = "Sorts texts into labels, and writes every prediction down before it gives it out."


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may be refused with these."""
    meanings = {
        400: "Not JSON, or not HTTP as it should be",
        401: "No API key that holds, where the service is not open",
        403: "The key has not the scope; or the service is open to this machine alone, and the host is a name of the internet",
        413: f"The body has more than {MAX_BODY_BYTES} bytes",
        415: "The body is not plain JSON",
        422: "JSON, but not a question; the detail names the field and the limit. A body has at most "
        f"{schemas.MAX_STRINGS} strings, and {schemas.MAX_BESIDE_STRINGS_BYTES} bytes beside them",
        429: "Above the rate of the key; Retry-After says when",
        503: "No answer now: too much is waiting, too late, or the prediction cannot be written down; try again later",
    }
    content = {MEDIA_TYPE: {"schema": _reference("ProblemDetails")}}
    return {status: {"description": meanings[status], "content": content} for status in statuses}


def _body(shape: str, example: dict[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": _reference(shape), "example": example}}
    return {"requestBody": {"required": True, "content": content}}


def _responses(shape: str, description: str) -> dict[int | str, dict[str, Any]]:
    content = {"application/json": {"schema": _reference(shape)}}
    return {200: {"description": description, "content": content}, **problems(400, 401, 403, 413, 415, 422, 429, 503)}


LEVEL = {
    "X-Log-Durability": {
        "description": "What the records of this answer survive: the end of the process, of the host, of its disk, or nothing; "
        "`; sample=` where a share of them is written down",
        "schema": {"type": "string", "pattern": f"^({'|'.join(get_args(Durability))})(; sample=[0-9.e-]+)?$"},
    }
}

EXPLAIN_RESPONSES = _responses("ExplainReply", f"The first {explain.MAX_WORDS} words, within {explain.MAX_S:g} s")
FEEDBACK_BODY = _body(
    "FeedbackRequest", {"prediction_id": "019ca92d-8a00-7000-8000-000000000001", "label": "delivery", "source": "agent"}
)
FEEDBACK_RESPONSES = _responses("FeedbackReply", "It is in the prediction log")
FEEDBACK_RESPONSES[200]["headers"] = LEVEL

_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": f"The same key and body within {KEEP_S / 60:g} minutes get the same reply; another body is refused with 422.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
}
_CANARY_KEY = {
    "name": "X-Canary-Key",
    "in": "header",
    "required": False,
    "description": "Whose question it is (a user, a session): the same key meets the same version while a candidate is tried.",
    "schema": {"type": "string"},
}
_TIMEOUT = {
    "name": "X-Request-Timeout-Ms",
    "in": "header",
    "required": False,
    "description": "When the caller gives up: 503 then, and what still waits is not computed. "
    f"A question that finds none waiting is the next one, and has {NEXT_S * 1000:g} ms for every {BATCH_TEXTS} texts at least.",
    "schema": {"type": "integer", "minimum": 1, "maximum": MAX_TIMEOUT_MS},
}

EXPLAIN_BODY = {"parameters": [_TIMEOUT], **_body("ExplainRequest", {"text": "Where is my parcel?"})}

PREDICT_BODY: dict[str, Any] = {
    "parameters": [_IDEMPOTENCY_KEY, _CANARY_KEY, _TIMEOUT],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"oneOf": [_reference(shape.__name__) for shape in schemas.REQUESTS.values()]},
                "examples": {
                    "one text": {"value": {"text": "Where is my parcel?"}},
                    "many texts": {"value": {"texts": ["Where is my parcel?", "I want my money back"], "top_k": 3}},
                    "Hugging Face": {"value": {"inputs": "Where is my parcel?", "parameters": {"top_k": 3}}},
                    "Vertex AI": {"value": {"instances": [{"text": "Where is my parcel?"}], "parameters": {"top_k": 3}}},
                },
            }
        },
    },
}

HISTORY_QUERY = {
    "parameters": [
        {
            "name": "hours",
            "in": "query",
            "required": False,
            "description": "Until now.",
            "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": history.MOST_HOURS, "default": history.Span().hours},
        },
        {
            "name": "steps",
            "in": "query",
            "required": False,
            "description": "In how many equal parts.",
            "schema": {"type": "integer", "minimum": 1, "maximum": history.MOST_STEPS, "default": history.Span().steps},
        },
    ]
}
HISTORY_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Every step, the empty ones too",
        "content": {"application/json": {"schema": _reference("HistoryReply")}},
    },
    **problems(401, 403, 422, 429),
}

_NESTED = {"type": "array", "items": {"type": "array", "items": _reference("LabelScore")}}

PREDICT_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "In the shape of the request; every prediction in it is in the prediction log",
        "headers": LEVEL,
        "content": {
            "application/json": {"schema": {"oneOf": [_reference("PredictReply"), _reference("PredictManyReply"), _NESTED]}}
        },
    },
    **problems(400, 401, 403, 413, 415, 422, 429, 503),
}


def document(title: str, routes: Routes) -> bytes:
    """The whole of it."""
    # Half a second and 15 MB that only who asks for this has to wait for.
    import importlib.metadata

    from fastapi.openapi.utils import get_openapi
    from fastapi.responses import JSONResponse
    from fastapi.routing import APIRoute

    described = [
        APIRoute(
            entry.path,
            entry.endpoint,
            methods=[entry.method],
            responses=dict(entry.responses),
            openapi_extra=dict(entry.extra),
            response_class=entry.response_class or JSONResponse,
        )
        for entry in routes.entries
        if entry.described
    ]
    found = get_openapi(title=title, version=importlib.metadata.version("pigeonhole"), description=DESCRIPTION, routes=described)
    found.setdefault("components", {}).setdefault("schemas", {}).update(schemas.components())
    found["components"]["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "An API key, or an ID token."},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "An API key."},
    }
    found["security"] = [{}, {"key": []}, {"header": []}]
    return msgspec.json.encode(found)
