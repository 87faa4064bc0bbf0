"""The production alias moves while a real server is asked by many clients at once."""

import asyncio
import gc
import json
import logging
import shutil
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import httpx
import pytest
from tests.conftest import wait_until
from tests.keyword_bundle import keyword_bundle
from tests.serving.conftest import LABELS, OTHER_LABELS, Running, Start, opened

from pigeonhole import storage
from pigeonhole.bundle import Bundle, open_bundle
from pigeonhole.classifier import Classifier
from pigeonhole.errors import StorageError
from pigeonhole.prediction_log import LogWriter
from pigeonhole.registry import Registry
from pigeonhole.serving.rollout import Rollout
from pigeonhole.serving.schemas import Question
from pigeonhole.serving.service import Service
from pigeonhole.serving.settings import Settings

LABELS_OF = {"v1": set(LABELS), "v2": set(OTHER_LABELS)}


def move(registry: Registry, version: str | None) -> None:
    registry.set_alias("words", "production", version, "test", expected=registry.alias("words", "production").version)


def wait_for(service: Running, version: str) -> float:
    began = time.monotonic()
    while service.http.get("/ready").json()["model_version"] != version:
        assert time.monotonic() - began < 60
        time.sleep(0.01)
    return time.monotonic() - began


def ask_until(stop: threading.Event, url: str, texts: int, answers: list[httpx.Response]) -> None:
    with httpx.Client(base_url=url, timeout=20) as http:
        while not stop.is_set():
            answers.append(http.post("/predict", json={"texts": ["where is my parcel"] * texts}))


def test_under_load_no_request_fails_and_every_answer_is_of_one_version(start: Start, registry: Registry) -> None:
    answers: list[httpx.Response] = []
    stop = threading.Event()
    with start(opened(registry), registry, poll_s=0.05) as service:
        clients = [threading.Thread(target=ask_until, args=(stop, service.url, texts, answers)) for texts in (1, 1, 3, 100, 256)]
        for client in clients:
            client.start()
        swapped = 0
        for version in ("v2", "v1", "broken", "v2", "v1", "v2"):
            seen = len(answers)
            move(registry, version)
            if version != "broken":
                wait_for(service, version)
                swapped += 1
            counted = 'outcome="refused"} 1.0' if version == "broken" else f'outcome="swapped"}} {swapped}.0'
            wait_until(lambda: len(answers) >= seen + 10 and counted in service.http.get("/metrics").text)  # noqa: B023
        stop.set()
        for client in clients:
            client.join()
        metrics = service.http.get("/metrics").text
        recorded = {record.prediction_id: record for record in service.records()}
    assert {answer.status_code for answer in answers} == {200}
    bodies: list[dict[str, Any]] = [answer.json() for answer in answers]
    assert {body["model_version"] for body in bodies} == {"v1", "v2"}
    for body in bodies:
        for prediction in body["predictions"]:
            record = recorded.pop(prediction["prediction_id"])
            assert record.version == body["model_version"]
            assert set(prediction["probabilities"]) == set(record.probabilities) == LABELS_OF[record.version]
            assert prediction["label"] == record.label == ("delivery" if record.version == "v1" else "post")
    assert recorded == {}
    assert 'pigeonhole_rollouts_total{alias="production",outcome="swapped"} 5.0' in metrics
    assert 'pigeonhole_rollouts_total{alias="production",outcome="refused"} 1.0' in metrics
    assert 'pigeonhole_model_info{model="words",role="production",version="v2"} 1.0' in metrics
    assert 'version="v1"' not in metrics


def test_a_way_back_is_seen_within_five_seconds_at_the_default_pace(start: Start, registry: Registry) -> None:
    with start(opened(registry), registry) as service:
        move(registry, "v2")
        wait_for(service, "v2")
        move(registry, "v1")
        assert wait_for(service, "v1") < 5
        assert set(service.http.post("/predict", json={"text": "parcel"}).json()["probabilities"]) == set(LABELS)
        assert service.http.get("/model").json()["model_version"] == "v1"


@pytest.fixture
def service(registry: Registry, tmp_path: Path) -> Iterator[Service]:
    """Not started: it is enough for a rollout that is looked through by hand."""
    with LogWriter(str(tmp_path / "log")) as log, LogWriter(str(tmp_path / "log"), "feedback") as feedback:
        yield Service(Settings(), opened(registry), log, feedback)


