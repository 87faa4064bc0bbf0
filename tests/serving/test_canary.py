"""The candidate alias: a share of the callers, each always the same, meets the next version."""

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import wait_until
from tests.serving.conftest import Running, Start, opened
from tests.serving.test_failures import Held, fill_disk
from tests.serving.test_shadow import Moody, crash
from tests.serving.test_telemetry import samples

from pigeonhole.classifier import Classifier
from pigeonhole.errors import InferenceError
from pigeonhole.registry import Registry
from pigeonhole.serving.canary import is_chosen
from pigeonhole.serving.service import Service


def nominate(registry: Registry, version: str | None) -> None:
    registry.set_alias("words", "candidate", version, "test", expected=registry.alias("words", "candidate").version)


def candidate(service: Running) -> object:
    return service.http.get("/model").json()["candidate"]


def ask(service: Running, key: str, text: str = "parcel") -> str:
    answer = service.http.post("/predict", json={"text": text}, headers={"x-canary-key": key})
    assert answer.status_code == 200
    return str(answer.json()["model_version"])


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_a_share_of_the_keys_is_within_binomial_bounds_and_another_version_has_others(share: float) -> None:
    chosen = {version: {key for key in range(20_000) if is_chosen(f"user-{key}", version, share)} for version in ("v1", "v2")}
    bound = 4 * math.sqrt(20_000 * share * (1 - share))
    for keys in chosen.values():
        assert abs(len(keys) - 20_000 * share) < bound
    assert len(chosen["v1"] & chosen["v2"]) < 20_000 * share**2 + bound
    assert {key for key in range(20_000) if is_chosen(f"user-{key}", "v1", share / 2)} <= chosen["v1"]  # who is in stays in


def test_a_caller_keeps_meeting_one_version_and_answers_and_records_say_which(start: Start, registry: Registry) -> None:
    with start(opened(registry), registry, poll_s=0.05, canary_share=0.3) as service:
        assert {ask(service, f"user-{number}") for number in range(20)} == {"v1"}
        nominate(registry, "v2")
        wait_until(lambda: candidate(service) == {"model_version": "v2", "share": 0.3})
        wait_until(lambda: samples(service)["pigeonhole_rollout_behind{alias=candidate}"] == 0)
        first = {number: ask(service, f"user-{number}") for number in range(200)}
        assert {number: ask(service, f"user-{number}", "refund") for number in range(200)} == first
        share = sum(version == "v2" for version in first.values()) / 200
        assert abs(share - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 200)
        versions = {number: "v2" if is_chosen(f"user-{number}", "v2", 0.3) else "v1" for number in range(200)}
        assert first == versions
        texts = {ask(service, "", f"parcel {number}") for number in range(50)}
        assert texts == {"v1", "v2"}  # without a key the text decides
        recorded = [record.version for record in service.records()]
        assert recorded.count("v2") >= 2 * 200 * share
        assert samples(service)["pigeonhole_answered_total{role=candidate}"] == recorded.count("v2")
        many = service.http.post("/predict", json={"texts": ["parcel"] * 100}, headers={"x-canary-key": "user-0"}).json()
        assert many["model_version"] == versions[0]
        assert service.http.get("/ready").json()["model_version"] == "v1"
        nominate(registry, None)
        wait_until(lambda: candidate(service) is None)
        assert {ask(service, f"user-{number}") for number in range(20)} == {"v1"}


def test_without_a_share_the_candidate_is_not_even_opened(start: Start, registry: Registry) -> None:
    nominate(registry, "v2")
    with start(opened(registry), registry, poll_s=0.05) as service:
        time.sleep(0.2)
        assert candidate(service) is None


def unwell() -> None:
    raise InferenceError("no numbers")


@pytest.mark.parametrize("mood", [unwell, crash, lambda: threading.Event().wait(5)])
def test_a_candidate_that_fails_dies_or_hangs_costs_no_answer_and_is_sent_away(
    start: Start,
    registry: Registry,
    mood: Callable[[], object],
) -> None:
    with start(opened(registry), registry, poll_s=0.05, canary_share=0.5, deadline_s=1.0) as service:
        moody = Moody(opened(registry, "v2"), mood)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Classifier, "open", classmethod(lambda *_, **__: moody))
            nominate(registry, "v2")
            wait_until(lambda: candidate(service) is not None)
        chosen = [f"user-{number}" for number in range(40) if is_chosen(f"user-{number}", "v2", 0.5)]
        assert {ask(service, key) for key in chosen[:4]} == {"v1"}
        assert candidate(service) is None
        assert service.http.get("/ready").status_code == 200
        wait_until(lambda: samples(service)["pigeonhole_rollout_behind{alias=candidate}"] == 1)
        nominate(registry, None)
        wait_until(lambda: samples(service)["pigeonhole_rollout_behind{alias=candidate}"] == 0)


