"""The demo's picture and page: accuracy, alarms and versions over time."""

import html
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from pigeonhole.evaluation.plots import png
from pigeonhole.loop.traffic import Answer

LAST = 50  # predictions that one point of the curve looks back on
LEAST = 15  # fewer are no share worth a point
COLORS = ("#1f5fa8", "#2e8b57", "#8a5fb8", "#b8860b")
RED, GREY = "#a40e26", "#57606a"
PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}


@dataclass(frozen=True)
class Event:
    """Something that the picture marks; `at` is in seconds of time.time(). `turning`: from here on the world is another one."""

    at: float
    name: str
    alarming: bool = False
    turning: bool = False


def loop_png(answers: Sequence[Answer], events: Sequence[Event]) -> bytes:
    """The share of right answers among the last LAST of one version in one world, with what happened above it."""
    answered = [answer for answer in answers if answer.version is not None]
    moments = np.array([answer.at for answer in answered])
    right = np.array([answer.right for answer in answered], float)
    versions = list(dict.fromkeys(answer.version for answer in answered))
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    axes = figure.add_subplot()
    borders = _borders(answered, [np.searchsorted(moments, event.at) for event in events if event.turning])
    for start, end in itertools.pairwise(borders):
        number = versions.index(answered[start].version)
        _draw_stretch(axes, right, start, end, COLORS[number % len(COLORS)])
    for number, event in enumerate(sorted(events, key=lambda event: event.at)):
        place = float(np.searchsorted(moments, event.at))
        color = RED if event.alarming else GREY
        axes.axvline(place, color=color, linewidth=1, linestyle="--")
        said = f"{event.name} ({event.at - moments[0]:.0f} s)"
        height = 1.02 + 0.06 * (number % 4)
        side = "right" if place > 0.9 * len(right) else "center"
        axes.text(place, height, said, color=color, fontsize=8, ha=side, transform=axes.get_xaxis_transform())
    axes.set(ylim=(0, 1), xlim=(0, len(right)), xlabel="predictions", ylabel=f"right answers among the last {LAST}")
    axes.set_title("\n\n\n", fontsize=9)  # room for the events
    axes.grid(alpha=0.25)
    lines = [Line2D([], [], color=COLORS[number % len(COLORS)]) for number in range(len(versions))]
    axes.legend(lines, [f"version {version}" for version in versions], loc="lower left", fontsize=8, frameon=False)
    return png(figure)


def _borders(answered: Sequence[Answer], turns: Sequence[np.intp]) -> list[int]:
    """Where another version or another world begins, with both ends."""
    swaps = {place for place in range(1, len(answered)) if answered[place].version != answered[place - 1].version}
    return sorted({0, *swaps, *map(int, turns), len(answered)})


def _draw_stretch(axes: Axes, right: NDArray[np.float64], start: int, end: int, color: str) -> None:
    """The curve once it has LEAST answers to look back on, and the share of the whole stretch."""
    places = np.arange(min(start + LEAST, end) - 1, end)
    shares = [right[max(start, place + 1 - LAST) : place + 1].mean() for place in places]
    mean = right[start:end].mean()
    axes.axvspan(start, end, color=color, alpha=0.07, linewidth=0)
    axes.plot(places + 1, shares, linewidth=1.6, color=color)
    axes.hlines(mean, start, end, color=color, linewidth=1, linestyle=":")
    if end - start >= LEAST:
        away = 0.2 if mean < 0.5 else -0.35
        axes.text((start + end) / 2, mean + away, f"{mean:.2f}", color=color, fontsize=12, weight="bold", ha="center", bbox=PAPER)


def page(result: Mapping[str, Any], picture: str, links: Mapping[str, str]) -> str:
    """What happened, for a browser."""
    steps = "".join(f"<tr><td>{step['seconds']:.0f} s</td><td>{html.escape(step['said'])}</td></tr>" for step in result["steps"])
    named = " · ".join(f'<a href="{html.escape(url)}">{html.escape(name)}</a>' for name, url in links.items())
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Pigeonhole: the loop</title>
<style>body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem }}
img {{ max-width: 100% }} td {{ padding: .2rem .8rem .2rem 0; vertical-align: top }}</style>
<h1>The loop</h1><img alt="accuracy, alarms and versions over time" src="{html.escape(picture)}"><p>{named}</p>
<table>{steps}</table></html>
"""
