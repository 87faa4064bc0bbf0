import numpy as np
import pytest

from pigeonhole.training.batches import TokenizedRows, pad, shuffled_batches, sorted_batches


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


def test_evaluation_batches_go_from_short_to_long(lengths: np.ndarray) -> None:
    order = np.concatenate(sorted_batches(lengths, 64))
    assert (np.diff(lengths[order]) >= 0).all()


def test_rows_are_padded_to_the_longest_and_masked() -> None:
    input_ids, attention_mask = pad([[5, 6, 7], [8]])
    assert input_ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_a_batch_carries_the_labels_of_its_rows() -> None:
    rows = TokenizedRows([[1], [2, 3], [4]], np.array([0, 1, 2]))
    batch = rows.batch(np.array([2, 1]))
    assert batch.label_ids.tolist() == [2, 1]
    assert batch.input_ids.tolist() == [[4, 0], [2, 3]]
