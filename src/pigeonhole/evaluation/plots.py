"""Pictures of an evaluation, as PNG bytes: confusion matrix, reliability diagram, learning curve.

Draws on its own Figure objects, never through pyplot, so that nothing global is opened, changed or left behind.
"""

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pigeonhole.metrics import Floats, Ids, Interval, confusion_matrix, expected_calibration_error, reliability

SCORE_SPAN = 0.1  # of its axis at least: one row of 288 is 0.003, and would look like a chasm
WRITTEN_UP_TO = 20  # labels: beyond, a cell is too small for its number
NAMED_UP_TO = 200  # labels: beyond, a picture would be larger than what opens it
MOST_CONFUSIONS = 25  # that are listed beside
SHOWN_CHARS = 40  # of a label: a longer name leaves the picture no room
BLUE, ORANGE, GREY = "#1f5fa8", "#d9822b", "#8a8a8a"

DOTS: dict[str, Any] = {"color": ORANGE, "markersize": 4, "zorder": 4, "clip_on": False}

Curve = Sequence[tuple[float, float]]  # (step, value)


def confusion_png(true_ids: Ids, predicted_ids: Ids, labels: Sequence[str]) -> bytes:
    """Shares of each true label, dark for many; up to 20 labels with counts, beyond with the worst confusions listed beside.

    Beyond 200 labels the axes name none.
    """
    counts = confusion_matrix(true_ids, predicted_ids, len(labels))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)  # a label without rows stays blank
    c, names = len(labels), [short(label) for label in labels]
    side = 2.6 + 0.45 * c + 0.06 * max(map(len, names)) if c <= WRITTEN_UP_TO else 4 + 0.14 * min(c, NAMED_UP_TO)
    figure = Figure(figsize=(side, side) if c <= WRITTEN_UP_TO else (side + 5, side), layout="constrained")
    axes = figure.add_subplot() if c <= WRITTEN_UP_TO else figure.subplots(1, 2, width_ratios=[side, 5])[0]
    root = 1.0 if c <= WRITTEN_UP_TO else 0.5  # makes one row of twenty visible in a small cell
    axes.imshow(shares, cmap="Blues", norm=PowerNorm(root, 0, 1))
    size = 9.0 if c <= WRITTEN_UP_TO else 6.0
    if c <= NAMED_UP_TO:
        axes.set_xticks(range(c), names, rotation=90, fontsize=size, parse_math=False)
        axes.set_yticks(range(c), names, fontsize=size, parse_math=False)
    axes.set_xlabel("predicted label")
    axes.set_ylabel("true label")
    axes.set_title(f"{np.trace(counts):,} of {counts.sum():,} on the diagonal", fontsize=10)
    if c <= WRITTEN_UP_TO:
        _write_counts(axes, counts, shares)
    else:
        _list_confusions(figure.axes[1], counts, names)
    return png(figure)


