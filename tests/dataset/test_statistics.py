import numpy as np
import pytest

from pigeonhole.dataset import statistics
from pigeonhole.dataset.read import Row
from pigeonhole.dataset.statistics import length_outliers, length_summary, scan_rows
from pigeonhole.errors import DataError


def test_scan_keeps_what_a_row_is_but_not_its_text() -> None:
    scan = scan_rows([Row("Hello there", "b", 2), Row("hello  THERE!", "a", 3), Row("bye", "b", 5)], split_seed=0, max_chars=100)
    assert scan.labels == ["a", "b"]
    assert scan.label_ids.tolist() == [1, 0, 1]
    assert scan.label_counts() == {"a": 1, "b": 2}
    assert scan.lines.tolist() == [2, 3, 5]
    assert scan.chars.tolist() == [11, 13, 3]
    assert scan.keys[0] == scan.keys[1] != scan.keys[2]
    assert scan.sketches.shape == (3, 64)
    assert scan.words == [(1, 2, frozenset({"hello", "there"})), (1, 5, frozenset({"bye"}))]


def test_no_rows_are_an_empty_scan() -> None:
    assert len(scan_rows([], split_seed=0, max_chars=100)) == 0


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("x" * 101, "long_texts"),
        ("write to jo@ex.com", "email"),
        ("bell \x07", "control_characters"),
        ("nothing \0", "control_characters"),
        ("turned \u202eround", "control_characters"),
        ("caf\u00c3\u00a9", "broken_encoding"),
        ("what \ufffd is this", "broken_encoding"),
    ],
)
def test_oddities_are_counted_with_their_lines(text: str, kind: str) -> None:
    scan = scan_rows(
        [Row("fine,\n\tcafé 👍🏽", "a", 1)] + [Row(text, "a", line) for line in range(2, 10)], split_seed=0, max_chars=100
    )
    assert {name: (places.count, places.lines) for name, places in scan.places.items()} == {kind: (8, [2, 3, 4, 5, 6])}


def test_long_texts_are_sketched_in_batches() -> None:
    rows = [Row(f"{number} " * 50_000, "a", number) for number in range(12)]
    assert scan_rows(rows, split_seed=0, max_chars=100).sketches.shape == (12, 64)


def test_rows_of_one_content_have_one_hash_whatever_their_lines() -> None:
    rows = [[("a", "bc"), ("d", "e")], [("ab", "c"), ("d", "e")], [("d", "e"), ("a", "bc")], [("A", "bc"), ("d", "e")]]
    rows += [[("a", "bc"), ("f", "e")], [("a", "bc"), ("d", "f")], [("a", "bc")]]
    first, moved = (
        [scan_rows([Row(*pair, line) for line, pair in enumerate(pairs, start)], 0, 100).sha256 for pairs in rows]
        for start in (2, 9)
    )
    assert first == moved
    assert len(set(first)) == len(rows)


def test_a_row_of_several_labels_counts_for_the_one_that_fewest_rows_have() -> None:
    answers = ["a"] * 9 + ["a|b"] * 3 + ["b|c", "b|d", ""]
    scan = scan_rows([Row(f"text {number}", answer, number) for number, answer in enumerate(answers)], 0, 100, "multi_label")
    assert [scan.labels[label] for label in scan.label_ids[:-1]] == ["a"] * 9 + ["b"] * 3 + ["c", "d"]
    assert scan.label_ids[-1] == len(scan.labels)


def test_endless_labels_are_refused_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "MAX_LABELS", 3)
    with pytest.raises(DataError, match="line 4: more than 3 labels"):
        scan_rows([Row("a", f"label{line}", line) for line in range(1, 10)], 0, 100)


def test_length_summary_counts_characters() -> None:
    summary = length_summary(np.arange(1, 102))
    assert summary == {"min": 1, "median": 51, "p95": 96, "p99": 100, "max": 101, "mean": 51.0}


def test_outliers_are_far_from_the_median_on_both_sides() -> None:
    chars = np.array([80, 90, 100, 110, 120] * 20 + [1, 5000])
    assert np.flatnonzero(length_outliers(chars)).tolist() == [100, 101]
    assert not length_outliers(np.full(50, 7)).any()
    assert np.flatnonzero(length_outliers(np.array([100] * 50 + [400, 25, 460, 22]))).tolist() == [52, 53]
