"""Many texts, classified chunk by chunk on a thread of their own, so that the page stays alive and can say stop.

A job asks nothing while its page is closed, and ends where nobody comes back in time.

What is kept for a text is its label, score, decision and a flag: 100,000 texts take a few megabytes beside the upload itself.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pandas as pd

from frontend.client import Down, Refused, Service

CHUNK = 256
CHUNK_BYTES = 900_000  # of its texts, as JSON at its longest: below the service's limit of a body, 1 MiB
PATIENCE = 5
"""How often a chunk is tried again when the service is too busy or away; the pauses add up to half a minute."""
ABSENCE_S = 120.0
"""How long a job waits for a page that is gone: as long as Streamlit lets a lost connection come back to the same visit."""
LOOK_S = 0.5


class BatchJob:
    """Starts at once; read `done`, `total`, `error`, `finished` while it runs, `results()` at any time."""

    def __init__(
        self,
        service: Service,
        texts: Sequence[str],
        max_chars: int,
        patience: int = PATIENCE,
        is_watched: Callable[[], bool] = lambda: True,
        absence_s: float = ABSENCE_S,
    ) -> None:
        self.total = len(texts)
        self.done = 0
        self.error = ""
        self.model_version = ""
        self._service, self._texts, self._max_chars, self._patience = service, texts, max_chars, patience
        self._is_watched, self._absence_s = is_watched, absence_s
        self._rows: list[tuple[str, float | None, str, str]] = []
        self._began = time.monotonic()
        self._ended: float | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="batch", daemon=True)
        self._thread.start()

    @property
    def finished(self) -> bool:
        return self._ended is not None

    @property
    def cancelled(self) -> bool:
        return self._stop.is_set()

    @property
    def seconds(self) -> float:
        return (self._ended or time.monotonic()) - self._began

    @property
    def seconds_left(self) -> float | None:
        """By the pace so far; None before the first chunk is back."""
        return self.seconds / self.done * (self.total - self.done) if self.done else None

    def cancel(self) -> None:
        self._stop.set()

    def wait(self, timeout_s: float) -> bool:
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def results(self) -> pd.DataFrame:
        """One row a text that has been answered or passed over, in the order of the upload."""
        return pd.DataFrame(self._rows[: self.done], columns=["label", "score", "decision", "note"])

    def _run(self) -> None:
        try:
            for texts in self._chunks():
                self._wait_for_watcher()
                if self._stop.is_set():
                    break
                rows = self._chunk(texts)
                self._rows.extend(rows)
                self.done += len(rows)
        except (Down, Refused) as error:
            self.error = str(error)
        except (KeyError, TypeError, ValueError):
            self.error = "the service gave an answer that this page does not know: are both of one release?"
        finally:
            self._ended = time.monotonic()

    def _wait_for_watcher(self) -> None:
        """Returns while the page is open; where it stays closed too long, the job is cancelled."""
        until = time.monotonic() + self._absence_s
        while not self._is_watched() and not self._stop.wait(LOOK_S):
            if time.monotonic() >= until:
                self.cancel()

    def _chunks(self) -> Iterator[Sequence[str]]:
        """So many texts as one question may hold; at most CHUNK, and fewer where they are long."""
        start, size_bytes = 0, 0
        for place, text in enumerate(self._texts):
            text_bytes = len(json.dumps(text[: self._max_chars])) + 2
            if place > start and (place - start == CHUNK or size_bytes + text_bytes > CHUNK_BYTES):
                yield self._texts[start:place]
                start, size_bytes = place, 0
            size_bytes += text_bytes
        if start < self.total:
            yield self._texts[start:]

    def _chunk(self, texts: Sequence[str]) -> list[tuple[str, float | None, str, str]]:
        """A blank one, which cannot be asked, is a row with a note; one over the limit is cut and says so."""
        asked = [text[: self._max_chars] for text in texts if text.strip()]
        answers = iter(self._ask(asked) if asked else [])
        rows: list[tuple[str, float | None, str, str]] = []
        for text in texts:
            if not text.strip():
                rows.append(("", None, "", "blank"))
                continue
            answer = next(answers)
            note = "cut" if len(text) > self._max_chars or answer.get("truncated") else ""
            rows.append((_label(answer), float(answer["score"]), str(answer["decision"]), note))
        return rows

    def _ask(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        for attempt in range(self._patience + 1):
            try:
                body = self._service.predict_many(texts).body
            except Down:
                if attempt == self._patience or self._stop.wait(2**attempt / 2):
                    raise
            else:
                self.model_version, answers = str(body["model_version"]), list(body["predictions"])
                if len(answers) != len(texts):
                    raise ValueError(f"{len(answers)} answers to {len(texts)} texts")
                return answers
        raise AssertionError("the last attempt returns or raises")


def _label(answer: dict[str, Any]) -> str:
    """All labels of the answer in one cell, where the model gives several."""
    found = answer.get("labels")
    return "; ".join(map(str, found)) if isinstance(found, list) else str(answer["label"])
