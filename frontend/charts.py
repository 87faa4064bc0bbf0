"""The few pictures of the page, as Altair charts: long label names stay whole, bars carry their number."""

from collections.abc import Mapping

import altair as alt
import pandas as pd

from frontend.view import percent

BLUE = "#3d85c6"
ROW_PX = 30


def probability_bars(probabilities: Mapping[str, float], most: int = 10) -> alt.LayerChart:
    """The likeliest labels first, with their share written at the bar's end."""
    top = sorted(probabilities.items(), key=lambda pair: -pair[1])[:most]
    rows = pd.DataFrame(
        {
            "label": [label for label, _ in top],
            "probability": [share for _, share in top],
            "share": [percent(share) for _, share in top],
            "first": [number == 0 for number in range(len(top))],
        }
    )
    base = alt.Chart(rows).encode(
        y=alt.Y("label:N", sort=None, title=None, axis=alt.Axis(labelLimit=220, labelFontSize=13)),
        x=alt.X("probability:Q", scale=alt.Scale(domain=[0, 1.12]), title=None, axis=None),
        tooltip=[alt.Tooltip("label:N"), alt.Tooltip("probability:Q", format=".4f")],
    )
    bars = base.mark_bar(cornerRadiusEnd=3, height={"band": 0.7}).encode(
        color=alt.condition("datum.first", alt.value(BLUE), alt.value("#9db8d2"))
    )
    words = base.mark_text(align="left", dx=6, fontSize=13, color="#808080").encode(text="share:N")
    chart: alt.LayerChart = (bars + words).properties(height=ROW_PX * len(top))
    return chart


def count_bars(counts: Mapping[str, float], most: int = 15) -> alt.LayerChart:
    """The commonest first; the rest together as one bar."""
    ranked = sorted(counts.items(), key=lambda pair: -pair[1])
    top, rest = ranked[:most], ranked[most:]
    if rest:
        top.append((f"{len(rest)} others", sum(count for _, count in rest)))
    rows = pd.DataFrame(top, columns=["label", "texts"])
    rows["words"] = [f"{count:,.0f}" for count in rows["texts"]]
    base = alt.Chart(rows).encode(
        y=alt.Y("label:N", sort=None, title=None, axis=alt.Axis(labelLimit=220, labelFontSize=13)),
        x=alt.X("texts:Q", title=None, axis=None, scale=alt.Scale(domain=[0, max(1.0, float(rows["texts"].max()) * 1.15)])),
        tooltip=["label:N", "texts:Q"],
    )
    bars = base.mark_bar(cornerRadiusEnd=3, height={"band": 0.7}, color=BLUE)
    words = base.mark_text(align="left", dx=6, fontSize=13, color="#808080").encode(text="words:N")
    chart: alt.LayerChart = (bars + words).properties(height=ROW_PX * len(rows))
    return chart


def histogram(bins: pd.DataFrame, title: str) -> alt.Chart:
    """`bins` has the columns low, high, texts."""
    chart: alt.Chart = (
        alt.Chart(bins)
        .mark_bar(color=BLUE)
        .encode(
            x=alt.X("low:Q", bin="binned", title=title, axis=alt.Axis(format="%")),
            x2="high:Q",
            y=alt.Y("texts:Q", title="texts", axis=alt.Axis(format=",d", tickMinStep=1)),
            tooltip=[alt.Tooltip("low:Q", format=".0%"), alt.Tooltip("high:Q", format=".0%"), "texts:Q"],
        )
        .properties(height=220)
    )
    return chart


def lines(points: pd.DataFrame, title: str) -> alt.Chart:
    """`points` has the columns time, value, series."""
    chart: alt.Chart = (
        alt.Chart(points)
        .mark_line(point=True)
        .encode(
            x=alt.X("time:T", title=None),
            y=alt.Y("value:Q", title=title, scale=alt.Scale(domainMin=0)),
            color=alt.Color("series:N", title=None, legend=alt.Legend(orient="bottom")),
            tooltip=["time:T", "series:N", alt.Tooltip("value:Q", format=".4g")],
        )
        .properties(height=220)
    )
    return chart