def sample(service: Service, name: str) -> float:
    line = next(line for line in service.telemetry.exposition().decode().splitlines() if line.startswith(f"{name} "))
    return float(line.rpartition(" ")[2])


def test_a_broken_version_is_refused_once_and_told_until_the_alias_moves(
    registry: Registry, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    rollout = Rollout(registry, service, 1)
    move(registry, "broken")
    for _ in range(3):
        rollout.look()
    assert service.classifier.manifest.version == "v1"
    refused = (
        f"words: version broken is refused for production: {registry.version_url('words', 'broken')}: "
        "model.onnx was changed after it was sealed (its sha256 differs)"
    )
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        refused,
        "words: v1 goes on",
    ]
    assert sample(service, 'pigeonhole_rollouts_total{alias="production",outcome="refused"}') == 1
    assert sample(service, 'pigeonhole_rollout_behind{alias="production"}') == 1
    move(registry, "v1")
    move(registry, "broken")
    rollout.look()
    assert sample(service, 'pigeonhole_rollouts_total{alias="production",outcome="refused"}') == 2
    move(registry, "v2")
    rollout.look()
    assert service.classifier.manifest.version == "v2"
    assert caplog.messages[-1] == "words: version v2 is in production now, after v1"
    assert sample(service, 'pigeonhole_rollout_behind{alias="production"}') == 0


