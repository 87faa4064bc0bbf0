import json
from pathlib import Path
from typing import Any

import pytest
from tests.serving.conftest import Running

from pigeonhole.serving.edge import MAX_BODY_BYTES, MAX_TIMEOUT_MS
from pigeonhole.serving.schemas import MAX_BESIDE_STRINGS_BYTES, MAX_CHARS, MAX_STRINGS, MAX_TEXTS


@pytest.fixture
def document(running_once: Running) -> dict[str, Any]:
    found: dict[str, Any] = running_once.http.get("/openapi.json").json()
    return found


def references(value: object) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*map(references, value.values()))
    return set().union(*map(references, value)) if isinstance(value, list) else set()


def test_every_reference_leads_to_a_schema(document: dict[str, Any]) -> None:
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert references(document) <= known
    assert len(known) >= 8


def test_the_limits_stand_in_the_schemas(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assert schemas["PredictRequest"]["properties"]["text"]["maxLength"] == MAX_CHARS
    assert schemas["PredictManyRequest"]["properties"]["texts"]["maxItems"] == MAX_TEXTS
    assert schemas["PredictRequest"]["additionalProperties"] is False
    assert set(schemas["PredictReply"]["required"]) == set(schemas["PredictReply"]["properties"]) - {"labels"}


def test_what_a_header_may_say_and_the_limits_of_a_body_stand_there_too(document: dict[str, Any]) -> None:
    (timeout,) = document["paths"]["/explain"]["post"]["parameters"]
    assert (timeout["name"], timeout["schema"]["maximum"]) == ("X-Request-Timeout-Ms", MAX_TIMEOUT_MS)
    assert document["components"]["securitySchemes"]["header"]["name"] == "X-API-Key"
    for post in ("/predict", "/explain", "/feedback"):
        responses = document["paths"][post]["post"]["responses"]
        assert f"{MAX_BODY_BYTES} bytes" in responses["413"]["description"]
        assert f"{MAX_STRINGS} strings, and {MAX_BESIDE_STRINGS_BYTES} bytes" in responses["422"]["description"]


def test_the_examples_are_answered_in_the_shape_that_is_promised(document: dict[str, Any], running_once: Running) -> None:
    post = document["paths"]["/predict"]["post"]
    schemas = document["components"]["schemas"]
    replies = {}
    for name, example in post["requestBody"]["content"]["application/json"]["examples"].items():
        answer = running_once.http.post("/predict", json=example["value"])
        assert answer.status_code == 200
        replies[name] = answer.json()
    assert set(replies["one text"]) == set(schemas["PredictReply"]["properties"]) - {"labels"}  # of multi-label models
    assert set(replies["many texts"]) == set(schemas["PredictManyReply"]["properties"])
    assert set(replies["many texts"]["predictions"][0]) == set(schemas["Answer"]["properties"]) - {"labels"}
    assert set(replies["Hugging Face"][0][0]) == set(schemas["LabelScore"]["properties"])


def test_every_route_and_its_refusals_are_told(document: dict[str, Any]) -> None:
    assert set(document["paths"]) == {
        "/",
        "/predict",
        "/explain",
        "/feedback",
        "/health",
        "/ready",
        "/model",
        "/metrics",
        "/history",
    }
    assert set(document["paths"]["/predict"]["post"]["responses"]) == {
        "200",
        "400",
        "401",
        "403",
        "413",
        "415",
        "422",
        "429",
        "503",
    }


def test_the_document_is_the_one_that_was_agreed_on(document: dict[str, Any]) -> None:
    """Whoever changes the interface changes openapi.json beside this test too: callers script against it."""
    agreed = json.loads(Path(__file__).with_name("openapi.json").read_text())
    assert in_one_order({**document, "info": None}) == in_one_order({**agreed, "info": None})


def in_one_order(value: Any) -> Any:
    """Of alternatives none comes first; each version of msgspec has an order of its own."""
    if isinstance(value, dict):
        return {key: sorted(found, key=str) if key == "anyOf" else in_one_order(found) for key, found in value.items()}
    return [in_one_order(found) for found in value] if isinstance(value, list) else value
