from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from benchmarks.log.review import TRUTH, measure, with_score
from fastapi.testclient import TestClient
from tests.conftest import tiny_rows
from tests.drift.conftest import NOON

from pigeonhole.bundle import Bundle
from pigeonhole.drift.feedback import live_accuracy
from pigeonhole.drift.review import Judged, by_label, estimate, is_drawn, probability_drawn, queue
from pigeonhole.drift.service import create_app
from pigeonhole.drift.settings import Settings
from pigeonhole.drift.window import read_reference
from pigeonhole.metrics import wilson_interval
from pigeonhole.prediction_log import Feedback, LogWriter, Record, new_id

HOUR = timedelta(hours=1)
TEXTS = [text for text, _ in tiny_rows()]

RecordsOf = Callable[..., list[Record]]


def test_the_probability_goes_from_the_audit_share_to_1_as_the_doubt_grows() -> None:
    drawn = [probability_drawn(with_score(score), 0.02) for score in (1.0, 0.9, 0.75, 0.6, 0.5)]
    assert (drawn[0], drawn[-1]) == (0.02, 1.0)
    assert drawn == sorted(drawn)
    assert drawn[2] == pytest.approx(0.02 + 0.98 * 0.5**4)
    assert probability_drawn(msgspec.structs.replace(with_score(1.0), probabilities={"only": 1.0}), 0.02) == 0.02


def test_as_many_are_drawn_as_the_probabilities_say_whatever_the_log_s_own_sample_is() -> None:
    records = [with_score(0.7) for _ in range(4000)]
    expected = 4000 * probability_drawn(records[0], 0.02)
    assert sum(is_drawn(record, 0.02) for record in records) == pytest.approx(expected, abs=4 * expected**0.5)


def test_the_estimate_is_unbiased_and_its_interval_honest_where_the_plain_share_is_far_off() -> None:
    """Simulated worlds; more of them: benchmarks/log/review.py."""
    found = measure(audit_share=0.02, worlds=100)
    assert abs(found.estimate - TRUTH) < 3 * found.standard_error + 0.005
    assert found.plain_share < 0.58
    assert found.covered >= 0.9


def test_equal_probabilities_give_the_plain_share_and_wilsons_interval() -> None:
    judged = [Judged(frozenset("a"), frozenset("a"), 0.5)] * 15 + [Judged(frozenset("a"), frozenset("b"), 0.5)] * 5
    expected = wilson_interval(15, 20)
    found = estimate(judged)
    assert (found["n"], found["effective_n"], found["accuracy"]) == (20, 20.0, pytest.approx(0.75))
    assert found["interval"] == pytest.approx([expected.low, expected.high])
    assert estimate([]) == {"n": 0, "effective_n": 0.0, "accuracy": None, "interval": [0.0, 1.0]}


def test_each_label_has_its_recall_and_its_precision() -> None:
    a, b = frozenset("a"), frozenset("b")
    judged = [
        Judged(a, a, 1.0),
        Judged(a, b, 0.5),
        Judged(b, b, 1.0),
    ]
    found = by_label(judged)
    assert found["a"]["recall"]["accuracy"] == 1.0
    assert found["a"]["precision"]["accuracy"] == pytest.approx(1 / 3)
    assert found["b"]["recall"]["accuracy"] == pytest.approx(1 / 3)
    assert found["b"]["precision"]["accuracy"] == 1.0


def test_of_several_labels_each_has_its_recall_and_its_precision() -> None:
    found = by_label([Judged(frozenset("ab"), frozenset("a"), 1.0), Judged(frozenset(), frozenset("b"), 1.0)])
    assert (found["a"]["recall"]["accuracy"], found["a"]["precision"]["accuracy"]) == (1.0, 1.0)
    assert (found["b"]["recall"]["accuracy"], found["b"]["precision"]["accuracy"]) == (0.0, 0.0)


def test_several_labels_are_drawn_by_how_sure_all_of_them_are_together() -> None:
    drawn = [probability_drawn(msgspec.structs.replace(with_score(score), labels=["a"]), 0.02) for score in (1.0, 0.75, 0.5, 0.1)]
    assert drawn == [0.02, pytest.approx(0.02 + 0.98 * 0.5**4), 1.0, 1.0]


