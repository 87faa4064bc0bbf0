from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from fastapi.testclient import TestClient
from tests.conftest import tiny_rows
from tests.keyword_bundle import QUEUES, keyword_bundle, keyword_rows

from pigeonhole import storage
from pigeonhole.bundle import Bundle, seal
from pigeonhole.drift.review import is_drawn, probability_drawn
from pigeonhole.drift.service import create_app
from pigeonhole.drift.settings import Settings
from pigeonhole.prediction_log import Feedback, LogWriter, Record, new_id
from pigeonhole.registry import Registry

TEXTS = [text for text, _ in tiny_rows()]
RecordsOf = Callable[..., list[Record]]


@pytest.fixture
def client(settings: Settings) -> TestClient:
    return TestClient(create_app(settings))


def test_versions_come_with_their_aliases_and_all_that_was_decided(
    settings: Settings, client: TestClient, bundle: Bundle
) -> None:
    name, version = bundle.manifest.name, bundle.manifest.version
    Registry(settings.registry).note_refusal(name, "production", "20990101", "too many flips", "reject", by="gate")
    found = client.get("/versions").json()
    assert (found["model"], found["aliases"]) == (name, {"production": version})
    assert [(each["version"], each["aliases"]) for each in found["versions"]] == [(version, ["production"])]
    assert found["versions"][0]["accuracy"] == bundle.manifest.metrics["test"]["accuracy"]
    latest = found["history"][0]
    assert (latest["action"], latest["refused"], latest["by"]) == ("reject", "20990101", "gate")


def test_a_version_that_cannot_be_read_hides_no_other_one(
    settings: Settings, client: TestClient, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    registry, name = Registry(settings.registry), bundle.manifest.name
    broken = Path(storage.local_path(registry.version_url(name, "v0")) or "")
    broken.mkdir()
    (broken / "manifest.json").write_bytes(bundle.path("manifest.json").read_bytes().replace(b"account", b"amounts"))
    found = client.get("/versions").json()
    assert [each["version"] for each in found["versions"]] == [bundle.manifest.version]
    assert "manifest.json was changed after it was sealed" in found["unreadable"]["v0"]
    asked = client.get("/versions/v0")
    assert (asked.status_code, asked.json()["detail"]) == (500, "this failed; the service's own log says why")
    assert "v0: manifest.json was changed after it was sealed" in capsys.readouterr().err


def test_a_version_tells_its_card_metrics_and_held_out_rows(client: TestClient, bundle: Bundle) -> None:
    found = client.get(f"/versions/{bundle.manifest.version}").json()
    assert found["card"].startswith("# tiny")
    assert found["metrics"]["test"]["n"] == found["held_out"]["n"] == 30
    assert {"upper case", "lower case", "a typo", "politeness"} <= set(found["metrics"]["behaviour"])
    right = sum(cell["n"] for cell in found["held_out"]["confusion"] if cell["true_label"] == cell["label"])
    assert right / 30 == pytest.approx(found["metrics"]["test"]["accuracy"])
    assert "config" not in found["provenance"]


def test_texts_are_shown_where_the_registry_keeps_them_and_nowhere_else(
    settings: Settings, bundle: Bundle, tiny_run: dict[str, str]
) -> None:
    path = f"/versions/{bundle.manifest.version}/rows?true_label=billing&label=billing"
    bare = TestClient(create_app(settings)).get(path).json()
    assert (bare["has_texts"], bare["rows"][0]["text"]) == (False, None)
    kept = Registry(tiny_run["bundle"].removeprefix("file://").partition("/models/")[0])
    texts = kept.test_texts(bundle.manifest.name, bundle.manifest.version)
    assert texts is not None
    Registry(settings.registry).keep_test_texts(bundle.manifest.name, bundle.manifest.version, texts)
    rows = TestClient(create_app(settings)).get(path).json()["rows"]
    assert {(row["text"], "billing") for row in rows} <= set(tiny_rows())


def test_a_version_compared_with_itself_has_no_flips(client: TestClient, bundle: Bundle) -> None:
    version = bundle.manifest.version
    found = client.get(f"/compare?before={version}&after={version}").json()
    assert (found["n"], found["now_wrong"], found["now_right"]) == (30, {"n": 0, "rows": []}, {"n": 0, "rows": []})


def test_a_bundle_without_held_out_rows_has_none_to_show(settings: Settings, tmp_path: Path) -> None:
    url = keyword_bundle(tmp_path / "keywords", "2").url
    client = TestClient(create_app(replace(settings, bundle=url)))
    assert client.get("/versions/2").json()["held_out"] is None
    assert client.get("/versions/2/rows").status_code == 422


def test_one_bundle_without_a_registry_is_the_one_version(settings: Settings, bundle: Bundle) -> None:
    client = TestClient(create_app(replace(settings, bundle=str(bundle.folder))))
    assert [each["version"] for each in client.get("/versions").json()["versions"]] == [bundle.manifest.version]
    assert client.get(f"/versions/{bundle.manifest.version}").json()["held_out"]["n"] == 30
    assert client.get("/versions/another").status_code == 404


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/versions/nope", 404),
        ("/versions/..%2f..", 404),
        ("/compare?before=nope", 422),
        ("/compare?before=nope&after=nope", 404),
        ("/traffic?hours=0", 422),
        ("/traffic?steps=1000", 422),
        ("/traffic?n=1", 422),
        ("/traffic?hours=1&hours=2", 422),
        ("/compare?before=v1&after=v1&after=v2", 422),
    ],
)
def test_a_wrong_question_is_refused_with_what_is_allowed(client: TestClient, path: str, status: int) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")


