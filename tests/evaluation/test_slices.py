import numpy as np
import pytest

from pigeonhole.errors import ConfigError
from pigeonhole.evaluation.slices import guess_language, text_masks, text_slices

TEXTS = [" ".join(["word"] * words) for words in (1, 5, 6, 15, 16, 40, 41, 500)]


def test_every_row_is_in_one_slice_and_borders_belong_to_the_shorter_one() -> None:
    found = text_slices(TEXTS, np.zeros(8, np.int64), np.array([0, 1, 0, 0, 1, 1, 0, 0]))
    assert {name: (part["n"], part["accuracy"]) for name, part in found.items()} == {
        "1-5 words": (2, 0.5),
        "6-15 words": (2, 1.0),
        "16-40 words": (2, 0.0),
        "41 words and more": (2, 1.0),
    }


def test_a_slice_without_rows_is_left_out() -> None:
    assert list(text_slices(TEXTS[:1], np.zeros(1, np.int64), np.zeros(1, np.int64))) == ["1-5 words"]


def test_a_text_of_no_words_is_a_short_one() -> None:
    assert list(text_slices([" "], np.zeros(1, np.int64), np.zeros(1, np.int64))) == ["1-5 words"]


def test_intervals_of_small_slices_are_wide() -> None:
    low, high = text_slices(TEXTS[:1], np.zeros(1, np.int64), np.zeros(1, np.int64))["1-5 words"]["interval"]
    assert (low, high) == pytest.approx((0.2065, 1.0), abs=1e-4)


def test_a_pattern_of_ones_own_is_a_slice() -> None:
    texts = ["order 4421", "order", "refund 12 EUR"]
    masks = text_masks(texts, r"with a number=\d+ ; money=EUR|USD ; cats=cat")
    assert masks["with a number"].tolist() == [True, False, True]
    assert masks["money"].tolist() == [False, False, True]
    assert "cats" not in masks


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ("numbers", "expected NAME=REGEX"),
        ("a=(", r"'\(' is no regular expression"),
        ("refunds=refund ; refunds=money back", "'refunds' is there twice"),
    ],
)
def test_a_pattern_that_is_none_is_refused(patterns: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        text_masks(["a"], patterns)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Where is my parcel and when does it come?", "en"),
        ("Wo ist mein Paket und warum kann ich nicht bezahlen?", "de"),
        ("¿Dónde está el paquete que compré para mi hermano?", "es"),
        ("Où est le colis que vous avez envoyé avec les autres ?", "fr"),
        ("我的包裹在哪里", "zh"),
        ("注文した商品がまだ届いていません", "ja"),
        ("Где моя посылка?", "ru"),
        ("XK-221", "other"),
        ("no", "other"),  # one word alone
        ("de que", "other"),  # Spanish, French and Portuguese
    ],
)
def test_a_language_is_guessed_by_script_and_function_words(text: str, language: str) -> None:
    assert guess_language(text) == language


def test_languages_are_slices_where_there_are_several() -> None:
    english, german = ["where is the parcel"] * 12, ["wo ist das Paket und der Brief"] * 10
    assert {"language en", "language de"} <= set(text_masks([*english, *german]))
    assert not any(name.startswith("language") for name in text_masks([*english, *german[:5]]))
