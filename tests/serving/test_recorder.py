import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pigeonhole.classifier import Classifier
from pigeonhole.prediction_log import LogWriter, TextPolicy, is_sampled, new_id, read_window
from pigeonhole.serving.recorder import AskedText, Recorder


def test_a_record_has_all_that_drift_compares_without_the_text(classifier: Classifier, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    asked = [
        AskedText(text, new_id(), "r-1", now, time.perf_counter() - 0.25, classifier, time.perf_counter())
        for text in ("Where is zebra's parcel", "my " * 500)
    ]
    predictions = classifier.predict([each.text for each in asked])
    with LogWriter(str(tmp_path)) as log:
        Recorder(log, "none", b"").record(asked, predictions)
        first, second = read_window(str(tmp_path), now, now + timedelta(hours=1))
    assert [record.prediction_id for record in (first, second)] == [each.prediction_id for each in asked]
    assert (first.text, first.text_policy, first.at, first.request_id) == (None, "none", now, "r-1")
    assert first.features.n_chars == 23
    assert first.features.n_words == 4
    assert first.features.n_tokens == 8  # [CLS] where is zebra ' s parcel [SEP]
    assert first.features.unknown_tokens == 3
    assert first.features.max_logit == pytest.approx(4 / 8)
    assert (first.features.truncated, second.features.truncated) == (False, True)
    assert first.probabilities == dict(zip(classifier.labels, predictions[0].probabilities.round(6).tolist(), strict=True))
    assert first.latency_ms >= 250


def test_what_a_policy_takes_out_of_the_text_is_nowhere_in_the_log_and_drift_has_its_features(
    classifier: Classifier, tmp_path: Path
) -> None:
    text = "where is my parcel? call +49 30 1234567 or write to jo@ex.com"
    features = []
    policies: tuple[TextPolicy, ...] = ("redact", "hash", "none")
    for policy in policies:
        now = datetime.now(UTC)
        asked = [AskedText(text, new_id(), "r-1", now, time.perf_counter(), classifier, time.perf_counter())]
        with LogWriter(str(tmp_path / policy), interval_s=3600) as log:
            Recorder(log, policy, b"secret").record(asked, classifier.predict([text]))
            (record,) = read_window(str(tmp_path / policy), now, now + timedelta(hours=1))
            (segment,) = (tmp_path / policy / "spool").rglob("*.jsonl")
            assert not any(secret in segment.read_bytes() for secret in (b"1234567", b"jo@ex.com", b"secret"))
        features.append(record.features)
    assert features[0] == features[1] == features[2]
    assert features[0].n_chars == len(text)


def test_only_the_drawn_share_is_written_down(classifier: Classifier, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    asked = [AskedText("parcel", new_id(), "r-1", now, time.perf_counter(), classifier, time.perf_counter()) for _ in range(400)]
    predictions = classifier.predict(["parcel"]) * 400
    with LogWriter(str(tmp_path)) as log:
        Recorder(log, "none", b"", share=0.25).record(asked, predictions)
        Recorder(log, "none", b"", share=0.0).record(asked, predictions)
        kept = list(read_window(str(tmp_path), now, now + timedelta(hours=1)))
    assert [record.prediction_id for record in kept] == [
        each.prediction_id for each in asked if is_sampled(each.prediction_id, 0.25)
    ]
    assert 60 < len(kept) < 140