def test_a_version_whose_library_panics_is_refused_and_the_rollout_goes_on(
    registry: Registry, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Panic(BaseException):  # as pyo3's, which nobody can import
        pass

    def panic(*_: object, **__: object) -> None:
        raise Panic("no entry found for key")

    rollout = Rollout(registry, service, 1)
    move(registry, "v2")
    with monkeypatch.context() as broken:
        broken.setattr(Classifier, "open", panic)
        rollout.look()
    assert service.classifier.manifest.version == "v1"
    assert sample(service, 'pigeonhole_rollouts_total{alias="production",outcome="refused"}') == 1


def test_a_bundle_that_lies_under_another_name_is_refused(
    registry: Registry, service: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    versions = tmp_path / "registry" / "models" / "words" / "versions"
    shutil.copytree(versions / "v2", versions / "v3")
    move(registry, "v3")
    Rollout(registry, service, 1).look()
    assert service.classifier.manifest.version == "v1"
    assert "v3: the manifest says words v2; a version lies where it was published" in caplog.messages[0]


def test_without_a_production_version_the_one_that_answers_goes_on(
    registry: Registry, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    rollout = Rollout(registry, service, 1)
    for _ in range(2):
        move(registry, None)
        rollout.look()
    assert service.classifier.manifest.version == "v1"
    assert caplog.messages == ["words: no version is in production any more", "words: v1 goes on"] * 2
    assert sample(service, 'pigeonhole_rollout_behind{alias="production"}') == 0


def test_a_registry_that_cannot_be_read_is_said_once_and_tried_again(
    registry: Registry, service: Service, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(url: str) -> bytes:
        raise StorageError(f"{url}: away")

    rollout = Rollout(registry, service, 1)
    move(registry, "v2")
    with monkeypatch.context() as network:
        network.setattr(storage, "read", away)
        for _ in range(3):
            rollout.look()
    assert len(caplog.messages) == 1
    assert sample(service, 'pigeonhole_rollouts_total{alias="production",outcome="unreachable"}') == 3
    rollout.look()
    assert service.classifier.manifest.version == "v2"


def test_an_alias_that_cannot_be_understood_is_said_once_and_tried_again(
    registry: Registry, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    rollout = Rollout(registry, service, 1)
    move(registry, "v2")
    alias = Path(registry.url) / "models" / "words" / "aliases" / "production.json"
    kept = alias.read_bytes()
    alias.write_bytes(kept[:20])
    for _ in range(3):
        rollout.look()
    assert len(caplog.messages) == 1
    assert "production.json" in caplog.text
    assert sample(service, 'pigeonhole_rollouts_total{alias="production",outcome="unreachable"}') == 3
    alias.write_bytes(kept)
    rollout.look()
    assert service.classifier.manifest.version == "v2"


def test_the_old_model_is_gone_after_the_swap_even_if_nobody_asks_the_new_one(registry: Registry, service: Service) -> None:
    async def ask_then_swap() -> None:
        service.start()
        await service.answer(Question(["parcel"], None, "one"), "r-1", time.perf_counter(), 10)
        move(registry, "v2")
        Rollout(registry, service, 1).look()
        while old() is not None:  # the last batch's frame ends a moment after its answer
            assert time.monotonic() < soon
            await asyncio.sleep(0.01)
            gc.collect()
        await service.stop()

    soon = time.monotonic() + 60
    old = weakref.ref(service.classifier)
    asyncio.run(ask_then_swap())


def test_the_copy_of_a_remote_bundle_does_not_stay_on_the_disk(
    registry: Registry, tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = fsspec.filesystem("memory")
    source = tmp_path / "registry" / "models" / "words" / "versions" / "v2"
    for file in source.iterdir():
        remote.pipe_file(f"/rollout/{file.name}", file.read_bytes())
    folders: list[Path] = []

    def watched(url: str, models: Any) -> Any:
        assert models == "served"
        found = open_bundle("memory://rollout", models)
        folders.append(found.folder)
        assert found.path("model.onnx").exists()
        return found

    monkeypatch.setattr("pigeonhole.serving.rollout.open_bundle", watched)
    move(registry, "v2")
    Rollout(registry, service, 1).look()
    assert service.classifier.manifest.version == "v2"
    assert service.classifier.predict(["parcel"])[0].label == "post"
    assert [folder.exists() for folder in folders] == [False]


def test_questions_to_two_models_of_other_labels_are_each_computed_once(service: Service, tmp_path: Path) -> None:
    """What a retraining with one more label puts in production."""
    other = Classifier.open(keyword_bundle(tmp_path / "keywords", "v2", {"parcel": "delivery", "refund": "refund"}))
    bodies = asyncio.run(asked_around_a_swap(service, other))
    labels = [set(prediction["probabilities"]) for body in bodies for prediction in body["predictions"][:1]]
    assert labels == [set(LABELS), set(LABELS), {"delivery", "refund"}]
    assert sample(service, "pigeonhole_batch_texts_sum") == 9


async def asked_around_a_swap(service: Service, other: Classifier) -> list[dict[str, Any]]:
    def ask() -> "asyncio.Task[bytes]":
        return asyncio.create_task(service.answer(Question(["my parcel"] * 3, None, "many"), "r-1", time.perf_counter(), 10))

    before = [ask() for _ in range(2)]
    await asyncio.sleep(0)
    service.swap(other)
    after = ask()
    await asyncio.sleep(0)
    service.start()
    found = await asyncio.gather(*before, after)
    await service.stop()
    return [json.loads(body) for body in found]


def test_questions_to_both_models_in_one_batch_are_each_answered_by_their_own(registry: Registry, service: Service) -> None:
    bodies = asyncio.run(asked_around_a_swap(service, opened(registry, "v2")))
    assert [body["model_version"] for body in bodies] == ["v1", "v1", "v2"]
    labels = [{prediction["label"] for prediction in body["predictions"]} for body in bodies]
    assert labels == [{"delivery"}, {"delivery"}, {"post"}]
    assert sample(service, "pigeonhole_batch_texts_sum") == 9
    assert sample(service, "pigeonhole_batch_texts_count") == 2


def test_a_version_whose_files_cannot_be_had_for_now_is_not_refused_and_is_tried_again(
    registry: Registry, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(url: str, models: str) -> Bundle:
        raise StorageError(f"{url}: away")

    rollout = Rollout(registry, service, threads=1)
    move(registry, "v2")
    with monkeypatch.context() as patched:
        patched.setattr("pigeonhole.serving.rollout.open_bundle", away)
        rollout.look()
    assert service.classifier.manifest.version == "v1"
    assert sample(service, 'pigeonhole_rollouts_total{alias="production",outcome="refused"}') == 0
    assert sample(service, 'pigeonhole_rollout_behind{alias="production"}') == 1
    rollout.look()
    assert service.classifier.manifest.version == "v2"
