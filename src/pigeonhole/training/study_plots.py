"""Pictures of a sweep, as PNG bytes: parallel coordinates of its trials, and how much of their difference each key explains."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pigeonhole.evaluation.plots import BLUE, GREY, png


def parallel_coordinates_png(trials: Sequence[Mapping[str, Any]], values: Sequence[float], metric: str, log: set[str]) -> bytes:
    """A line for each trial through its keys' values, the best on top and brightest; `log`: keys on a log scale."""
    keys = list(trials[0])
    figure = Figure(figsize=(2.2 * len(keys) + 2.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    heights = np.stack([_heights([trial[key] for trial in trials], key in log) for key in keys], axis=1)  # (trials, keys)
    colors, norm = colormaps["viridis"], Normalize(min(values), max(values))
    for place in np.argsort(values):
        axes.plot(range(len(keys)), heights[place], color=colors(norm(values[place])), linewidth=1.6, alpha=0.9)
    for place, key in enumerate(keys):
        axes.axvline(place, color=GREY, linewidth=0.8, zorder=0)
        for value in _ticks([trial[key] for trial in trials]):
            height = _heights([*(trial[key] for trial in trials), value], key in log)[-1]
            axes.annotate(_short(value), (place, height), xytext=(4, 0), textcoords="offset points", fontsize=8, va="center")
    axes.set_xticks(range(len(keys)), keys, fontsize=9)
    axes.set_yticks([])
    axes.set_xlim(-0.2, len(keys) - 0.5)
    axes.set_frame_on(False)
    figure.colorbar(ScalarMappable(norm, colors), ax=axes, label=metric)
    return png(figure)


def importance_png(importance: Mapping[str, float], metric: str) -> bytes:
    """The share of the variance of the metric that each key explains (fANOVA; Hutter et al. 2014)."""
    keys = sorted(importance, key=lambda key: importance[key])
    figure = Figure(figsize=(6.5, 0.5 * len(keys) + 1.4), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(keys, [importance[key] for key in keys], color=BLUE)
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"share of the variance of {metric}")
    return png(figure)


def _heights(values: Sequence[Any], log: bool) -> NDArray[np.float64]:
    """Between 0 and 1; words and truth values at equal distances, in the order of their names."""
    if any(isinstance(value, bool | str) for value in values):
        names = sorted({str(value) for value in values})
        found = np.array([names.index(str(value)) for value in values], np.float64)
    else:
        found = np.log(np.array(values, np.float64)) if log else np.array(values, np.float64)
    spread = found.max() - found.min()
    return (found - found.min()) / spread if spread else np.full(len(found), 0.5)


def _ticks(values: Sequence[Any]) -> list[Any]:
    different = sorted(set(values), key=str if any(isinstance(value, bool | str) for value in values) else None)
    return different if len(different) <= 4 else [different[0], different[-1]]


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
