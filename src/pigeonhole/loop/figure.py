"""The demo's picture and page: accuracy, alarms and versions over time."""

import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pigeonhole.loop.traffic import Answer

LAST = 50  # predictions that one point of the curve looks back on
COLORS = ("#1f5fa8", "#2e8b57", "#8a5fb8", "#b8860b")
RED, GREY = "#a40e26", "#57606a"


@dataclass(frozen=True)
class Event:
    """Something that the picture marks; `at` is in seconds of time.time()."""

    at: float
    name: str
    alarming: bool = False


def loop_png(answers: Sequence[Answer], events: Sequence[Event]) -> bytes:
    """The share of right answers among the last LAST, coloured by the version that gave them, with what happened above it."""
    answered = [answer for answer in answers if answer.version is not None]
    moments = np.array([answer.at for answer in answered])
    right = np.array([answer.right for answer in answered], float)
    looking_back = [right[max(0, place + 1 - LAST) : place + 1].mean() for place in range(len(right))]
    share = np.where(np.arange(1, len(right) + 1) >= min(LAST, len(right)), looking_back, np.nan)
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    axes = figure.add_subplot()
    for number, version in enumerate(dict.fromkeys(answer.version for answer in answered)):
        places = np.flatnonzero([answer.version == version for answer in answered]) + 1
        color = COLORS[number % len(COLORS)]
        axes.plot(places, share[places - 1], linewidth=1.6, color=color, label=f"version {version}")
        axes.axvspan(places[0], places[-1], color=color, alpha=0.07, linewidth=0)
    for number, event in enumerate(sorted(events, key=lambda event: event.at)):
        place = float(np.searchsorted(moments, event.at))
        color = RED if event.alarming else GREY
        axes.axvline(place, color=color, linewidth=1, linestyle="--")
        said = f"{event.name} ({event.at - moments[0]:.0f} s)"
        axes.text(
            place, 1.02 + 0.06 * (number % 4), said, color=color, fontsize=8, ha="center", transform=axes.get_xaxis_transform()
        )
    low = max(0.0, float(np.floor((np.nanmin(share) - 0.05) * 10) / 10))
    axes.set(ylim=(low, 1.0), xlabel="predictions", ylabel=f"right answers among the last {LAST}")
    axes.set_title("\n\n\n", fontsize=9)  # room for the events
    axes.grid(alpha=0.25)
    axes.legend(loc="lower left", fontsize=8, frameon=False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120, metadata={"Software": None})
    return stream.getvalue()


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
