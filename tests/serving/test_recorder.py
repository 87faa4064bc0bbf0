import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pigeonhole.classifier import Classifier
from pigeonhole.prediction_log import LogWriter, new_id, read_window
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
        first, second = read_window(str(tmp_path), now, now + timedelta(hours=1)).records
    assert [record.prediction_id for record in (first, second)] == [each.prediction_id for each in asked]
    assert (first.text, first.text_policy, first.at, first.request_id) == (None, "none", now, "r-1")
    assert first.features.n_chars == 23
    assert first.features.n_words == 4
    assert first.features.n_tokens == 8  # [CLS] where is zebra ' s parcel [SEP]
    assert first.features.unknown_tokens == 3
    assert first.features.max_logit == pytest.approx(4 / 8)
    assert (first.features.truncated, second.features.truncated) == (False, True)
    assert first.probabilities == pytest.approx(dict(zip(classifier.labels, predictions[0].probabilities, strict=True)))
    assert first.latency_ms >= 250
