"""What became of the questions in each minute of the last week, so that last night's failures are seen without Prometheus too.

A ring of counters in memory; with several workers each has its own in a file of the folder that their metrics share, and whoever
is asked adds them up, those of killed workers too. It begins with the service and ends with it. A question is a POST.
"""

import mmap
import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from pigeonhole.serving.problem import Problem
from pigeonhole.serving.schemas import HistoryReply, HistoryStep

MOST_HOURS = 7 * 24
MOST_STEPS = 240
MINUTES = 60 * MOST_HOURS
ANSWERED, REFUSED, TURNED_AWAY, FAILED = range(1, 5)  # columns of a row, as HistoryStep has them; the first is the minute
WIDTH = 5
SIZE = 8 * WIDTH * (1 + MINUTES)  # the row before the ring holds when it began


class Span(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The query of GET /history: the last `hours`, in as many `steps`."""

    hours: Annotated[float, msgspec.Meta(gt=0, le=MOST_HOURS)] = 24
    steps: Annotated[int, msgspec.Meta(ge=1, le=MOST_STEPS)] = 48


class History:
    """Counts of this process; `told` adds those of its fellows. Only the thread of the event loop counts."""

    def __init__(self, folder: str | None = None) -> None:
        self._folder = Path(folder) if folder else None
        self._cells = memoryview(_file(self._folder) if self._folder else bytearray(SIZE)).cast("q")
        self._cells[0] = int(time.time())

    def count(self, status: int, overloaded: bool = False) -> None:
        """A question answered with this status; `overloaded`: its 503 says that too much was waiting."""
        minute = int(time.time()) // 60
        row = WIDTH * (1 + minute % MINUTES)
        if self._cells[row] != minute:  # of a week ago
            for place in range(row + 1, row + WIDTH):
                self._cells[place] = 0
            self._cells[row] = minute
        self._cells[row + (TURNED_AWAY if overloaded else ANSWERED if status < 400 else REFUSED if status < 500 else FAILED)] += 1

    def told(self, span: Span) -> HistoryReply:
        """The steps end now; a minute belongs to the step in which it began."""
        end = int(time.time()) + 1
        start, width = end - 3600 * span.hours, 3600 * span.hours / span.steps
        tables = self._tables()
        sums = np.zeros((span.steps, WIDTH - 1), np.int64)
        for table in tables:
            began = 60 * table[1:, 0]
            inside = (began >= start) & (began < end)
            places = ((began[inside] - start) / width).astype(int)
            np.add.at(sums, places, table[1:][inside, 1:])
        steps = [HistoryStep(_moment(start + number * width), *counts) for number, counts in enumerate(sums.tolist())]
        since = min(end, *(float(table[0, 0]) for table in tables))  # a clock that went back: it begins now
        return HistoryReply(_moment(start), _moment(end), _moment(since), steps)

    def _tables(self) -> list[NDArray[np.int64]]:
        """A row a minute, of each process."""
        if self._folder is None:
            return [np.frombuffer(self._cells, np.int64).reshape(-1, WIDTH)]
        tables = [np.fromfile(file, np.int64).reshape(-1, WIDTH) for file in sorted(self._folder.glob("history-*"))]
        return [table for table in tables if table[:1].any()]  # the others are being made


def read_span(query: Sequence[tuple[str, str]]) -> Span:
    """Raises Problem."""
    fields = dict(query)
    if len(fields) < len(query):
        raise _refusal("a field stands there more than once")
    try:
        return msgspec.convert(fields, Span, strict=False)
    except msgspec.ValidationError as error:
        # msgspec repeats the name of an unknown field.
        raise _refusal("there is an unknown field" if "unknown field" in str(error) else str(error).replace("$.", "")) from error


def _refusal(said: str) -> Problem:
    detail = f"the query: {said}; allowed are hours (to {MOST_HOURS}) and steps (1 to {MOST_STEPS})"
    return Problem(422, "invalid_request", detail)


def _file(folder: Path) -> mmap.mmap:
    """A new one for each process: a killed worker's stays."""
    with (folder / f"history-{os.getpid()}").open("w+b") as file:
        file.truncate(SIZE)
        return mmap.mmap(file.fileno(), SIZE)


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
