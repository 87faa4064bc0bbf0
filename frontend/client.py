"""The two services by HTTP: one attempt a moment later where they are down, a plain sentence where they stay down.

The page sees two errors only: `Down` (nobody answers, or not now) and `Refused` (the service answered no, and said why).
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

import httpx

from frontend.identity import Identity, identity_for, is_cloud_run
from frontend.ports import API_PORT, API_VARIABLE, DRIFT_PORT, DRIFT_VARIABLE, KEY_VARIABLE, local

RETRIES = 2
PAUSE_S = 0.25
DRIFT_TIMEOUT_S = 240.0  # a run that lets Evidently draw takes half a minute, and up to three
NOT_NOW = frozenset({502, 503, 504})
FIELDS: Mapping[str, Mapping[str, type]] = {
    "/ready": {"model": str, "model_version": str},
    "/model": {
        "model": str,
        "model_version": str,
        "created_at": str,
        "task": str,
        "precision": str,
        "max_length": int,
        "labels": list,
        "metrics": dict,
        "limits": dict,
        "thresholds": dict,
        "temperature": float,
        "windowing": dict,
    },
    "/predict": {
        "model": str,
        "model_version": str,
        "prediction_id": str,
        "label": str,
        "score": float,
        "probabilities": dict,
        "decision": str,
        "truncated": bool,
        "n_tokens": int,
    },
    "/openapi.json": {"paths": dict},
    "/history": {"steps": list, "since": str},
    "/versions": {"versions": list, "aliases": dict, "history": list},
    "/traffic": {"steps": list, "labels": list},
    "/review": {"items": list},
    "/stats": {"reports": list, "live_accuracy": dict},
    "/reports/latest.json": {"verdict": str, "findings": list},
}
"""What an answer has that is the service's own, and not another program's at its address."""


class Down(Exception):  # noqa: N818  a state of the service, not a mistake
    """Nobody answers at this address, or the service says: not now."""


class Refused(Exception):  # noqa: N818
    """The service said no; the text is what it said."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


@dataclass(frozen=True)
class Timed:
    """An answer and the seconds that it took, the network included."""

    body: dict[str, Any]
    seconds: float


class Service:
    """A JSON service at one address, spoken to with the token of the environment."""

    def __init__(self, url: str, key: str = "", timeout_s: float = 30.0, retries: int = RETRIES) -> None:
        self.url = url.rstrip("/")
        self.retries = retries
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(
            base_url=self.url, headers=headers, timeout=httpx.Timeout(timeout_s, connect=3.0), auth=_identity(self.url)
        )

    @classmethod
    def api(cls, environment: Mapping[str, str] = os.environ) -> Self:
        return cls(environment.get(API_VARIABLE) or local(API_PORT), environment.get(KEY_VARIABLE, ""))

    @classmethod
    def drift(cls, environment: Mapping[str, str] = os.environ, timeout_s: float = DRIFT_TIMEOUT_S) -> Self:
        return cls(environment.get(DRIFT_VARIABLE) or local(DRIFT_PORT), environment.get(KEY_VARIABLE, ""), timeout_s, 0)

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, **query: str | int | float) -> dict[str, Any]:
        return _own(path, _object(self._send("GET", path, query=query)))

    def text(self, path: str) -> str:
        return self._send("GET", path).text

    def post(self, path: str, body: Mapping[str, Any]) -> Timed:
        began = time.perf_counter()
        answer = _object(self._send("POST", path, body))
        return Timed(answer, time.perf_counter() - began)

    def predict(self, text: str) -> Timed:
        timed = self.post("/predict", {"text": text})
        _own("/predict", timed.body)
        return timed

    def predict_many(self, texts: Sequence[str]) -> Timed:
        return self.post("/predict", {"texts": list(texts), "top_k": 1})

    def routes(self) -> frozenset[str]:
        """`POST /predict` and its like, as the OpenAPI document lists them."""
        paths = self.get("/openapi.json").get("paths", {})
        return frozenset(f"{method.upper()} {path}" for path, methods in paths.items() for method in methods)

    def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, query: Mapping[str, str | int | float] | None = None
    ) -> httpx.Response:
        for attempt in range(self.retries + 1):
            last = attempt == self.retries
            try:
                answer = self._http.request(method, path, json=body, params=query or None)
            except httpx.TransportError as error:
                # Who is slow may have answered all the same, and would write it down twice.
                if last or isinstance(error, httpx.ReadTimeout):
                    raise Down(f"{self.url} does not answer ({type(error).__name__})") from error
            except httpx.InvalidURL as error:
                raise Down(f"{self.url} is no address") from error
            else:
                if answer.status_code not in NOT_NOW:
                    return _accepted(answer)
                if last:
                    raise Down(f"{self.url} answers: not now ({_detail(answer)})")
            time.sleep(PAUSE_S * 2**attempt)
        raise AssertionError("the last attempt returns or raises")


def _own(path: str, found: dict[str, Any]) -> dict[str, Any]:
    """Raises Refused for an answer of another program, or of a release that says less."""
    wrong = [name for name, kind in FIELDS.get(path, {}).items() if not isinstance(found.get(name), kind)]
    if wrong:
        told = f"the answer has no {' and no '.join(wrong)}: is this the address of the service? Are both of one release?"
        raise Refused(200, told)
    return found


def _identity(url: str) -> Identity | None:
    try:
        return identity_for(url)
    except httpx.InvalidURL:
        return None  # told when it is asked


def _accepted(answer: httpx.Response) -> httpx.Response:
    if answer.is_success:
        return answer
    if answer.status_code in (401, 403):
        if is_cloud_run(answer.request.url) and "json" not in answer.headers.get("content-type", ""):  # before the service
            raise Refused(
                answer.status_code, "Cloud Run lets only roles/run.invoker in; `uv run invoke cloud.setup` gives it to this page"
            )
        if "authorization" not in answer.request.headers:
            raise Refused(answer.status_code, f"the service asks for a key, and {KEY_VARIABLE} is not set where this page runs")
        raise Refused(answer.status_code, f"the service does not accept the token of {KEY_VARIABLE}")
    raise Refused(answer.status_code, _detail(answer))


def _detail(answer: httpx.Response) -> str:
    """What a problem+json says, else the status."""
    try:
        said = answer.json()
    except ValueError:
        said = None
    detail = said.get("detail") if isinstance(said, dict) else None
    return str(detail or f"status {answer.status_code}")


def _object(answer: httpx.Response) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Refused(answer.status_code, "the answer is not a JSON object: is this the address of the service?")
    return cast(dict[str, Any], found)