def answered(settings: Settings, words: list[tuple[str, str]], source: str = "review") -> None:
    with LogWriter(settings.log, "feedback") as log:
        log.append(
            [
                Feedback(feedback_id=new_id(), at=NOON + 2 * HOUR, prediction_id=found, label=label, source=source)
                for found, label in words
            ]
        )


def test_the_queue_gives_what_nobody_has_reviewed_and_the_join_weighs_the_answers(
    settings: Settings, bundle: Bundle, records_of: RecordsOf, write_log: Callable[[list[Record]], None]
) -> None:
    records = records_of(TEXTS[:60])
    write_log([*records, *records_of(["other"], version="another")])
    reference = read_reference(bundle.url)
    drawn = {record.prediction_id for record in records if is_drawn(record, 0.3)}
    assert 5 < len(drawn) < 60
    span = (settings.log, NOON, NOON + HOUR, NOON + 24 * HOUR, reference)
    first = queue(*span, n=3, audit_share=0.3)
    assert (first["drawn"], first["waiting"], len(first["items"])) == (len(drawn), len(drawn), 3)
    item = first["items"][0]
    assert (item.source, item.reason in ("uncertain", "audit"), item.text) == ("review", True, None)
    answered(settings, [(each.prediction_id, each.label) for each in first["items"]])
    answered(settings, [(record.prediction_id, "billing") for record in records], source="agent")
    second = queue(*span, n=200, audit_share=0.3)
    assert {each.prediction_id for each in second["items"]} == drawn - {each.prediction_id for each in first["items"]}
    found: Any = live_accuracy(settings.log, NOON, NOON + HOUR, reference, NOON + 24 * HOUR, 0.3)["reviewed"]
    assert (found["n"], found["accuracy"]) == (3, 1.0)
    assert sum(each["recall"]["n"] for each in found["by_label"].values()) == 3


def test_words_of_the_queue_s_source_on_what_was_never_drawn_do_not_count(
    settings: Settings, bundle: Bundle, records_of: RecordsOf, write_log: Callable[[list[Record]], None]
) -> None:
    records = records_of(TEXTS[:20], probabilities={"billing": 1.0})
    write_log(records)
    never = [record for record in records if not is_drawn(record, 0.02)]
    answered(settings, [(record.prediction_id, "billing") for record in never])
    found: Any = live_accuracy(settings.log, NOON, NOON + HOUR, read_reference(bundle.url), NOON + 24 * HOUR)
    assert (found["n"], found["reviewed"]["n"], found["reviewed"]["accuracy"]) == (len(never), 0, None)


def test_the_queue_says_why_it_asks_and_its_order_is_not_that_of_time(
    settings: Settings, bundle: Bundle, records_of: RecordsOf, write_log: Callable[[list[Record]], None]
) -> None:
    doubt, sure = {"billing": 0.4, "delivery": 0.4, "account": 0.2}, {"billing": 1.0, "delivery": 0.0, "account": 0.0}
    write_log([*records_of(TEXTS[:20], probabilities=doubt, score=0.4), *records_of(TEXTS[:20], probabilities=sure, score=1.0)])
    span = (settings.log, NOON, NOON + HOUR, NOON + HOUR, read_reference(bundle.url))
    items = queue(*span, n=40, audit_share=0.49)["items"]
    assert {(item.score, item.reason) for item in items} == {(0.4, "uncertain"), (1.0, "audit")}
    ids = [item.prediction_id for item in items]
    assert ids == sorted(ids, key=lambda found: found[::-1])
    assert ids != sorted(ids)


@pytest.mark.parametrize("query", ["n=0", "n=201", "n=many", "hours=-1", "zebra=1"])
def test_a_query_that_cannot_be_meant_is_refused(query: str, settings: Settings) -> None:
    client = TestClient(create_app(settings), raise_server_exceptions=False)
    assert client.get("/review").json()["items"] == []
    refused = client.get(f"/review?{query}")
    assert (refused.status_code, refused.headers["content-type"]) == (422, "application/problem+json")
    assert "allowed are n (1 to 200) and hours" in refused.json()["detail"]
