"""What became of the questions, minute by minute, against counts made by hand."""

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from tests.serving.conftest import Running

from pigeonhole.serving.history import MINUTES, SIZE, History, Span
from pigeonhole.serving.schemas import HistoryStep

NOON = 1_800_000_000 - 1_800_000_000 % 3600


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the clock to so many minutes after noon."""

    def set_clock(minutes: float) -> None:
        monkeypatch.setattr("time.time", lambda: NOON + 60 * minutes)

    set_clock(0)
    return set_clock


def counts(step: HistoryStep) -> tuple[int, int, int, int]:
    return (step.answered, step.refused, step.turned_away, step.failed)


def test_each_minute_holds_what_became_of_its_questions(at: Callable[[float], None]) -> None:
    found = History()
    for minute, status in ((0.1, 200), (0.9, 399), (1, 400), (1.5, 500), (2, 503), (2, 499)):
        at(minute)
        found.count(status)
    found.count(503, overloaded=True)
    at(2.999)
    told = found.told(Span(hours=3 / 60, steps=3))
    assert [counts(step) for step in told.steps] == [(2, 0, 0, 0), (0, 1, 0, 1), (0, 1, 1, 1)]
    assert (told.since.timestamp(), told.end.timestamp()) == (NOON, NOON + 180)
    assert [step.at for step in told.steps] == [told.start + number * timedelta(minutes=1) for number in range(3)]


def test_a_ring_forgets_what_is_a_week_old_and_nothing_else(at: Callable[[float], None]) -> None:
    found = History()
    for minute in range(MINUTES + 10):
        at(minute)
        for status in (200, 400, 500):
            found.count(status)
        found.count(503, overloaded=True)
    at(MINUTES + 9.5)
    whole = found.told(Span(hours=168, steps=7))
    assert [counts(step) for step in whole.steps] == [(1440,) * 4] * 7
    at(3 * MINUTES)
    assert {counts(step) for step in found.told(Span(hours=168, steps=7)).steps} == {(0, 0, 0, 0)}


def test_processes_of_one_folder_are_added_up_and_a_dead_one_still_counts(
    at: Callable[[float], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for pid in (11, 12, 13):
        monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
        found.append(History(str(tmp_path)))
        at(pid)
        found[-1].count(200)
    del found[0]
    (tmp_path / "history-14").touch()  # of a process that starts at this very moment
    (tmp_path / "history-15").write_bytes(bytes(SIZE))
    at(13.5)
    told = found[-1].told(Span(hours=1, steps=1))
    assert counts(told.steps[0]) == (3, 0, 0, 0)
    assert told.since.timestamp() == NOON


def test_the_route_counts_questions_and_neither_probes_nor_itself(running: Running) -> None:
    running.http.post("/predict", json={"text": "parcel"})
    running.http.post("/predict", json={"text": " "})
    for path in ("/ready", "/metrics", "/nowhere", "/history"):
        running.http.get(path)
    told = running.http.get("/history", params={"hours": 1, "steps": 2}).json()
    sums = {kind: sum(step[kind] for step in told["steps"]) for kind in ("answered", "refused", "turned_away", "failed")}
    assert sums == {"answered": 1, "refused": 1, "turned_away": 0, "failed": 0}
    assert [step["at"] for step in told["steps"]] == sorted(step["at"] for step in told["steps"])
    assert told["start"] == told["steps"][0]["at"]
    assert told["start"] < told["since"] < told["end"]


@pytest.mark.parametrize(
    "query",
    ["hours=0", "hours=169", "hours=nan", "steps=241", "steps=1.5", "days=1", "hours=x", "hours=1&hours=2", "steps=1&steps=1"],
)
def test_another_query_is_refused_and_told_what_is_allowed(running_once: Running, query: str) -> None:
    answer = running_once.http.get(f"/history?{query}")
    assert answer.status_code == 422
    assert "hours (to 168) and steps (1 to 240)" in answer.json()["detail"]


def test_a_refused_query_is_not_repeated(running_once: Running) -> None:
    answer = running_once.http.get("/history?zebra=1")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert "zebra" not in answer.text


def test_a_clock_that_went_back_does_not_make_it_begin_after_its_end(at: Callable[[float], None]) -> None:
    found = History()
    at(-90)
    found.count(200)
    told = found.told(Span(hours=1, steps=1))
    assert told.since <= told.end
    assert [step.answered for step in told.steps] == [1]
