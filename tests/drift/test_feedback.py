from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import pytest
from tests.conftest import tiny_rows
from tests.drift.conftest import NOON

from pigeonhole.bundle import Bundle
from pigeonhole.drift.feedback import live_accuracy
from pigeonhole.drift.settings import Settings
from pigeonhole.drift.window import Reference, read_reference
from pigeonhole.metrics import wilson_interval
from pigeonhole.prediction_log import Feedback, LogWriter, Record, new_id

HOUR = timedelta(hours=1)
TEXTS = [text for text, _ in tiny_rows()]


@pytest.fixture
def reference(bundle: Bundle) -> Reference:
    return read_reference(bundle.url)


@pytest.fixture
def give(settings: Settings) -> Callable[..., None]:
    def write(words: Sequence[tuple[str, str]], source: str = "audit", at: datetime = NOON + 2 * HOUR) -> None:
        with LogWriter(settings.log, "feedback") as log:
            log.append(
                [
                    Feedback(feedback_id=new_id(), at=at + timedelta(seconds=i), prediction_id=found, label=label, source=source)
                    for i, (found, label) in enumerate(words)
                ]
            )

    return write


def measure(settings: Settings, reference: Reference) -> dict[str, object]:
    return live_accuracy(settings.log, NOON, NOON + HOUR, reference, NOON + 24 * HOUR)


def test_accuracy_comes_with_wilsons_interval_for_all_for_each_label_and_each_source(
    settings: Settings,
    reference: Reference,
    records_of: Callable[..., list[Record]],
    write_log: Callable[[list[Record]], None],
    give: Callable[..., None],
) -> None:
    records = records_of(TEXTS[:40], label="billing")
    write_log(records)
    give([(record.prediction_id, "billing") for record in records[:15]])
    give([(record.prediction_id, "delivery") for record in records[15:20]], source="agent")
    found = measure(settings, reference)
    expected = wilson_interval(15, 20)
    assert (found["n"], found["accuracy"], found["interval"]) == (20, 0.75, [expected.low, expected.high])
    by_label, by_source = found["by_label"], found["by_source"]
    assert isinstance(by_label, dict)
    assert isinstance(by_source, dict)
    assert (by_label["billing"]["accuracy"], by_label["delivery"]["accuracy"]) == (1.0, 0.0)
    assert (by_source["audit"]["n"], by_source["agent"]["n"]) == (15, 5)


def test_the_latest_word_counts_and_a_contradiction_is_told(
    settings: Settings,
    reference: Reference,
    records_of: Callable[..., list[Record]],
    write_log: Callable[[list[Record]], None],
    give: Callable[..., None],
) -> None:
    [record] = records_of(TEXTS[:1], label="billing")
    write_log([record])
    give([(record.prediction_id, "billing")], at=NOON + 5 * HOUR)
    give([(record.prediction_id, "account")], at=NOON + 3 * HOUR)
    found = measure(settings, reference)
    assert (found["n"], found["accuracy"], found["contradicted"]) == (1, 1.0, 1)


def test_the_latest_answer_to_the_queue_counts_and_the_same_word_twice_is_no_contradiction(
    settings: Settings,
    reference: Reference,
    records_of: Callable[..., list[Record]],
    write_log: Callable[[list[Record]], None],
    give: Callable[..., None],
) -> None:
    doubt = {"billing": 0.4, "delivery": 0.4, "account": 0.2}  # such a prediction is always drawn
    first, second = records_of(TEXTS[:2], label="billing", probabilities=doubt)
    write_log([first, second])
    give([(first.prediction_id, label) for label in ("nobody's", "delivery", "billing")], source="review")
    give([(second.prediction_id, "billing")] * 2, source="review")
    found = measure(settings, reference)
    reviewed = found["reviewed"]
    assert isinstance(reviewed, dict)
    assert (reviewed["n"], reviewed["accuracy"], found["contradicted"]) == (2, 1.0, 1)


def test_what_cannot_be_joined_is_counted_and_left_out(
    settings: Settings,
    reference: Reference,
    records_of: Callable[..., list[Record]],
    write_log: Callable[[list[Record]], None],
    give: Callable[..., None],
) -> None:
    older, strange = records_of(TEXTS[:1], version="older"), records_of(TEXTS[1:2])
    write_log([*older, *strange])
    give([(older[0].prediction_id, "billing"), (strange[0].prediction_id, "nobody's"), (new_id(), "billing")])
    found = measure(settings, reference)
    assert (found["n"], found["accuracy"]) == (0, None)
    assert (found["other_versions"], found["unknown_labels"], found["other_spans"]) == (1, 1, 1)


def test_late_words_words_on_other_spans_and_on_nothing_are_told_apart(
    settings: Settings,
    reference: Reference,
    records_of: Callable[..., list[Record]],
    write_log: Callable[[list[Record]], None],
    give: Callable[..., None],
) -> None:
    """Ids carry their time: what was made in the span and is not in the log is unknown, the rest is of another span."""
    records = records_of(TEXTS[:3])
    write_log(records)
    milliseconds = int((NOON + HOUR / 2).timestamp() * 1000)
    never_logged = f"{milliseconds:012x}"[:8] + "-" + f"{milliseconds:012x}"[8:] + "-7000-8000-000000000001"
    give([(records[0].prediction_id, "billing"), (never_logged, "billing"), (new_id(), "billing"), ("no id at all", "billing")])
    give([(record.prediction_id, "billing") for record in records[1:]], at=NOON + 26 * HOUR)
    found = live_accuracy(settings.log, NOON, NOON + HOUR, reference, NOON + 48 * HOUR)
    assert (found["n"], found["late"], found["unknown_predictions"], found["other_spans"]) == (3, 2, 1, 2)


def test_the_latest_word_counts_also_where_somebody_went_back_to_the_first(
    settings: Settings,
    reference: Reference,
    records_of: Callable[..., list[Record]],
    write_log: Callable[[list[Record]], None],
    give: Callable[..., None],
) -> None:
    (record,) = records_of(TEXTS[:1], label="billing")
    write_log([record])
    give([(record.prediction_id, label) for label in ("billing", "delivery", "billing")])
    found = measure(settings, reference)
    assert (found["n"], found["accuracy"], found["contradicted"]) == (1, 1.0, 1)
