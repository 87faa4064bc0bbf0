"""The demo's people: they ask, get an answer and, if asked to, say what would have been right. Over HTTP, as anybody would."""

import itertools
import threading
import time
import urllib.error
from collections.abc import Sequence
from dataclasses import dataclass

from pigeonhole.dataset.read import Row
from pigeonhole.loop.processes import call


@dataclass(frozen=True)
class Answer:
    """What the service said to one text; `version` None: the request failed. `at` is in seconds of time.time()."""

    at: float
    row: Row
    label: str
    version: str | None
    prediction_id: str

    @property
    def right(self) -> bool:
        return self.label == self.row.label


class Traffic:
    """All that was asked, in order."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.answers: list[Answer] = []

    @property
    def failed(self) -> int:
        return sum(answer.version is None for answer in self.answers)

    def ask(self, rows: Sequence[Row]) -> list[Answer]:
        """One after the other, as quickly as they are answered."""
        answers = [self._ask(row) for row in rows]
        self.answers += answers
        return answers

    def _ask(self, row: Row) -> Answer:
        try:
            said = call(f"{self._url}/predict", {"text": row.text})
        except (OSError, urllib.error.URLError):
            return Answer(time.time(), row, "", None, "")
        return Answer(time.time(), row, said["label"], said["model_version"], said["prediction_id"])

    def judge(self, answers: Sequence[Answer], source: str) -> None:
        """Say of each answer what is right; nothing of requests that failed. Raises OSError."""
        for answer in answers:
            if answer.version is None:
                continue
            call(f"{self._url}/feedback", {"prediction_id": answer.prediction_id, "label": answer.row.label, "source": source})


class Background:
    """Asks the rows over and over, `per_second` of them, until the context is left."""

    def __init__(self, traffic: Traffic, rows: Sequence[Row], per_second: float) -> None:
        self._traffic = traffic
        self._rows = rows
        self._pause_s = 1 / per_second
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Background":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        for row in itertools.cycle(self._rows):
            self._traffic.ask([row])
            if self._stopped.wait(self._pause_s):
                return
