import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pigeonhole.prediction_log import Features, Record, new_id, read_window

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
"""The moment of the first record that make_record makes; each further one is a millisecond later."""
DAY = timedelta(days=1)


def ids_in(log: Path) -> list[str]:
    return [record.prediction_id for record in read_window(str(log), NOON - 900 * DAY, NOON + 9000 * DAY)]


@pytest.fixture
def make_record() -> Callable[..., Record]:
    numbers = itertools.count()

    def make(text: str | None = "where is my parcel", at: datetime | None = None) -> Record:
        return Record(
            prediction_id=new_id(),
            at=at or NOON + timedelta(milliseconds=next(numbers)),
            request_id="r-1",
            model="tickets",
            version="20260301-1",
            text=text,
            text_policy="full" if text is not None else "none",
            features=Features(n_chars=18, n_words=4, n_tokens=6, unknown_tokens=0, truncated=False, max_logit=3.25),
            label="delivery",
            score=0.75,
            probabilities={"delivery": 0.75, "refund": 0.25},
            decision="accept",
            latency_ms=2.5,
        )

    return make