def test_what_a_candidate_that_was_sent_away_still_fails_of_is_not_productions(start: Start, registry: Registry) -> None:
    with start(opened(registry), registry, poll_s=0.05, canary_share=0.5, deadline_s=20.0) as service:
        wake = threading.Event()

        def unwell_later() -> None:
            wake.wait(20)
            unwell()

        moody = Moody(opened(registry, "v2"), unwell_later)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Classifier, "open", classmethod(lambda *_, **__: moody))
            nominate(registry, "v2")
            wait_until(lambda: candidate(service) is not None)
        chosen = [f"user-{number}" for number in range(40) if is_chosen(f"user-{number}", "v2", 0.5)]
        with ThreadPoolExecutor(8) as pool, pytest.MonkeyPatch.context() as patched:
            asked = [pool.submit(ask, service, key) for key in chosen[:8]]
            wait_until(lambda: samples(service)["pigeonhole_in_flight{}"] == 9)  # and the scrape itself
            nominate(registry, None)
            wait_until(lambda: candidate(service) is None)
            ready: list[bool] = []
            swap = Service._predict

            def look(self: Service, *asked: Any) -> Any:
                try:
                    return swap(self, *asked)
                finally:
                    ready.append(self.ready)

            patched.setattr(Service, "_predict", look)
            wake.set()
            assert {found.result() for found in asked} == {"v1"}
        assert all(ready)


def test_callers_who_give_it_no_time_do_not_send_a_candidate_away(start: Start, registry: Registry) -> None:
    with start(opened(registry), registry, poll_s=0.05, canary_share=0.5) as service:
        moody = Moody(opened(registry, "v2"), lambda: time.sleep(0.1))
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Classifier, "open", classmethod(lambda *_, **__: moody))
            nominate(registry, "v2")
            wait_until(lambda: candidate(service) is not None)
        chosen = [f"user-{number}" for number in range(60) if is_chosen(f"user-{number}", "v2", 0.5)]

        def hurry(key: str) -> None:
            headers = {"x-canary-key": key, "x-request-timeout-ms": "1"}
            service.http.post("/predict", json={"text": "parcel"}, headers=headers)

        with ThreadPoolExecutor(12) as pool:
            list(pool.map(hurry, chosen[:24]))
        assert candidate(service) == {"model_version": "v2", "share": 0.5}


def test_a_log_that_cannot_be_written_does_not_send_a_candidate_away(
    start: Start, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start(opened(registry), registry, poll_s=0.05, canary_share=0.5) as service:
        nominate(registry, "v2")
        wait_until(lambda: candidate(service) is not None)
        chosen = [f"user-{number}" for number in range(40) if is_chosen(f"user-{number}", "v2", 0.5)]
        with monkeypatch.context() as disk:
            fill_disk(disk)
            for key in chosen[:4]:
                refused = service.http.post("/predict", json={"text": "parcel"}, headers={"x-canary-key": key})
                assert (refused.status_code, refused.json()["code"]) == (503, "not_recorded")
        assert ask(service, chosen[0]) == "v2"


def test_a_crowd_before_a_candidate_is_answered_by_production_and_does_not_send_it_away(start: Start, registry: Registry) -> None:
    settings = {"poll_s": 0.05, "canary_share": 0.5, "deadline_s": 40.0, "max_waiting": 256}
    with start(opened(registry), registry, **settings) as service, ThreadPoolExecutor(2) as pool:
        held = Held(opened(registry, "v2"))
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Classifier, "open", classmethod(lambda *_, **__: held))
            nominate(registry, "v2")
            wait_until(lambda: candidate(service) is not None)
        chosen = [f"user-{number}" for number in range(40) if is_chosen(f"user-{number}", "v2", 0.5)]
        many: dict[str, Any] = {"json": {"texts": ["parcel"] * 256}, "headers": {"x-canary-key": chosen[0]}}
        first = pool.submit(service.http.post, "/predict", **many)
        assert held.entered.wait(5)
        second = pool.submit(service.http.post, "/predict", json={"texts": ["parcel"] * 32}, headers=many["headers"])
        wait_until(lambda: samples(service)["pigeonhole_in_flight{}"] == 3)  # and the scrape itself
        time.sleep(0.05)
        assert {ask(service, key) for key in chosen[1:5]} == {"v1"}
        held.let_go.set()
        assert {found.result().json()["model_version"] for found in (first, second)} == {"v2"}
        assert ask(service, chosen[0]) == "v2"


def test_a_bundle_by_url_has_neither_canary_nor_shadow(start: Start, classifier: Classifier, tmp_path: Path) -> None:
    with start(classifier, canary_share=0.5) as service:
        about = service.http.get("/model").json()
        assert (about["candidate"], about["shadow"]) == (None, None)
        assert ask(service, "user-1") == "20260301-120000"


def test_production_has_what_the_candidate_left_of_the_callers_time(
    start: Start, registry: Registry, patience_s: list[float]
) -> None:
    with start(opened(registry), registry, poll_s=0.05, canary_share=0.5, deadline_s=4.0) as service:
        moody = Moody(opened(registry, "v2"), lambda: threading.Event().wait(3))
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Classifier, "open", classmethod(lambda *_, **__: moody))
            nominate(registry, "v2")
            wait_until(lambda: candidate(service) is not None)
        assert ask(service, next(f"user-{number}" for number in range(40) if is_chosen(f"user-{number}", "v2", 0.5))) == "v1"
    to_candidate, to_production = patience_s
    assert to_candidate <= 2
    assert to_production <= 2
