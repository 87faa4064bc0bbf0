"""The shadow alias, and a shadow that disagrees, sleeps, hangs or crashes beside a service that answers."""

import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
from tests.conftest import wait_until
from tests.serving.conftest import OTHER_LABELS, Running, Start, opened
from tests.serving.test_telemetry import samples
from tests.test_classifier import count_for_ever

from pigeonhole.bundle import open_bundle
from pigeonhole.classifier import Classifier, Prediction
from pigeonhole.prediction_log import LogWriter
from pigeonhole.registry import Registry
from pigeonhole.serving import shadow
from pigeonhole.serving.service import Service
from pigeonhole.serving.settings import Settings
from pigeonhole.serving.shadow import Shadow


def cast(registry: Registry, version: str | None) -> None:
    registry.set_alias("words", "shadow", version, "test", expected=registry.alias("words", "shadow").version)


def report(service: Running) -> dict[str, object] | None:
    found: dict[str, object] | None = service.http.get("/model").json()["shadow"]
    return found


def test_the_shadow_is_compared_and_answers_nobody(start: Start, registry: Registry) -> None:
    with start(opened(registry), registry, poll_s=0.05) as service:
        assert report(service) is None
        cast(registry, "v2")
        wait_until(lambda: report(service) is not None)
        answers = [service.http.post("/predict", json={"texts": ["parcel", "refund"]}).json() for _ in range(5)]
        assert {answer["model_version"] for answer in answers} == {"v1"}
        service.http.post("/explain", json={"text": "my parcel"})
        wait_until(lambda: samples(service)["pigeonhole_shadow_texts_total{outcome=differed}"] == 10)
        assert report(service) == {
            "model_version": "v2",
            "is_asked": True,
            "texts": {"agreed": 0, "differed": 10, "failed": 0, "dropped": 0},
            "agreement": 0.0,
            "mean_score_difference": 0.0,
            "differed_by_label": {"delivery": 5, "refund": 5},
        }
        found = samples(service)
        assert found["pigeonhole_model_info{model=words,role=shadow,version=v2}"] == 1
        assert found["pigeonhole_rollout_behind{alias=shadow}"] == 0
        assert found["pigeonhole_shadow_score_difference_count{}"] == 10
        assert {record.version for record in service.records()} == {"v1"}
        assert set(OTHER_LABELS) & {record.label for record in service.records()} == set()
        cast(registry, None)
        wait_until(lambda: report(service) is None)
        assert "pigeonhole_model_info{model=words,role=shadow,version=v2}" not in samples(service)


def test_a_broken_shadow_is_refused_and_the_one_before_it_is_asked_no_more(start: Start, registry: Registry) -> None:
    with start(opened(registry), registry, poll_s=0.05) as service:
        cast(registry, "v2")
        wait_until(lambda: report(service) is not None)
        cast(registry, "broken")
        wait_until(lambda: report(service) is None)
        found = samples(service)
        assert found["pigeonhole_rollouts_total{alias=shadow,outcome=refused}"] == 1
        assert found["pigeonhole_rollout_behind{alias=shadow}"] == 1
        assert service.http.post("/predict", json={"text": "parcel"}).json()["model_version"] == "v1"


class Moody(Classifier):
    """Does something else before it answers."""

    def __init__(self, inner: Classifier, mood: Callable[[], object]) -> None:
        self.__dict__.update(inner.__dict__)
        self.mood = mood

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        self.mood()
        return super().predict(texts)


class Asleep:
    """A mood: from when it is asked until somebody wakes it."""

    def __init__(self) -> None:
        self.asked, self.wake = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.asked.set()
        self.wake.wait(20)


class Notes:
    """What a shadow counts."""

    def __init__(self) -> None:
        self.outcomes: dict[str, int] = dict.fromkeys(shadow.OUTCOMES, 0)

    def note(self, outcome: str, texts: int) -> None:
        self.outcomes[outcome] += texts


@pytest.fixture
def notes() -> Notes:
    return Notes()


def started(notes: Notes, classifier: Classifier) -> Shadow:
    found = Shadow(notes.note, lambda _: None)
    found.fill(classifier)
    found.start()
    return found


