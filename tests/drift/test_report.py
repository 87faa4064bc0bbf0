from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tests.drift.conftest import NOON

from pigeonhole import storage
from pigeonhole.bundle import Bundle
from pigeonhole.drift import report as reporting
from pigeonhole.drift.report import Reports, compare, draw, page
from pigeonhole.drift.window import Reference, Sample, read_reference
from pigeonhole.errors import NotFoundError

SPAN = (NOON, NOON + timedelta(hours=1))


@pytest.fixture
def reference(bundle: Bundle) -> Reference:
    found = read_reference(bundle.url)
    return replace(found, rows=found.rows.take(np.arange(60) % len(found.rows)))


def sample(reference: Reference, n: int, *, score: float = 1.0) -> Sample:
    rows = reference.rows.take(np.arange(n) % 60)
    return Sample(replace(rows, scores=rows.scores * score), n, 2, 1, {"records": n, "duplicates": 3, "torn": 4})


def test_a_window_like_the_reference_has_no_drift_and_the_references_accuracy(reference: Reference) -> None:
    report = compare(reference, sample(reference, 60), SPAN, budget=0.01, min_rows=25)
    assert (report["verdict"], report["alarms"]) == ("no_drift", [])
    assert report["accuracy"]["estimated"] == pytest.approx(reference.accuracy)
    assert report["rows"] == {
        "reference": 60,
        "window": 60,
        "compared": 60,
        "other_versions": 2,
        "unknown_labels": 1,
        "duplicates": 3,
        "torn": 4,
    }


def test_less_confidence_is_drift_with_a_lower_estimated_accuracy(reference: Reference) -> None:
    report = compare(reference, sample(reference, 60, score=0.5), SPAN, budget=0.01, min_rows=25)
    assert report["verdict"] == "drift"
    assert set(report["alarms"]) == {"confidence", "estimated_accuracy"}
    fall = reference.rows.scores.mean() / 2
    assert report["accuracy"]["estimated"] == pytest.approx(reference.accuracy - fall, abs=0.01)


def test_an_estimated_accuracy_is_a_share(reference: Reference) -> None:
    surer = compare(replace(reference, accuracy=0.99), sample(reference, 60, score=1.5), SPAN, budget=0.01, min_rows=25)
    assert surer["accuracy"]["estimated"] == 1.0
    worse = compare(replace(reference, accuracy=0.1), sample(reference, 60, score=0.1), SPAN, budget=0.01, min_rows=25)
    assert worse["accuracy"]["estimated"] == 0.0


def test_the_history_tells_the_latest_reports_first(reference: Reference, tmp_path: Path) -> None:
    reports = Reports(str(tmp_path))
    for n in (10, 60, 10):
        reports.keep(compare(reference, sample(reference, n), SPAN, budget=0.01, min_rows=25), None)
    told = [(each["number"], each["verdict"]) for each in reports.history(most=2)]
    assert told == [(3, "too_few_rows"), (2, "no_drift")]


def test_too_few_rows_give_no_figures(reference: Reference) -> None:
    report = compare(reference, sample(reference, 10), SPAN, budget=0.01, min_rows=25)
    assert report["verdict"] == "too_few_rows"
    assert report["accuracy"]["estimated"] is None
    assert "too few rows" in page({**report, "number": 1})


def test_reports_are_numbered_and_never_overwritten(reference: Reference, tmp_path: Path) -> None:
    reports = Reports(str(tmp_path / "reports"))
    with pytest.raises(NotFoundError, match="POST /runs"):
        reports.latest()
    report = compare(reference, sample(reference, 60), SPAN, budget=0.01, min_rows=25)
    first, second = reports.keep(report, None), reports.keep({**report, "verdict": "drift"}, b"<html>evidently</html>")
    assert (first["number"], second["number"], reports.latest()) == (1, 2, 2)
    assert msgspec.json.decode(reports.read(1, "json"))["verdict"] == "no_drift"
    assert reports.read(2, "evidently.html") == b"<html>evidently</html>"
    assert [each["number"] for each in reports.history()] == [2, 1]


def test_a_report_whose_page_was_never_written_has_one(reference: Reference, tmp_path: Path) -> None:
    reports = Reports(str(tmp_path / "reports"))
    kept = reports.keep(compare(reference, sample(reference, 60), SPAN, budget=0.01, min_rows=25), None)
    there = reports.read(1, "html")
    (tmp_path / "reports" / "000001.html").unlink()
    assert reports.read(1, "html") == there == page(kept).encode()
    with pytest.raises(NotFoundError):
        reports.read(1, "evidently.html")
    with pytest.raises(NotFoundError):
        reports.read(2, "html")


def test_a_number_that_somebody_else_took_meanwhile_is_left_to_them(
    reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = Reports(str(tmp_path / "reports"))
    report = compare(reference, sample(reference, 60), SPAN, budget=0.01, min_rows=25)
    reports.keep(report, None)
    monkeypatch.setattr(Reports, "numbers", lambda _: [])
    assert reports.keep({**report, "verdict": "drift"}, None)["number"] == 2


def test_a_report_that_was_kept_although_nobody_heard_of_it_is_not_kept_twice(
    reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = Reports(str(tmp_path / "reports"))
    create = storage.create
    monkeypatch.setattr(storage, "create", lambda url, data: create(url, data) and create(url, data))  # as a cloud's client does
    kept = reports.keep(compare(reference, sample(reference, 60), SPAN, budget=0.01, min_rows=25), None)
    assert (kept["number"], reports.numbers()) == (1, [1])


def test_the_page_says_what_else_was_in_the_log(reference: Reference) -> None:
    report = compare(reference, sample(reference, 10), SPAN, budget=0.01, min_rows=25)
    shown = page({**report, "number": 1})
    assert (
        "<p>Not compared: 2 predictions of other models or versions, "
        "1 predictions with a label that the version does not have, 4 torn lines.</p>"
    ) in shown
    assert "Not compared" not in page({**report, "number": 1, "rows": {"window": 10, "reference": 60, "torn": 0}})


def test_names_are_escaped_on_the_page(reference: Reference) -> None:
    report = compare(reference, sample(reference, 60), SPAN, budget=0.01, min_rows=25)
    shown = page({**report, "number": 1, "model": "<script>", "drawing": "<img>"})
    assert "<script>" not in shown
    assert "<img>" not in shown


def test_evidently_draws_the_columns(reference: Reference) -> None:
    drawing, told = draw(reference, sample(reference, 60))
    assert told == "drawn", told
    assert drawing is not None
    assert b"max_logits" in drawing


def test_a_drawing_that_fails_or_takes_too_long_is_told_and_no_more(
    reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "false")
    assert draw(reference, sample(reference, 60)) == (None, "Evidently ended with 1: []")
    monkeypatch.undo()
    monkeypatch.setattr(reporting, "DRAW_TIMEOUT_S", 0.001)
    assert draw(reference, sample(reference, 60))[1] == "Evidently did not end within 0 s"


def test_a_machine_with_no_room_for_a_drawing_still_has_its_report(
    reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "not there"))
    drawing, told = draw(reference, sample(reference, 60))
    assert (drawing, told) == (None, "Evidently cannot be asked: No such file or directory")
