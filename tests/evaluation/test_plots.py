import io
import struct
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.pyplot import get_fignums
from numpy.typing import NDArray

from pigeonhole.evaluation import plots
from pigeonhole.metrics import Floats, Ids, Interval, per_class


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

    monkeypatch.setattr(plots, "png", keep)
    plots.learning_curve_png({"training": [(15, 0.5)]}, {"accuracy": [(15, 0.9)]})
    for axes in drawn[0].axes:
        assert axes.get_xlim()[0] == 0
        assert all(float(tick).is_integer() for tick in axes.get_xticks())


def test_labels_may_hold_dollars_and_other_alphabets() -> None:
    labels = ["cost in $ or $_{", "ärger", "日本語", "😀", "مرحبا"]
    assert plots.confusion_png(np.array([0, 1]), np.array([0, 1]), labels)
    assert plots.confusion_png(np.array([0, 1]), np.array([1, 0]), [*labels, *map(str, range(20))])
    assert plots.labels_png(per_class(np.array([0, 1]), np.array([0, 1]), labels))
    assert plots.difference_png(labels, [Interval(0.1, 0, 0.2)] * 5, "change")


def test_long_names_leave_room_for_the_picture() -> None:
    labels = ["a very long label " * 14, "b" * 256, "two\nlines", *"de"]
    ids = np.arange(5)
    assert plots.confusion_png(ids, ids, labels)  # the layout would warn
    assert plots.labels_png(per_class(ids, ids, labels))
    assert plots.difference_png(labels, [Interval(0.1, 0, 0.2)] * 5, "change")
    assert plots.confusion_png(np.array([0]), np.array([1]), ["W" * 50, "M" * 50])


def test_beyond_so_many_labels_no_picture_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "NAMED_UP_TO", 25)
    pictures = []
    for c in (25, 250):
        ids, labels = np.arange(c), [f"label {i}" for i in range(c)]
        pictures += [
            plots.confusion_png(ids, ids[::-1], labels),
            plots.labels_png(per_class(ids, ids, labels)),
            plots.difference_png(labels, [Interval(i / c, 0, 1) for i in range(c)], "change"),
        ]
    sizes = [struct.unpack(">II", png[16:24]) for png in pictures]  # as the header of a PNG has them
    assert sizes[:3] == sizes[3:]


def test_of_many_labels_the_worst_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(plots, "png", drawn.append)
    ids = np.arange(300)
    plots.labels_png(per_class(ids, np.where(ids == 250, 251, ids), [f"label {i}" for i in range(300)]))
    plots.difference_png(list(map(str, ids)), [Interval(i / 300, 0, 1) for i in range(300)], "change")
    named = [[tick.get_text() for tick in figure.axes[0].get_yticklabels()] for figure in drawn]
    assert {"label 250 (1)", "label 251 (1)"} <= set(named[0])
    assert named[1] == ["0", *map(str, range(101, 300))]  # the first is all rows


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