def labels_png(per_class: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Precision, recall and F1 of each label with their 95 % intervals, and how many rows have it; of many labels the worst."""
    shown = sorted(per_class, key=lambda label: per_class[label]["f1"])[:NAMED_UP_TO]
    per_class = {label: found for label, found in per_class.items() if len(per_class) <= NAMED_UP_TO or label in shown}
    figure = Figure(figsize=(7, 1.4 + 0.5 * len(per_class)), layout="constrained")
    axes = figure.add_subplot(xlim=(0, 1), xlabel="share, and its 95 % interval")
    for offset, (name, color) in enumerate((("precision", BLUE), ("recall", ORANGE), ("f1", GREY))):
        places = np.arange(len(per_class)) + 0.22 * (offset - 1)
        lows, highs = zip(*(found["intervals"][name] for found in per_class.values()), strict=True)
        axes.hlines(places, lows, highs, color=color, linewidth=2)
        axes.plot([found[name] for found in per_class.values()], places, "o", color=color, markersize=5, label=name)
    names = [f"{short(label)} ({found['support']})" for label, found in per_class.items()]
    axes.set_yticks(range(len(per_class)), names, fontsize=8, parse_math=False)
    axes.invert_yaxis()
    axes.grid(alpha=0.25, axis="x")
    axes.legend(fontsize=8, frameon=False)
    return png(figure)


def reliability_png(true_ids: Ids, probabilities: Floats) -> bytes:
    """Accuracy against confidence in 15 bins, and below it how many rows each bin holds.

    Of several labels a text: how often a label is there, against its probability; a row counts once for each label.
    """
    measured, sureness = ("accuracy", "the predicted label") if true_ids.ndim == 1 else ("share that has the label", "a label")
    found = reliability(probabilities, true_ids)
    error = expected_calibration_error(probabilities, true_ids)
    filled = found.counts > 0
    width = found.edges[1] - found.edges[0]
    figure = Figure(figsize=(5, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, zorder=3, label="perfectly calibrated")
    upper.bar(
        found.edges[:-1][filled], found.accuracy[filled], width, align="edge", color=BLUE, edgecolor="white", label=measured
    )
    upper.plot(found.confidence[filled], found.accuracy[filled], "o", label="at mean confidence", **DOTS)
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel=measured, title=f"calibration error {error:.3f} over {len(true_ids):,} rows")
    upper.legend(loc="upper left", fontsize=8, framealpha=0.9, edgecolor="none")
    lower.bar(found.edges[:-1], found.counts, width, align="edge", color=GREY, edgecolor="white")
    lower.set(xlabel=f"confidence (probability of {sureness})", ylabel="rows" if true_ids.ndim == 1 else "rows, each label")
    return png(figure)


def difference_png(labels: Sequence[str], differences: Sequence[Interval], quantity: str) -> bytes:
    """One row a label: the difference and its 95 % interval about zero; of many labels the first and those that differ most."""
    if len(labels) > NAMED_UP_TO:
        others = sorted(range(1, len(labels)), key=lambda place: -abs(differences[place].estimate))[: NAMED_UP_TO - 1]
        labels, differences = zip(*((labels[place], differences[place]) for place in (0, *sorted(others))), strict=True)
    figure = Figure(figsize=(7, 1.2 + 0.28 * len(labels)), layout="constrained")
    axes = figure.add_subplot()
    for place, found in enumerate(differences):
        color = GREY if found.low <= 0 <= found.high else BLUE if found.estimate > 0 else ORANGE
        axes.plot([found.low, found.high], [place, place], color=color, linewidth=2)
        axes.plot(found.estimate, place, "o", color=color, markersize=5)
    axes.axvline(0, color=GREY, linewidth=1, linestyle="--")
    axes.set_yticks(range(len(labels)), [short(label) for label in labels], fontsize=8, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel(quantity)
    axes.grid(alpha=0.25, axis="x")
    return png(figure)


def learning_curve_png(losses: Mapping[str, Curve], scores: Mapping[str, Curve]) -> bytes:
    """Two panels over steps: losses, and scores between 0 and 1; each curve by its name, a single point as a dot."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_curves(left, losses, "loss")
    _draw_curves(right, scores, "score")
    _widen(right, SCORE_SPAN)
    return png(figure)


def _widen(axes: Axes, span: float) -> None:
    """The y-axis, around its middle, where it spans less."""
    least, largest = axes.get_ylim()
    if largest - least < span:
        middle = (least + largest) / 2
        axes.set_ylim(middle - span / 2, middle + span / 2)


def _write_counts(axes: Axes, counts: Ids, shares: Floats) -> None:
    for row, column in np.argwhere(counts):
        color = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=8, color=color)


def _list_confusions(axes: Axes, counts: Ids, labels: Sequence[str]) -> None:
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(wrong, axis=None, kind="stable")[::-1][:MOST_CONFUSIONS]
    pairs = [(wrong.flat[cell], labels[cell // len(labels)], labels[cell % len(labels)]) for cell in order if wrong.flat[cell]]
    lines = [f"{count:>4}  {true}\n      taken for {predicted}" for count, true, predicted in pairs]
    axes.axis("off")
    axes.set_title("most frequent confusions", fontsize=10, loc="left")
    text = "\n".join(lines) or "none"
    axes.text(0, 1, text, va="top", fontsize=8, family="monospace", transform=axes.transAxes, parse_math=False)


def _draw_curves(axes: Axes, curves: Mapping[str, Curve], quantity: str) -> None:
    for name, points in curves.items():
        steps, values = zip(*points, strict=True) if points else ((), ())
        axes.plot(steps, values, marker="o" if len(points) < 30 else "", markersize=3, linewidth=1.2, label=name)
    axes.set(xlabel="step", ylabel=quantity)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    if curves:
        axes.legend(fontsize=8, frameon=False)


def short(label: str) -> str:
    """A label as a picture names it: on one line."""
    line = " ".join(label.split())
    return line if len(line) <= SHOWN_CHARS else line[: SHOWN_CHARS - 1] + "…"


def png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a label in a script that the font lacks shows boxes
        figure.savefig(stream, format="png", dpi=120, metadata={"Software": None})
    return stream.getvalue()
