"""Bodies in and out. The types below are what is checked, and what /openapi.json and /docs say.

Bodies are parsed here and not by FastAPI: stricter than RFC 8259 asks for (no NaN, no doubled keys, no lone surrogates), and a
refusal never repeats what was sent.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from pigeonhole.classifier import Prediction
from pigeonhole.prediction_log import Decision
from pigeonhole.serving.problem import Problem, ProblemDetails

MAX_CHARS = 8192
MAX_TEXTS = 256

Text = Annotated[str, Meta(min_length=1, max_length=MAX_CHARS, description="Not blank.", examples=["Where is my parcel?"])]
Texts = Annotated[list[Text], Meta(min_length=1, max_length=MAX_TEXTS)]
TopK = Annotated[int, Meta(ge=1, description="How many of the likeliest labels to tell; all if it is left out.")]


class PredictRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """One text."""

    text: Text
    top_k: TopK | None = None


class PredictManyRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Many texts."""

    texts: Texts
    top_k: TopK | None = None


class HuggingFaceParameters(Struct, frozen=True, forbid_unknown_fields=True):
    top_k: TopK | None = None


class HuggingFaceRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """One text or many, as Hugging Face's InferenceClient posts them."""

    inputs: Text | Texts
    parameters: HuggingFaceParameters | None = None


class Answer(Struct, frozen=True, kw_only=True):
    """The answer to one text; probabilities begin with the likeliest label."""

    label: str
    score: float
    probabilities: dict[str, float]
    prediction_id: str
    decision: Decision
    truncated: bool
    n_tokens: int


class PredictReply(Answer, frozen=True, kw_only=True):
    model: str
    model_version: str
    request_id: str


class PredictManyReply(Struct, frozen=True, kw_only=True):
    predictions: list[Answer]
    model: str
    model_version: str
    request_id: str


class LabelScore(Struct, frozen=True):
    """One row of Hugging Face's nested reply, `[[{label, score}, …], …]`: a list of labels for each text."""

    label: str
    score: float


REQUESTS: dict[str, type[PredictRequest | PredictManyRequest | HuggingFaceRequest]] = {
    "text": PredictRequest,
    "texts": PredictManyRequest,
    "inputs": HuggingFaceRequest,
}
"""The field that tells the shapes apart."""


@dataclass(frozen=True)
class Question:
    """A request, whatever its shape was."""

    texts: list[str]
    top_k: int | None
    shape: Literal["one", "many", "hugging_face"]


def read_question(body: bytes) -> Question:
    """Raises Problem: 400 for what is not JSON, 422 for JSON that is not a question."""
    request = _convert(_parse(body))
    match request:
        case PredictRequest(text, top_k):
            return Question(_checked(text, "text"), top_k, "one")
        case PredictManyRequest(texts, top_k):
            return Question(_checked(texts, "texts"), top_k, "many")
        case HuggingFaceRequest(inputs, parameters):
            return Question(_checked(inputs, "inputs"), parameters.top_k if parameters else None, "hugging_face")


def _parse(body: bytes) -> object:
    try:
        return json.loads(body.decode(), object_pairs_hook=_no_doubles, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise Problem(400, "not_utf8", "the body has to be JSON in UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise Problem(400, "not_json", "the body has to be one JSON object: no doubled key, no NaN, no deep nesting") from error


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A key that stands twice has no one meaning: a filter in front of us may have read the other one."""
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("doubled key")
    return members


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _convert(value: object) -> PredictRequest | PredictManyRequest | HuggingFaceRequest:
    found = [field for field in REQUESTS if field in value] if isinstance(value, dict) else []
    if len(found) != 1:
        raise Problem(422, "invalid_request", "exactly one of the fields text, texts, inputs is needed, in a JSON object")
    shape = REQUESTS[found[0]]
    try:
        return msgspec.convert(value, shape)
    except UnicodeEncodeError as error:
        raise _lone_surrogate("a field name") from error
    except msgspec.ValidationError as error:
        detail = str(error)
        if "unknown field" in detail:  # the one message that repeats what was sent
            detail = f"unknown field; allowed beside {found[0]} is {'parameters.top_k' if found[0] == 'inputs' else 'top_k'}"
        raise Problem(422, "invalid_request", detail.replace("$.", "")) from error


def _checked(texts: str | list[str], field: str) -> list[str]:
    if isinstance(texts, str):
        return [_checked_text(texts, field)]
    return [_checked_text(text, f"{field}[{number}]") for number, text in enumerate(texts)]


def _checked_text(text: str, place: str) -> str:
    if not text.strip():
        raise Problem(422, "blank_text", f"{place} is blank")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _lone_surrogate(place) from error
    return text


def _lone_surrogate(place: str) -> Problem:
    return Problem(422, "lone_surrogate", f"{place} has half a surrogate pair, which is no character")


def answer(prediction: Prediction, labels: Sequence[str], prediction_id: str, top_k: int | None) -> Answer:
    probabilities = prediction.probabilities.tolist()
    ranked = sorted(range(len(labels)), key=lambda label_id: -probabilities[label_id])[:top_k]
    return Answer(
        label=prediction.label,
        score=prediction.score,
        probabilities={labels[label_id]: probabilities[label_id] for label_id in ranked},
        prediction_id=prediction_id,
        decision=prediction.decision,
        truncated=prediction.truncated,
        n_tokens=prediction.n_tokens,
    )


def reply(question: Question, answers: list[Answer], model: str, version: str, request_id: str) -> bytes:
    """The body of a 200, in the shape that was asked in."""
    if question.shape == "hugging_face":
        return msgspec.json.encode([[LabelScore(*pair) for pair in found.probabilities.items()] for found in answers])
    if question.shape == "many":
        many = PredictManyReply(predictions=answers, model=model, model_version=version, request_id=request_id)
        return msgspec.json.encode(many)
    one = msgspec.structs.asdict(answers[0])
    return msgspec.json.encode(PredictReply(**one, model=model, model_version=version, request_id=request_id))


def components() -> Mapping[str, Any]:
    """The JSON schemas of all bodies, for OpenAPI."""
    types = [*REQUESTS.values(), PredictReply, PredictManyReply, LabelScore, ProblemDetails]
    return msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")[1]
