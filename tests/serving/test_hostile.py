"""The short run of benchmarks/serving/hostile.py; the long one takes minutes."""

import asyncio
import itertools
import random

import pytest
from benchmarks.serving.hostile import normal, open_and_wait, send_all
from benchmarks.serving.hostile_requests import by_hypothesis, corpus, mutants
from tests.serving.conftest import Running


def test_eight_hundred_hostile_requests_get_an_honest_refusal_or_an_answer(running: Running) -> None:
    requests = [*corpus(), *by_hypothesis(150, 1), *itertools.islice(mutants(random.Random(1)), 500)]
    found = asyncio.run(send_all(running.port, requests))
    assert found["sent"] == len(requests)
    assert (found["5xx"], found["odd"]) == (0, [])
    assert {"200", "400", "404", "415", "422"} <= set(found["statuses"])
    assert running.http.get("/health").status_code == 200
    assert running.http.post("/predict", json={"text": "parcel"}).status_code == 200


def test_a_thousand_connections_that_never_finish_are_closed_and_hinder_nobody(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pigeonhole.serving.protocol.RECEIVE_TIMEOUT_S", 1.0)

    async def hold() -> tuple[float, float | None]:
        slow = asyncio.create_task(open_and_wait(running.port, 1000))
        took, failed = await normal(running.port, 2.0)
        assert (len(took), failed) == (40, 0)
        return await slow

    assert asyncio.run(hold())[1] is not None
