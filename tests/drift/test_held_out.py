"""Hand-made rows, whose every figure can be counted on a page."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from pigeonhole.bundle import Bundle
from pigeonhole.drift.held_out import Cell, HeldOut, compare, pick, read_held_out, summary
from pigeonhole.errors import ConfigError


def rows(pairs: str, scores: list[float] | None = None, texts: list[str] | None = None) -> HeldOut:
    """`ab` is a row whose true label is a and that was taken for b."""
    true_labels, labels = zip(*pairs.split(), strict=True)
    n = len(labels)
    sets = [frozenset(label) for label in true_labels], [frozenset(label) for label in labels]
    return HeldOut(*sets, np.array(scores or [0.9] * n), np.array([3, 20] * n)[:n], texts)


def several(pairs: str, scores: list[float] | None = None, texts: list[str] | None = None) -> HeldOut:
    """`ab/b` is a row that has a and b and was given b; `-` stands for none."""
    true_labels, labels = zip(*(pair.replace("-", "").split("/") for pair in pairs.split()), strict=True)
    n = len(labels)
    sets = [frozenset(found) for found in true_labels], [frozenset(found) for found in labels]
    return HeldOut(*sets, np.array(scores or [0.9] * n), np.array([3] * n), texts, "multi_label")


def test_the_summary_counts_every_cell_and_every_bin() -> None:
    found = summary(rows("aa aa ab bb", [0.95, 0.55, 0.57, 1.0]))
    assert found["confusion"] == [
        {"true_label": "a", "label": "a", "n": 2},
        {"true_label": "a", "label": "b", "n": 1},
        {"true_label": "b", "label": "b", "n": 1},
    ]
    assert [(each["low"], each["n"], each["accuracy"]) for each in found["reliability"]] == [(0.5, 2, 0.5), (0.9, 2, 1.0)]
    assert found["reliability"][0]["confidence"] == pytest.approx(0.56)
    assert [(each["slice"], each["n"], each["accuracy"]) for each in found["slices"]] == [
        ("1-5 words", 2, 0.5),
        ("16-40 words", 2, 1.0),
    ]


def test_a_length_at_the_end_of_a_slice_is_in_it() -> None:
    found = summary(replace(rows("aa aa aa aa aa aa aa"), n_words=np.array([1, 5, 6, 15, 16, 40, 41])))
    assert [(each["slice"], each["n"]) for each in found["slices"]] == [
        ("1-5 words", 2),
        ("6-15 words", 2),
        ("16-40 words", 2),
        ("41 words and more", 1),
    ]


def test_texts_that_are_not_one_for_each_row_are_not_shown_beside_them(bundle: Bundle) -> None:
    thirty = [f"text {number}" for number in range(30)]
    for texts, has in ((thirty, True), (thirty[1:], False), (None, False)):
        found = read_held_out(bundle.url, bundle.manifest, texts)
        assert found is not None
        assert (found.texts is not None) == has


def test_a_cell_a_row_and_a_column_of_the_matrix_are_picked_with_the_wrong_ones_first() -> None:
    held_out = rows("aa ab ab ba", [0.9, 0.6, 0.7, 0.8], ["t0", "t1", "t2", "t3"])
    assert [row["text"] for row in pick(held_out, "a", "b", None, 9)["rows"]] == ["t2", "t1"]
    assert [row["text"] for row in pick(held_out, "a", None, None, 9)["rows"]] == ["t2", "t1", "t0"]
    assert [row["text"] for row in pick(held_out, None, "a", None, 9)["rows"]] == ["t3", "t0"]
    assert [row["text"] for row in pick(held_out, None, None, None, 2)["rows"]] == ["t3", "t2"]
    assert pick(held_out, None, None, None, 2)["found"] == 3


def test_examples_are_right_short_and_of_different_labels() -> None:
    texts = ["sure and right", "less sure", "wrong", "r" * 200, "of b"]
    found = summary(rows("aa aa ab bb bb", [0.9, 0.8, 1.0, 0.7, 0.6], texts))
    assert found["examples"] == ["sure and right", "of b"]
    assert summary(rows("aa"))["examples"] == []


def test_flips_come_first_and_rows_are_matched_by_their_text() -> None:
    before = rows("aa ab bb", [0.9, 0.8, 0.7], ["one", "two", "three"])
    after = rows("bb ab aa ba", [0.6, 0.5, 0.4, 0.3], ["three", "one", "two", "four"])
    found = compare(before, after, None, 9)
    assert (found["n"], found["matched_by"], found["only_before"], found["only_after"]) == (3, "text", 0, 1)
    assert [row["text"] for row in found["now_wrong"]["rows"]] == ["one"]
    assert found["now_right"]["rows"] == [
        {"text": "two", "true_labels": ["a"], "before": ["b"], "before_score": 0.8, "after": ["a"], "after_score": 0.4}
    ]
    assert found["accuracy"]["difference"] == pytest.approx(0)
    assert found["accuracy"]["interval"][0] < 0 < found["accuracy"]["interval"][1]
    assert found["by_label"][0] == {"label": "a", "n": 2, "before": 0.5, "after": 0.5, "now_wrong": 1, "now_right": 1}


def test_without_texts_only_what_looks_like_the_same_rows_is_compared() -> None:
    found = compare(rows("aa ab"), rows("ab aa"), None, 9)
    assert (found["matched_by"], found["now_wrong"]["n"], found["now_right"]["n"]) == ("place", 1, 1)
    with pytest.raises(ConfigError, match="not tested on common rows"):
        compare(rows("aa ab"), rows("ba aa"), None, 9)
    with pytest.raises(ConfigError, match="not tested on common rows"):
        compare(rows("aa ab"), replace(rows("aa ab"), n_words=np.array([3, 21])), None, 9)


def test_each_of_several_labels_has_four_cells_and_each_cell_its_rows() -> None:
    found = several("ab/b b/ab -/- a/a -/a", [0.5, 0.6, 0.7, 0.8, 0.9], ["t0", "t1", "t2", "t3", "t4"])
    told = summary(found)
    assert (told["wrong"], told["confusion"], told["examples"]) == (3, [], ["t3"])
    assert told["by_label"] == [
        {"label": "a", "both": 1, "missed": 1, "extra": 2, "neither": 1},
        {"label": "b", "both": 2, "missed": 0, "extra": 0, "neither": 3},
    ]
    texts = {cell: [row["text"] for row in pick(found, None, "a", cell, 9)["rows"]] for cell in get_args(Cell)}
    assert texts == {"both": ["t3"], "missed": ["t0"], "extra": ["t4", "t1"], "neither": ["t2"]}
    assert pick(found, None, None, None, 1)["rows"][0] == {
        "text": "t4", "true_labels": [], "labels": ["a"], "score": 0.9, "n_words": 3
    }  # fmt: skip
    with pytest.raises(ConfigError, match="give label"):
        pick(found, "a", None, "missed", 9)


def test_flips_of_several_labels_are_told_label_by_label() -> None:
    before = several("ab/ab a/a b/- -/-", texts=["t0", "t1", "t2", "t3"])
    after = several("ab/a a/a b/b -/b", texts=["t0", "t1", "t2", "t3"])
    found = compare(before, after, None, 9)
    assert [row["text"] for row in found["now_wrong"]["rows"]] == ["t0", "t3"]
    assert [row["text"] for row in found["now_right"]["rows"]] == ["t2"]
    assert found["by_label"] == [
        {"label": "a", "n": 2, "before": 1, "after": 1, "now_wrong": 0, "now_right": 0},
        {"label": "b", "n": 2, "before": 0.5, "after": 0.5, "now_wrong": 2, "now_right": 1},
    ]
    assert compare(before, after, "a", 9)["now_wrong"] == {"n": 0, "rows": []}
    assert [row["text"] for row in compare(before, after, "b", 9)["now_wrong"]["rows"]] == ["t0", "t3"]
