import numpy as np
import pytest

from pigeonhole.evaluation.slices import length_slices

TEXTS = [" ".join(["word"] * words) for words in (1, 5, 6, 15, 16, 40, 41, 500)]


def test_every_row_is_in_one_slice_and_borders_belong_to_the_shorter_one() -> None:
    found = length_slices(TEXTS, np.zeros(8, np.int64), np.array([0, 1, 0, 0, 1, 1, 0, 0]))
    assert {name: (part["n"], part["accuracy"]) for name, part in found.items()} == {
        "1-5 words": (2, 0.5),
        "6-15 words": (2, 1.0),
        "16-40 words": (2, 0.0),
        "41 words and more": (2, 1.0),
    }


def test_a_slice_without_rows_is_left_out() -> None:
    assert list(length_slices(TEXTS[:1], np.zeros(1, np.int64), np.zeros(1, np.int64))) == ["1-5 words"]


def test_a_text_of_no_words_is_a_short_one() -> None:
    assert list(length_slices([" "], np.zeros(1, np.int64), np.zeros(1, np.int64))) == ["1-5 words"]


def test_intervals_of_small_slices_are_wide() -> None:
    low, high = length_slices(TEXTS[:1], np.zeros(1, np.int64), np.zeros(1, np.int64))["1-5 words"]["interval"]
    assert (low, high) == pytest.approx((0.2065, 1.0), abs=1e-4)
