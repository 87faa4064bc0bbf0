import numpy as np
import pytest

from pigeonhole.prediction_log.sketch import SIZE, sketch


def test_a_sketch_keeps_distances_to_about_a_quarter() -> None:
    random = np.random.default_rng(0)
    embeddings = random.normal(size=(200, 384)).astype(np.float32)
    units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    sketches = sketch(embeddings)
    kept = np.linalg.norm(sketches[:100] - sketches[100:], axis=1) / np.linalg.norm(units[:100] - units[100:], axis=1)
    assert sketches.shape == (200, SIZE)
    assert kept.mean() == pytest.approx(1, abs=0.05)
    assert kept.std() == pytest.approx(1 / np.sqrt(2 * SIZE), abs=0.04)  # Johnson and Lindenstrauss 1984


def test_length_is_no_part_of_it_and_nothing_stays_nothing() -> None:
    embedding = np.arange(1.0, 9.0)[None, :]
    assert (sketch(embedding) == sketch(embedding * 7)).all()
    assert (sketch(np.zeros((2, 8))) == 0).all()


def test_the_projection_is_the_same_in_every_release() -> None:
    signs = "---------+++--+-"
    assert sketch(np.eye(3))[0].tolist() == [0.25 if sign == "+" else -0.25 for sign in signs]
