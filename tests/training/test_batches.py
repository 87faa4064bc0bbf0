import numpy as np
import pytest

from pigeonhole.training.batches import TokenizedRows, shuffled_batches, sorted_batches


@pytest.fixture
def lengths() -> np.ndarray:
    return np.random.default_rng(0).integers(2, 60, 1000)


def test_every_row_is_in_exactly_one_batch_of_an_epoch(lengths: np.ndarray) -> None:
    batches = shuffled_batches(lengths, 32, seed=0, epoch=1)
    assert sorted(np.concatenate(batches)) == list(range(1000))
    assert len(batches) == 32


def test_the_batches_are_a_function_of_seed_and_epoch(lengths: np.ndarray) -> None:
    def rows(seed: int, epoch: int) -> list[int]:
        return list(np.concatenate(shuffled_batches(lengths, 32, seed, epoch)))

    assert rows(3, 1) == rows(3, 1)
    assert rows(3, 1) != rows(3, 2)
    assert rows(3, 1) != rows(4, 1)


def test_sorting_by_length_leaves_little_padding(lengths: np.ndarray) -> None:
    padded = sum(len(batch) * lengths[batch].max() for batch in shuffled_batches(lengths, 32, 0, 1))
    random = sum(32 * lengths[start : start + 32].max() for start in range(0, 1000, 32))
    assert padded < 1.1 * lengths.sum() < random


def test_short_and_long_batches_come_in_no_order(lengths: np.ndarray) -> None:
    longest = np.array([lengths[batch].max() for batch in shuffled_batches(lengths, 32, 0, 1)])
    assert 8 <= (np.diff(longest) < 0).sum() <= 23  # of 31 steps; sorted, there is one


def test_evaluation_batches_go_from_short_to_long(lengths: np.ndarray) -> None:
    order = np.concatenate(sorted_batches(lengths, 64))
    assert (np.diff(lengths[order]) >= 0).all()


def test_a_batch_holds_the_tokens_of_its_texts_one_after_the_other_and_where_they_stand() -> None:
    packed = TokenizedRows([[5, 6, 7], [4], [8]], np.array([0, 1, 2])).batch(np.array([2, 0])).packed
    assert packed.input_ids.tolist() == [8, 5, 6, 7]
    assert packed.view.tolist() == [[0, -1, -1], [1, 2, 3]]
    assert packed.place.tolist() == [0, 3, 4, 5]


def test_a_batch_carries_the_labels_and_all_windows_of_its_rows() -> None:
    rows = TokenizedRows([[1], [2, 3], [4]], np.array([0, 1, 2]), more={1: [[9], [8, 7]]}, rule="max")
    batch = rows.batch(np.array([2, 1]))
    assert batch.label_ids.tolist() == [2, 1]
    assert batch.counts == [1, 3]
    assert batch.packed.input_ids.tolist() == [4, 2, 3, 9, 8, 7]
    assert rows.counts() == [1, 3, 1]
    assert rows.lengths().tolist() == [1, 5, 1]


def test_runs_are_of_windows_that_are_equally_long_and_follow_each_other() -> None:
    rows = TokenizedRows([[1, 2], [3, 4], [5], [6, 7]], np.zeros(4, np.int64))
    assert rows.pack(np.arange(4)).runs == [(2, 2), (1, 1), (1, 2)]