def test_a_shadow_that_sleeps_drops_what_it_cannot_hear_and_nobody_waits(classifier: Classifier, notes: Notes) -> None:
    wake = threading.Event()
    sleeping = started(notes, Moody(classifier, lambda: wake.wait(20)))
    texts = ["parcel", "refund"]
    answered = classifier.predict(texts)
    for _ in range(shadow.MAX_QUEUED + 50):
        sleeping.offer(texts, answered)
    assert notes.outcomes["dropped"] >= 2 * 49
    assert notes.outcomes["agreed"] == 0
    wake.set()
    wait_until(lambda: notes.outcomes["agreed"] + notes.outcomes["dropped"] == 2 * (shadow.MAX_QUEUED + 50))
    sleeping.stop()


def test_a_shadow_rests_for_three_times_as_long_as_it_worked(
    classifier: Classifier, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    rests: list[float] = []
    clock = SimpleNamespace(perf_counter=itertools.count(0.0, 2.0).__next__, sleep=rests.append)
    monkeypatch.setattr(shadow, "time", clock)
    working = started(notes, classifier)
    working.offer(["parcel"], classifier.predict(["parcel"]))
    wait_until(lambda: len(rests) == 1)
    working.stop()
    assert rests == [6.0]


def test_a_shadow_that_comes_while_production_is_replaced_stays(registry: Registry, tmp_path: Path) -> None:
    """Two pollers move the two of them."""
    stop = threading.Event()
    with LogWriter(str(tmp_path / "log")) as log, LogWriter(str(tmp_path / "log"), "feedback") as feedback:
        service = Service(Settings(), opened(registry), log, feedback)

        def swap() -> None:
            while not stop.is_set():
                service.swap(service.classifier)

        production = threading.Thread(target=swap)
        production.start()
        shadows = [opened(registry), opened(registry, "v2")]
        stayed = []
        for number in range(2000):
            service.seat_shadow(shadows[number % 2])
            time.sleep(0)
            stayed.append(service.shadow.classifier is shadows[number % 2])
        stop.set()
        production.join()
    assert all(stayed)


def test_a_report_holds_nothing_of_the_time_before_it(classifier: Classifier, notes: Notes) -> None:
    """Neither what waits, nor what the shadow is busy with, when production or the shadow is replaced."""
    slow = started(notes, Moody(classifier, sleep := Asleep()))
    answered = classifier.predict(["parcel"])
    for _ in range(5):
        slow.offer(["parcel"], answered)
    assert sleep.asked.wait(20)
    slow.fill(classifier)
    sleep.wake.set()
    slow.offer(["refund"] * 2, classifier.predict(["refund"] * 2))
    wait_until(lambda: notes.outcomes["agreed"] >= 3)
    found = slow.report()
    assert found is not None
    assert found["texts"]["agreed"] == 2
    slow.stop()


def test_what_a_replaced_version_still_answers_is_not_compared(start: Start, registry: Registry) -> None:
    wake = threading.Event()
    old = Moody(opened(registry), lambda: wake.wait(20))
    with start(old, registry, poll_s=0.05) as service, ThreadPoolExecutor(4) as pool:
        cast(registry, "v2")
        wait_until(lambda: report(service) is not None)
        late = [pool.submit(service.http.post, "/predict", json={"text": "parcel"}) for _ in range(4)]
        wait_until(lambda: samples(service)["pigeonhole_in_flight{}"] == 5)  # and the scrape itself
        registry.set_alias("words", "production", "v2", "test", expected="v1")
        wait_until(lambda: service.http.get("/ready").json()["model_version"] == "v2")
        wake.set()
        assert {answer.result().json()["model_version"] for answer in late} == {"v1"}
        assert service.http.post("/predict", json={"text": "parcel"}).json()["model_version"] == "v2"
        wait_until(lambda: report(service)["texts"]["agreed"] == 1)  # type: ignore[index]
        assert report(service)["texts"]["differed"] == 0  # type: ignore[index]


def crash() -> None:
    raise SystemExit("below Python's exceptions")


def test_a_shadow_that_crashes_three_times_running_is_asked_no_more(classifier: Classifier, notes: Notes) -> None:
    crashing = started(notes, Moody(classifier, crash))
    answered = classifier.predict(["parcel"])
    for number in range(1, shadow.MAX_FAILURES + 1):
        crashing.offer(["parcel"], answered)
        wait_until(lambda number=number: notes.outcomes["failed"] == number)  # type: ignore[misc]
    crashing.offer(["parcel"], answered)
    found = crashing.report()
    assert found is not None
    assert (found["is_asked"], found["texts"]["failed"]) == (False, shadow.MAX_FAILURES)
    crashing.fill(classifier)
    crashing.offer(["parcel"], answered)
    wait_until(lambda: notes.outcomes["agreed"] == 1)
    crashing.stop()


def test_of_a_shadow_that_crashes_what_waited_already_is_not_asked_either(classifier: Classifier, notes: Notes) -> None:
    wake = threading.Event()

    def wait_and_crash() -> None:
        wake.wait(20)
        crash()

    crashing = started(notes, Moody(classifier, wait_and_crash))
    answered = classifier.predict(["parcel"])
    for _ in range(10):
        crashing.offer(["parcel"], answered)
    wake.set()
    wait_until(lambda: sum(notes.outcomes.values()) == 10)
    assert (notes.outcomes["failed"], notes.outcomes["dropped"]) == (shadow.MAX_FAILURES, 10 - shadow.MAX_FAILURES)
    crashing.stop()


def test_a_shadow_that_is_stopped_asks_nothing_of_what_waits(classifier: Classifier, notes: Notes) -> None:
    sleeping = started(notes, Moody(classifier, sleep := Asleep()))
    answered = classifier.predict(["parcel"])
    sleeping.offer(["parcel"], answered)
    assert sleep.asked.wait(20)
    for _ in range(shadow.MAX_QUEUED):  # no room for a word at the end
        sleeping.offer(["parcel"], answered)
    sleeping.stop()
    sleep.wake.set()
    sleeping._thread.join(60)
    assert not sleeping._thread.is_alive()
    assert notes.outcomes["agreed"] == 1


def test_failures_that_do_not_follow_one_another_are_forgiven(classifier: Classifier, notes: Notes) -> None:
    moods: itertools.cycle[Callable[[], object]] = itertools.cycle([crash, lambda: None])

    def waver() -> None:
        next(moods)()

    wavering = started(notes, Moody(classifier, waver))
    answered = classifier.predict(["parcel"])
    for number in range(2 * shadow.MAX_FAILURES):
        wavering.offer(["parcel"], answered)
        wait_until(lambda number=number: sum(notes.outcomes.values()) == number + 1)  # type: ignore[misc]
    found = wavering.report()
    assert found is not None
    assert (found["is_asked"], found["texts"]["failed"], found["texts"]["agreed"]) == (True, 3, 3)
    wavering.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: a thread has a niceness of its own")
def test_a_shadow_works_when_nobody_else_does(classifier: Classifier, notes: Notes) -> None:
    working = started(notes, classifier)
    working.offer(["parcel"], classifier.predict(["parcel"]))
    wait_until(lambda: notes.outcomes["agreed"] == 1)
    thread = working._thread.native_id
    assert thread is not None
    assert os.getpriority(os.PRIO_PROCESS, thread) == shadow.NICENESS
    working.stop()


def test_a_forward_pass_that_never_ends_is_cut_off_and_the_next_one_runs(
    words_bundle: Path, tmp_path: Path, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow, "CAP_S", 0.2)
    bundle = open_bundle(str(words_bundle))
    classifier = Classifier.open(bundle)
    endless = Classifier.load(bundle)
    model = onnx.load(words_bundle / "model.onnx")
    count_for_ever(model)
    onnx.save(model, tmp_path / "endless.onnx")
    endless._session = type(endless._session)(str(tmp_path / "endless.onnx"))
    hanging = started(notes, endless)
    answered = classifier.predict(["parcel"])
    hanging.offer(["parcel"], answered)
    wait_until(lambda: notes.outcomes["failed"] == 1)
    endless._session = classifier._session
    hanging.offer(["parcel"], answered)
    wait_until(lambda: notes.outcomes["agreed"] == 1)
    hanging.stop()


def test_answers_are_the_same_beside_a_shadow_that_sleeps_or_crashes(start: Start, registry: Registry) -> None:
    def ask(service: Running) -> list[dict[str, float]]:
        answers = [service.http.post("/predict", json={"texts": ["parcel", "my refund"]}) for _ in range(100)]
        assert {answer.status_code for answer in answers} == {200}
        return [found["probabilities"] for answer in answers for found in answer.json()["predictions"]]

    with start(opened(registry)) as service:
        alone = ask(service)
    moods: list[Callable[[], object]] = [crash, lambda: time.sleep(3)]
    for mood in moods:
        with start(opened(registry), registry, poll_s=0.05) as service:
            with pytest.MonkeyPatch.context() as patched:
                moody = Moody(opened(registry, "v2"), mood)
                patched.setattr(Classifier, "open", classmethod(lambda *_, found=moody, **__: found))
                cast(registry, "v2")
                wait_until(lambda: report(service) is not None)
            assert ask(service) == alone
        cast(registry, None)
