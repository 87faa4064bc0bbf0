"""Bodies in and out. The types below are what is checked, and what /openapi.json and /docs say.

Bodies are parsed here and not by FastAPI: stricter than RFC 8259 asks for (no NaN, no doubled keys, no lone surrogates), and a
refusal never repeats what was sent.
"""

import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from inspect import cleandoc
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from pigeonhole.bundle import Manifest
from pigeonhole.classifier import Prediction
from pigeonhole.prediction_log import Decision
from pigeonhole.serving.problem import Problem, ProblemDetails, TextError

MAX_CHARS = 8192
MAX_TEXTS = 256
MAX_ERRORS_TOLD = 16  # a refusal has at most 4 KB
# A megabyte of `{"":0},` keeps the event loop busy for 0.1 s before it can be refused; no question comes near these two.
MAX_STRINGS = 4096
MAX_BESIDE_STRINGS_BYTES = 64 << 10
# Of the fields with a pattern, which is no way to tell people.
FORMS = {"prediction_id": "the `prediction_id` of an answer", "source": "1 to 64 letters, digits, '.', '_' and '-'"}

Text = Annotated[str, Meta(min_length=1, max_length=MAX_CHARS, description="Not blank.", examples=["Where is my parcel?"])]
Texts = Annotated[list[Text], Meta(min_length=1, max_length=MAX_TEXTS)]
Label = Annotated[str, Meta(min_length=1, max_length=256, examples=["delivery"])]
TopK = Annotated[int, Meta(ge=1, description="How many of the likeliest labels to tell; all if it is left out.")]


class PredictRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """One text."""

    text: Text
    top_k: TopK | None = None


class PredictManyRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Many texts. `partial`: a text that cannot be read is told of beside the answers, instead of refusing them all."""

    texts: Texts
    top_k: TopK | None = None
    partial: bool = False


class HuggingFaceParameters(Struct, frozen=True, forbid_unknown_fields=True):
    top_k: TopK | None = None


class HuggingFaceRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """One text or many, as Hugging Face's InferenceClient posts them."""

    inputs: Text | Texts
    parameters: HuggingFaceParameters | None = None


class Instance(Struct, frozen=True, forbid_unknown_fields=True):
    text: Text


class VertexRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Many texts, as Vertex AI posts them."""

    instances: Annotated[list[Text | Instance], Meta(min_length=1, max_length=MAX_TEXTS)]
    parameters: HuggingFaceParameters | None = None


class ExplainRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """One text, and the label to explain: the likeliest if it is left out."""

    text: Text
    label: str | None = None


class FeedbackRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The true label of a prediction, or its true labels, and who says so (no person's name: a role, or a system)."""

    # Python's $ would let a line break follow.
    prediction_id: Annotated[str, Meta(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$(?!\n)")]
    label: Label | UnsetType = UNSET
    source: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}$(?!\n)", examples=["agent"])]
    labels: Annotated[list[Label], Meta(max_length=1000)] | UnsetType = UNSET

    @property
    def given(self) -> tuple[str, ...]:
        """What is said to be right, sorted: one label, or any number of them."""
        return tuple(sorted(self.labels)) if self.labels is not UNSET else (str(self.label),)


class Answer(Struct, frozen=True, kw_only=True):
    """The answer to one text; probabilities begin with the likeliest label, which is `label`.

    A multi-label model says in `labels` which ones the text is given, any number of them; `score` is then the probability that
    these are right, all of them and no other.
    """

    label: str
    labels: list[str] | UnsetType = UNSET
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
    """A prediction a text, in their order; null in the place of one that `errors` tells of."""

    predictions: list[Answer | None]
    errors: list[TextError]
    model: str
    model_version: str
    request_id: str


class WordWeight(Struct, frozen=True):
    """A word, its place in the text in characters, and how much less probable the label is without it."""

    word: str
    start: int
    end: int
    weight: float


class ExplainReply(Struct, frozen=True, kw_only=True):
    """Words in the order of the text; `words_left` more were not looked at. An explanation is not in the prediction log."""

    label: str
    score: float
    words: list[WordWeight]
    words_left: int
    model: str
    model_version: str
    request_id: str


class FeedbackReply(Struct, frozen=True, kw_only=True):
    """The same feedback has the same id."""

    feedback_id: str
    prediction_id: str
    label: str | UnsetType = UNSET
    source: str
    labels: list[str] | UnsetType = UNSET


class HistoryStep(Struct, frozen=True):
    """Questions (POST) of one step: answered, refused (400 to 499), turned away as too much was waiting, failed (other 500s)."""

    at: datetime
    answered: int
    refused: int
    turned_away: int
    failed: int


class HistoryReply(Struct, frozen=True):
    """Nothing is known of the time before `since`, when the service was started, and of a minute that is over a week ago."""

    start: datetime
    end: datetime
    since: datetime
    steps: list[HistoryStep]


class LabelScore(Struct, frozen=True):
    """One row of Hugging Face's nested reply, `[[{label, score}, …], …]`: a list of labels for each text."""

    label: str
    score: float


class _LooseTexts(PredictManyRequest, frozen=True, forbid_unknown_fields=True):
    """As PredictManyRequest; its texts are looked at one by one."""

    texts: Annotated[list[str], Meta(min_length=1, max_length=MAX_TEXTS)]


PredictShape = PredictRequest | PredictManyRequest | HuggingFaceRequest | VertexRequest
Shape = TypeVar("Shape")

REQUESTS: dict[str, type[PredictShape]] = {
    "text": PredictRequest,
    "texts": PredictManyRequest,
    "inputs": HuggingFaceRequest,
    "instances": VertexRequest,
}
"""The field that tells the shapes apart."""

ALLOWED = {
    "text": "allowed beside text is top_k",
    "texts": "allowed beside texts is top_k and partial",
    "inputs": "allowed beside inputs is parameters.top_k",
    "instances": "allowed beside instances is parameters.top_k",
}

MISPLACED: dict[tuple[str, type], str] = {
    ("text", list): "text is one text; several go into texts",
    ("texts", str): "texts is a list of texts; a single one goes into text",
}


class Question(Struct, frozen=True):
    """A request, whatever its shape was."""

    texts: list[str]
    top_k: int | None
    shape: Literal["one", "many", "hugging_face"]
    errors: tuple[TextError, ...] = ()  # of the texts that are left out


def read_question(body: bytes) -> Question:
    """Raises Problem: 400 for what is not JSON, 422 for JSON that is not a question."""
    request = _convert_question(_parse(body))
    match request:
        case PredictRequest(text, top_k):
            return Question(_checked(text, "text"), top_k, "one")
        case PredictManyRequest(texts, top_k, partial):
            errors = tuple(_errors(texts, "texts"))
            if errors and (len(errors) == len(texts) or not partial):
                raise Problem(422, errors[0].code, errors[0].detail, errors=errors[:MAX_ERRORS_TOLD])
            wrong = {error.index for error in errors}
            good = [text for index, text in enumerate(texts) if index not in wrong]
            return Question(good, top_k, "many", errors)
        case HuggingFaceRequest(inputs, parameters):
            return Question(_checked(inputs, "inputs"), parameters.top_k if parameters else None, "hugging_face")
        case VertexRequest(instances, parameters):
            texts = [instance if isinstance(instance, str) else instance.text for instance in instances]
            return Question(_checked(texts, "instances"), parameters.top_k if parameters else None, "many")


def read_explain(body: bytes) -> ExplainRequest:
    """Raises Problem like read_question."""
    request = _convert(_parse(body), ExplainRequest, "allowed beside text is label")
    _checked_text(request.text, "text")
    return request


def read_feedback(body: bytes) -> FeedbackRequest:
    """Raises Problem like read_question."""
    given = _convert(_parse(body), FeedbackRequest, "allowed are prediction_id, label or labels, source")
    if (given.label is UNSET) == (given.labels is UNSET):
        raise Problem(422, "invalid_request", "exactly one of the fields label, labels is needed beside prediction_id and source")
    if len(set(given.given)) < len(given.given):
        raise Problem(422, "invalid_request", "labels names a label twice")
    return given


def _parse(body: bytes) -> object:
    if len(body) > MAX_BESIDE_STRINGS_BYTES:
        _check_weight(body)
    try:
        return _JSON.decode(body.decode())
    except UnicodeDecodeError as error:
        raise Problem(400, "not_utf8", "the body has to be JSON in UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise Problem(400, "not_json", "the body has to be one JSON object: no doubled key, no NaN, no deep nesting") from error


def _check_weight(body: bytes) -> None:
    # What is left of the quotes begins and ends strings; spaces cost nothing.
    plain = body.replace(rb"\\", b"").replace(rb"\"", b"").translate(None, b" \t\r\n")
    if plain.count(b'"') > 2 * MAX_STRINGS or sum(map(len, plain.split(b'"')[::2])) > MAX_BESIDE_STRINGS_BYTES:
        limit = f"a body has at most {MAX_STRINGS} strings, and {MAX_BESIDE_STRINGS_BYTES} bytes beside them"
        raise Problem(422, "too_many_values", limit)


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A key that stands twice has no one meaning: a filter in front of us may have read the other one."""
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("doubled key")
    return members


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


# One for all: making it takes as long as using it.
_JSON = json.JSONDecoder(object_pairs_hook=_no_doubles, parse_constant=_no_constant)


def _convert_question(value: object) -> PredictShape:
    if not (isinstance(value, dict) and len(found := [field for field in REQUESTS if field in value]) == 1):
        raise Problem(422, "invalid_request", f"exactly one of the fields {', '.join(REQUESTS)} is needed, in a JSON object")
    (field,) = found
    if (misplaced := MISPLACED.get((field, type(value[field])))) is not None:
        raise Problem(422, "invalid_request", misplaced)
    return _convert(value, _LooseTexts if field == "texts" else REQUESTS[field], ALLOWED[field])


def _convert(value: object, shape: type[Shape], allowed: str) -> Shape:
    try:
        return msgspec.convert(value, shape)
    except UnicodeEncodeError as error:
        raise _lone_surrogate("a field name") from error
    except msgspec.ValidationError as error:
        detail = str(error)
        if "unknown field" in detail:  # the one message that repeats what was sent
            detail = f"unknown field; {allowed}"
        elif form := re.fullmatch(r"Expected `str` matching regex .* - at `\$\.(\w+)`", detail):
            detail = f"Expected {FORMS[form[1]]} - at `{form[1]}`"
        raise Problem(422, "invalid_request", detail.replace("$.", "")) from error


def _checked(texts: str | list[str], field: str) -> list[str]:
    if isinstance(texts, str):
        return [_checked_text(texts, field)]
    return [_checked_text(text, f"{field}[{number}]") for number, text in enumerate(texts)]


def _errors(texts: list[str], field: str) -> Iterator[TextError]:
    for index, text in enumerate(texts):
        place = f"{field}[{index}]"
        if len(text) > MAX_CHARS:
            yield TextError(index, "text_too_long", f"{place} has more than {MAX_CHARS} characters")
            continue
        try:
            _checked_text(text, place)
        except Problem as problem:
            yield TextError(index, problem.code, problem.detail)


def _checked_text(text: str, place: str) -> str:
    if not text.strip():
        raise Problem(422, "blank_text", f"{place} is blank")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise _lone_surrogate(place) from error
    return text


def _lone_surrogate(place: str) -> Problem:
    return Problem(422, "lone_surrogate", f"{place} has half a surrogate pair, which is no character")


def answer(prediction: Prediction, manifest: Manifest, prediction_id: str, top_k: int | None) -> Answer:
    labels, probabilities = manifest.labels, prediction.probabilities.tolist()
    return Answer(
        label=prediction.label,
        labels=list(prediction.labels) if manifest.task == "multi_label" else UNSET,
        score=prediction.score,
        probabilities={labels[label_id]: probabilities[label_id] for label_id in prediction.ranked[:top_k].tolist()},
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
        wrong, given = {error.index for error in question.errors}, iter(answers)
        places = range(len(answers) + len(wrong))
        many = PredictManyReply(
            predictions=[None if place in wrong else next(given) for place in places],
            errors=list(question.errors),
            model=model,
            model_version=version,
            request_id=request_id,
        )
        return msgspec.json.encode(many)
    (one,) = answers
    single = PredictReply(
        label=one.label,
        labels=one.labels,
        score=one.score,
        probabilities=one.probabilities,
        prediction_id=one.prediction_id,
        decision=one.decision,
        truncated=one.truncated,
        n_tokens=one.n_tokens,
        model=model,
        model_version=version,
        request_id=request_id,
    )
    return msgspec.json.encode(single)


def components() -> Mapping[str, Any]:
    """The JSON schemas of all bodies, for OpenAPI."""
    replies = [PredictReply, PredictManyReply, LabelScore, ExplainReply, FeedbackReply, HistoryReply, ProblemDetails]
    types = [*REQUESTS.values(), ExplainRequest, FeedbackRequest, *replies]
    found = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")[1]
    for schema in found.values():
        if "description" in schema:  # a docstring, which a Python before 3.13 gives as it is indented
            schema["description"] = cleandoc(schema["description"])
    return found