def test_traffic_counts_texts_labels_latency_and_feedback_step_by_step(
    settings: Settings, client: TestClient, records_of: RecordsOf
) -> None:
    now = datetime.now(UTC)
    old, new = records_of(TEXTS[:4], now - timedelta(minutes=45)), records_of(TEXTS[4:10], now - timedelta(minutes=5))
    with LogWriter(settings.log) as log:
        log.append([*old, *new])
    wrong = next(label for label in ("billing", "delivery") if label != new[0].label)
    words = [(old[0], old[0].label), (new[0], new[0].label), (new[0], wrong)]
    with LogWriter(settings.log, "feedback") as log:
        for number, (record, label) in enumerate(words):
            at = now - timedelta(seconds=10 - number)
            word = Feedback(feedback_id=str(9 - number), at=at, prediction_id=record.prediction_id, label=label, source="t")
            log.append([word])
    found = client.get("/traffic?hours=1&steps=2").json()
    first, second = found["steps"]
    assert (found["texts"], first["texts"], second["texts"]) == (10, 4, 6)
    assert sum(first["labels"].values()) == 4
    assert first["latency_ms"] == {"p50": 1.0, "p95": 1.0, "p99": 1.0}
    assert second["mean_score"] == pytest.approx(sum(record.score for record in new) / 6)
    assert [(step["judged"], step["accuracy"]) for step in (first, second)] == [(1, 1.0), (1, 0.0)]


def test_traffic_weighs_answers_to_the_review_queue_and_leaves_out_labels_that_a_version_does_not_have(
    settings: Settings, client: TestClient, records_of: RecordsOf
) -> None:
    """Of 2,000 sure and right predictions a few are asked for, of 40 doubtful and wrong ones nearly all."""
    now = datetime.now(UTC)
    one = records_of(TEXTS[:1], now - timedelta(minutes=5))[0]
    wrong = next(label for label in one.probabilities if label != one.label)
    sure, doubtful = ({**dict.fromkeys(one.probabilities, 0.0), one.label: p, wrong: 1 - p} for p in (1.0, 0.51))
    records = [
        *(msgspec.structs.replace(one, prediction_id=new_id(), probabilities=sure, score=1.0) for _ in range(2000)),
        *(msgspec.structs.replace(one, prediction_id=new_id(), probabilities=doubtful, score=0.51) for _ in range(40)),
    ]
    said = [(record, one.label if record.score == 1.0 else wrong) for record in records if is_drawn(record, settings.audit_share)]
    strange = msgspec.structs.replace(one, prediction_id=new_id())
    with LogWriter(settings.log) as log:
        log.append([*records, strange])
    with LogWriter(settings.log, "feedback") as log:
        for record, label in [*said, (strange, "zebra")]:
            word = Feedback(feedback_id=new_id(), at=now, prediction_id=record.prediction_id, label=label, source="review")
            log.append([word])
    found = client.get("/traffic?hours=1&steps=1").json()
    [step] = found["steps"]
    weights = [(record.score == 1.0, 1 / probability_drawn(record, settings.audit_share)) for record, _ in said]
    expected = sum(weight for right, weight in weights if right) / sum(weight for _, weight in weights)
    assert sum(right for right, _ in weights) / len(said) < 0.8 < expected
    assert (step["judged"], found["unknown_labels"]) == (len(said), 1)
    assert step["accuracy"] == pytest.approx(expected)


def test_an_empty_log_is_steps_without_texts(client: TestClient) -> None:
    found = client.get("/traffic?hours=2&steps=3").json()
    assert (found["texts"], [step["texts"] for step in found["steps"]]) == (0, [0, 0, 0])
    assert found["steps"][0]["mean_score"] is None


def test_versions_come_newest_first_and_are_compared_in_the_order_that_was_asked(settings: Settings, tmp_path: Path) -> None:
    registry = Registry(str(tmp_path / "two"))
    for version, words in (("1", {**QUEUES, "charge": "delivery", "courier": "account"}), ("2", QUEUES)):
        bundle = keyword_bundle(tmp_path / version, version, words, held_out=keyword_rows())
        metrics = {"test": {"accuracy": 0.75, "macro_f1": 0.5, "n": 144}}
        manifest = seal(bundle.folder, msgspec.structs.replace(bundle.manifest, metrics=metrics))
        registry.publish(bundle.folder, manifest)
    registry.set_alias("keywords", "candidate", "1", "trained", expected=None)
    client = TestClient(create_app(replace(settings, registry=registry.url, model="keywords")))

    listed = client.get("/versions").json()
    about = {"created_at": "2025-01-01T00:00:00+00:00", "labels": 3, "accuracy": 0.75, "macro_f1": 0.5, "n": 144}
    assert listed["versions"] == [
        {"version": "2", **about, "aliases": []},
        {"version": "1", **about, "aliases": ["candidate"]},
    ]
    assert [(change["alias"], change["reason"]) for change in listed["history"]] == [("candidate", "trained")]

    found = client.get("/compare?before=1&after=2").json()
    assert (found["n"], found["now_wrong"]["n"], found["now_right"]["n"]) == (144, 0, 48)
    found = client.get("/compare?before=1&after=2&label=billing&n=3").json()
    assert (found["now_right"]["n"], len(found["now_right"]["rows"])) == (24, 3)
    found = client.get("/versions/1/rows?true_label=billing&label=delivery&n=3").json()
    assert (found["found"], len(found["rows"])) == (24, 3)
    assert [client.get(f"/versions/1/rows?label=delivery{more}").json()["found"] for more in ("", "&cell=extra")] == [48, 24]
