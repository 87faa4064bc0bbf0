"""A live world: the tiny bundle in production, and a log of what it answered."""

import http.server
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pigeonhole.bundle import Bundle, open_bundle
from pigeonhole.classifier import Classifier
from pigeonhole.drift.settings import Settings
from pigeonhole.prediction_log import Features, LogWriter, Record, new_id, sketch
from pigeonhole.registry import Registry

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="session")
def bundle(sealed_bundle: Path) -> Bundle:
    return open_bundle(str(sealed_bundle))


@pytest.fixture
def settings(bundle: Bundle, tmp_path: Path) -> Settings:
    registry = Registry(str(tmp_path / "registry"))
    registry.publish(bundle.folder, bundle.manifest)
    registry.set_alias(bundle.manifest.name, "production", bundle.manifest.version, "test", expected=None)
    return Settings(registry=str(tmp_path / "registry"), log=str(tmp_path / "log"), reports=str(tmp_path / "reports"), draw="no")


@pytest.fixture(scope="session")
def records_of(bundle: Bundle) -> Callable[..., list[Record]]:
    """What serving writes down for these texts, one a second from `start`."""
    classifier = Classifier.open(bundle)

    def make(texts: Sequence[str], start: datetime = NOON, **changes: Any) -> list[Record]:
        predictions = classifier.predict(texts)
        return [
            Record(
                **{
                    "prediction_id": new_id(),
                    "at": start + timedelta(seconds=number),
                    "request_id": "r",
                    "model": bundle.manifest.name,
                    "version": bundle.manifest.version,
                    "text": None,
                    "text_policy": "none",
                    "features": Features(
                        n_chars=len(text),
                        n_words=len(text.split()),
                        n_tokens=found.n_tokens,
                        unknown_tokens=found.unknown_tokens,
                        truncated=found.truncated,
                        max_logit=float(found.logits.max()),
                        sketch=sketch(found.embedding[None, :])[0].tolist(),
                    ),
                    "label": found.label,
                    "score": found.score,
                    "probabilities": dict(zip(bundle.manifest.labels, found.probabilities.tolist(), strict=True)),
                    "decision": found.decision,
                    "latency_ms": 1.0,
                    **changes,
                }
            )
            for number, (text, found) in enumerate(zip(texts, predictions, strict=True))
        ]

    return make


@pytest.fixture
def write_log(settings: Settings) -> Callable[[Sequence[Record]], None]:
    def write(records: Sequence[Record]) -> None:
        with LogWriter(settings.log) as log:
            log.append(records)

    return write


@dataclass
class Receiver:
    """Answers with the codes in turn, the last one for ever, and keeps what it got."""

    codes: list[int]
    url: str = ""
    got: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver([200])

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(200, b'{"access_token": "of this machine"}')

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            found.got.append((self.path, {key.lower(): value for key, value in self.headers.items()}, body))
            self._answer(found.codes.pop(0) if len(found.codes) > 1 else found.codes[0], b"{}")

        def _answer(self, code: int, body: bytes) -> None:
            self.send_response(code)
            self.send_header("content-length", str(len(body)))
            self.send_header("location", "/elsewhere")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield found
    server.shutdown()
    server.server_close()
    thread.join()
