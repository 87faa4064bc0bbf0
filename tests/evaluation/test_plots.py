import io
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.pyplot import get_fignums
from numpy.typing import NDArray

from pigeonhole.evaluation import plots
from pigeonhole.metrics import Floats, Ids


def answers(n: int, c: int) -> tuple[Ids, Floats]:
    random = np.random.default_rng(0)
    return random.integers(0, c, n), random.dirichlet(np.ones(c), n)


def pixels(png: bytes) -> NDArray[np.float32]:
    image: NDArray[np.float32] = imread(io.BytesIO(png), format="png")
    return image


@pytest.mark.parametrize("c", [2, 3, 20, 21, 77])
def test_confusion_matrix_is_drawn_for_few_and_for_many_labels(c: int) -> None:
    true_ids, probabilities = answers(300, c)
    image = pixels(plots.confusion_png(true_ids, probabilities.argmax(axis=1), [f"label_{i}" for i in range(c)]))
    assert image.shape[0] > 300
    assert image.std() > 0.01


def test_confusion_matrix_without_a_mistake_is_drawn_too() -> None:
    assert pixels(plots.confusion_png(np.arange(30), np.arange(30), [str(i) for i in range(30)])).size


def test_another_prediction_gives_another_picture_and_the_same_one_the_same_bytes() -> None:
    true_ids = np.array([0, 1, 2, 0])
    first, again, other = (
        plots.confusion_png(true_ids, np.array(found), list("abc")) for found in ([0, 1, 2, 0], [0, 1, 2, 0], [1, 1, 2, 0])
    )
    assert first == again != other


def test_reliability_diagram_is_drawn_with_empty_bins() -> None:
    assert pixels(plots.reliability_png(np.array([0, 1]), np.array([[0.99, 0.01], [0.99, 0.01]]))).size


def test_learning_curve_takes_long_curves_single_points_and_none() -> None:
    losses = {"training": [(step, 1 / step) for step in range(1, 100)], "validation": [(50, 0.4)]}
    assert pixels(plots.learning_curve_png(losses, {})).size
    assert pixels(plots.learning_curve_png({"training": []}, {"macro-F1": [(1, 0.5)]})).size


def test_steps_are_whole_and_begin_at_0(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []

    def keep(figure: Figure) -> bytes:
        drawn.append(figure)
        return b""

    monkeypatch.setattr(plots, "_png", keep)
    plots.learning_curve_png({"training": [(15, 0.5)]}, {"accuracy": [(15, 0.9)]})
    for axes in drawn[0].axes:
        assert axes.get_xlim()[0] == 0
        assert all(float(tick).is_integer() for tick in axes.get_xticks())


def test_labels_may_hold_dollars_and_other_alphabets() -> None:
    assert plots.confusion_png(np.array([0, 1]), np.array([0, 1]), ["cost in $ or $_{", "ärger"])


def test_no_figure_is_left_behind() -> None:
    plots.reliability_png(np.array([0]), np.array([[1.0, 0.0]]))
    assert get_fignums() == []


def test_pyplot_is_never_loaded() -> None:
    import subprocess

    program = "import sys, pigeonhole.evaluation.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_scores_that_differ_by_a_row_do_not_fill_the_picture() -> None:
    curves = {"accuracy": [(72.0, 0.8681), (144.0, 0.8646), (216.0, 0.8681)]}
    right = pixels(plots.learning_curve_png({}, curves))[:, 600:800, :3]  # beside the legend
    blue = np.abs(right - np.array([31, 119, 180]) / 255).sum(axis=2) < 0.1
    rows = np.flatnonzero(blue.any(axis=1))
    assert 0 < np.ptp(rows) < 0.2 * right.shape[0]
