import numpy as np
import pytest

from pigeonhole.evaluation import baselines

LABELS = ["billing", "delivery", "other"]
TRAIN = [
    ("the invoice is wrong", 0),
    ("my invoice was paid twice", 0),
    ("charge on my invoice", 0),
    ("where is the parcel", 1),
    ("parcel not delivered", 1),
]
TRAIN_TEXTS = [text for text, _ in TRAIN]
TRAIN_IDS = np.array([label_id for _, label_id in TRAIN])


def test_majority_gives_the_label_frequencies_of_the_training_rows() -> None:
    found = baselines.majority_probabilities(TRAIN_IDS, n=2, c=3)
    np.testing.assert_allclose(found, [[0.6, 0.4, 0.0]] * 2)


def test_tfidf_learns_words_and_gives_a_label_without_rows_nothing() -> None:
    found = baselines.tfidf_probabilities(TRAIN_TEXTS, TRAIN_IDS, ["an invoice", "a parcel"], c=3)
    assert found.argmax(axis=1).tolist() == [0, 1]
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert (found[:, 2] == 0).all()


def test_labels_keep_their_places_where_one_between_them_has_no_rows() -> None:
    found = baselines.tfidf_probabilities(TRAIN_TEXTS, TRAIN_IDS * 2, ["an invoice", "a parcel"], c=3)
    assert found.argmax(axis=1).tolist() == [0, 2]
    assert (found[:, 1] == 0).all()


def test_tfidf_is_deterministic() -> None:
    first, second = (baselines.tfidf_probabilities(TRAIN_TEXTS, TRAIN_IDS, ["an invoice"], c=3) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("texts", "ids"), [(["one label", "only"], [0, 0]), (["?", "!", ":("], [0, 1, 1])], ids=["one label", "no words"]
)
def test_tfidf_is_the_majority_where_there_is_nothing_to_learn(texts: list[str], ids: list[int]) -> None:
    found = baselines.tfidf_probabilities(texts, np.array(ids), ["a text"], c=2)
    np.testing.assert_array_equal(found, baselines.majority_probabilities(np.array(ids), 1, 2))


def test_scores_are_measured_on_the_other_rows() -> None:
    found = baselines.score_baselines(TRAIN_TEXTS, TRAIN_IDS, ["invoice", "parcel", "parcel"], np.array([0, 1, 1]), LABELS)
    assert list(found) == ["majority", "tfidf"]
    assert found["majority"]["accuracy"] == pytest.approx(1 / 3)
    assert found["tfidf"]["accuracy"] == 1
    assert found["tfidf"]["n"] == 3


def test_cross_fit_never_answers_a_row_with_a_fit_that_has_seen_it() -> None:
    # Each text is one word of its own: a fit that had seen the row would know the answer, all others can only guess.
    texts = [f"word{i}" for i in range(40)]
    true_ids = np.arange(40) % 2
    assert baselines.cross_fit_baselines(texts, true_ids, ["a", "b"])["tfidf"]["accuracy"] <= 0.5


def test_cross_fit_learns_where_there_is_something_to_learn() -> None:
    texts = TRAIN_TEXTS * 6
    found = baselines.cross_fit_baselines(texts, np.tile(TRAIN_IDS, 6), LABELS)
    assert found["tfidf"]["accuracy"] == 1
    assert found["majority"]["accuracy"] == 0.6


def test_cross_fit_takes_labels_with_fewer_rows_than_folds() -> None:
    found = baselines.cross_fit_baselines([*TRAIN_TEXTS, "something else"], np.array([*TRAIN_IDS, 2]), LABELS)
    assert found["tfidf"]["n"] == 6
    assert found["tfidf"]["per_class"]["other"]["recall"] == 0


@pytest.mark.parametrize("n", [1, 2, 3])
def test_cross_fit_takes_fewer_rows_than_folds(n: int) -> None:
    assert baselines.cross_fit_baselines(TRAIN_TEXTS[:n], TRAIN_IDS[:n], LABELS)["majority"]["n"] == n


def test_cross_fit_deals_each_label_evenly_over_the_folds() -> None:
    true_ids = np.array([0] * 10 + [1] * 5)
    fold_ids = baselines.deal(true_ids, folds=5, seed=0)
    assert fold_ids.tolist() == baselines.deal(true_ids, folds=5, seed=0).tolist()
    assert fold_ids.tolist() != baselines.deal(true_ids, folds=5, seed=1).tolist()
    for label_id, rows in ((0, 2), (1, 1)):
        assert np.bincount(fold_ids[true_ids == label_id]).tolist() == [rows] * 5
