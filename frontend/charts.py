"""The few pictures of the page, as Altair charts: long label names stay whole, bars carry their number."""

from collections.abc import Mapping, Sequence
from datetime import timedelta

import altair as alt
import pandas as pd

from frontend.view import percent

BLUE = "#3d85c6"
GREY = "#808080"
MOST_PROBABILITIES, MOST_COUNTS = 10, 15  # bars of a picture
ROW_PX = 30
FRAME_PX = 24  # Streamlit fits a picture and its margins into the height: without this, one bar alone is cut in half
TALL = 280
SERIES = [BLUE, "#d9822b", "#9b6fc4", "#2e8b57"]  # read on white and on black
WHEN = alt.Tooltip("time:T", title="from (UTC)", format="%d %b %H:%M")

Span = tuple[str, str]  # ISO times


def _legend(columns: int) -> alt.Legend:
    """Over the picture; so many columns of its words fit on a phone."""
    return alt.Legend(orient="top", direction="horizontal", columns=columns, labelLimit=260, offset=4)


def probability_bars(probabilities: Mapping[str, float]) -> alt.LayerChart:
    """The likeliest labels first, with their share written at the bar's end."""
    top = sorted(probabilities.items(), key=lambda pair: -pair[1])[:MOST_PROBABILITIES]
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
    words = base.mark_text(align="left", dx=6, fontSize=13, color=GREY).encode(text="share:N")
    chart: alt.LayerChart = (bars + words).properties(height=ROW_PX * len(top) + FRAME_PX)
    return chart


def count_bars(counts: Mapping[str, float]) -> alt.LayerChart:
    """The commonest first; the rest together as one bar."""
    ranked = sorted(counts.items(), key=lambda pair: -pair[1])
    top, rest = ranked[:MOST_COUNTS], ranked[MOST_COUNTS:]
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
    words = base.mark_text(align="left", dx=6, fontSize=13, color=GREY).encode(text="words:N")
    chart: alt.LayerChart = (bars + words).properties(height=ROW_PX * len(rows) + FRAME_PX)
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


def lines(points: pd.DataFrame, title: str, span: Span | None = None, share_of: float | None = None) -> alt.Chart:
    """`points` has the columns time, value, series; `span`: from when to when, else as far as the points go.

    With `share_of` values are drawn in percent, from 0 to so much at least: no failure at all is a line at the foot, not noise.
    """
    several = points["series"].nunique() > 1
    top = alt.Undefined if share_of is None else max(share_of, float(points["value"].max()))
    chart: alt.Chart = (
        alt.Chart(points)
        .mark_line(point=True)
        .encode(
            x=_time(span),
            y=alt.Y(
                "value:Q",
                title=title,
                scale=alt.Scale(domainMin=0, domainMax=top),
                axis=alt.Axis(format="~%" if share_of else ",~r"),
            ),
            color=alt.Color(
                "series:N", title=None, sort=None, scale=alt.Scale(range=SERIES), legend=_legend(2) if several else None
            ),
            tooltip=[WHEN, alt.Tooltip("series:N", title="of"), alt.Tooltip("value:Q", format=".1%" if share_of else ",.4~r")],
        )
        .properties(height=TALL)
    )
    return chart


def _time(span: Span | None) -> alt.X:
    """In UTC, as all times of the page. It covers the span that was asked for, so that a single point stands at its time."""
    if span is None:
        return alt.X("time:T", title=None, scale=alt.Scale(type="utc"), axis=alt.Axis(format="%d %b %H:%M", tickCount=4))
    start, end = (pd.Timestamp(at).tz_convert("UTC") for at in span)
    words = "%H:%M" if end - start <= timedelta(hours=26) else "%d %b"
    scale = alt.Scale(type="utc", domain=[_moment(start), _moment(end)])
    return alt.X("time:T", title=None, scale=scale, axis=alt.Axis(format=words, tickCount=7, labelOverlap=True, grid=False))


def _moment(at: pd.Timestamp) -> alt.DateTime:
    return alt.DateTime(year=at.year, month=at.month, date=at.day, hours=at.hour, minutes=at.minute, seconds=at.second, utc=True)


def confusion(
    cells: pd.DataFrame,
    labels: Sequence[str],
    true_labels: Sequence[str] | None = None,
    across: str = "taken for",
    down: str = "true label",
) -> alt.LayerChart:
    """`cells` has true_label, label, n, share (of the true label's rows); a click chooses a cell (`cell`)."""
    chosen = alt.selection_point(name="cell", fields=["true_label", "label"], empty=False)
    base = alt.Chart(cells).encode(
        x=alt.X(
            "label:N",
            sort=list(labels),
            title=across,
            axis=alt.Axis(labelAngle=-45 if len(labels) > 2 else 0, labelLimit=160, labelOverlap=False, orient="top"),
        ),
        y=alt.Y("true_label:N", sort=list(true_labels or labels), title=down, axis=alt.Axis(labelLimit=160)),
        tooltip=["true_label:N", "label:N", "n:Q", alt.Tooltip("share:Q", format=".1%")],
    )
    squares = base.mark_rect(cursor="pointer", stroke="#80808040").encode(
        color=alt.Color("share:Q", scale=alt.Scale(domain=[0, 1], range=["#eaf2f9", "#0b4a80"]), legend=None),
        strokeWidth=alt.condition(chosen, alt.value(3), alt.value(1)),
    )
    words = base.mark_text(fontSize=12).encode(
        text="n:Q", color=alt.condition("datum.share > 0.45", alt.value("#ffffff"), alt.value("#10253a"))
    )
    chart: alt.LayerChart = (squares.add_params(chosen) + words).properties(height=150 + 36 * len(labels))
    return chart


def calibration(bins: pd.DataFrame) -> alt.LayerChart:
    """`bins` has confidence, accuracy, low, high, n: points with their intervals beside the diagonal of perfect calibration."""
    diagonal = (
        alt.Chart(pd.DataFrame({"x": [0, 1], "y": [0, 1]})).mark_line(strokeDash=[4, 4], color=GREY).encode(x="x:Q", y="y:Q")
    )
    base = alt.Chart(bins).encode(
        x=alt.X("confidence:Q", title="how sure", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%")),
        tooltip=[alt.Tooltip("confidence:Q", format=".1%"), alt.Tooltip("accuracy:Q", format=".1%"), "n:Q"],
    )
    spans = base.mark_rule(color=BLUE, strokeWidth=2, opacity=0.6).encode(y=alt.Y("low:Q", title="how often right"), y2="high:Q")
    points = base.mark_point(filled=True, color=BLUE, opacity=1).encode(
        y=alt.Y("accuracy:Q", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%")),
        size=alt.Size("n:Q", scale=alt.Scale(range=[40, 300]), legend=None),
    )
    chart: alt.LayerChart = (diagonal + spans + points).properties(height=320)
    return chart


def stacked(
    rows: pd.DataFrame, title: str, span: Span, colours: Mapping[str, str] | None = None, share: bool = False
) -> alt.Chart:
    """`rows` has time, until, series, texts: a bar a step, as broad as that; with `share` all are of one height."""
    piled = rows.assign(top=rows.groupby("time")["texts"].cumsum())
    piled["foot"] = piled["top"] - piled["texts"]
    if share:
        sums = rows.groupby("time")["texts"].transform("sum")
        piled["top"], piled["foot"] = piled["top"] / sums, piled["foot"] / sums
    scale = alt.Scale(domain=list(colours), range=list(colours.values())) if colours else alt.Scale(scheme="tableau10")
    axis = alt.Axis(format="%" if share else ",d", tickMinStep=alt.Undefined if share else 1)
    chart: alt.Chart = (
        alt.Chart(piled)
        .mark_rect(stroke=None)
        .encode(
            x=_time(span),
            x2="until:T",
            y=alt.Y("foot:Q", title=title, axis=axis, scale=alt.Scale(domainMax=1) if share else alt.Undefined),
            y2="top:Q",
            color=alt.Color("series:N", title=None, sort=None, scale=scale, legend=_legend(1 if colours else 2)),
            tooltip=[WHEN, alt.Tooltip("series:N", title="of"), "texts:Q"],
        )
        .properties(height=TALL)
    )
    return chart


def with_interval(points: pd.DataFrame, title: str, span: Span) -> alt.LayerChart:
    """`points` has time, value, low, high: shares between 0 and 1 with where the truth lies with 95 % confidence."""
    base = alt.Chart(points).encode(x=_time(span), tooltip=[WHEN, alt.Tooltip("value:Q", format=".1%"), "n:Q"])
    spans = base.mark_rule(color=BLUE, opacity=0.5, strokeWidth=2).encode(
        y=alt.Y("low:Q", title=title, scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%")), y2="high:Q"
    )
    dots = base.mark_line(point=True, color=BLUE).encode(y="value:Q")
    chart: alt.LayerChart = (spans + dots).properties(height=TALL)
    return chart


def verdicts(rows: pd.DataFrame) -> alt.Chart:
    """`rows` has time, verdict (in words), alarms: one dot a run."""
    colours = alt.Scale(domain=["no drift", "drift", "too few rows"], range=["#2e8b57", "#c0392b", GREY])
    chart: alt.Chart = (
        alt.Chart(rows)
        .mark_point(filled=True, size=120, opacity=0.9)
        .encode(
            x=_time(None),
            y=alt.Y("verdict:N", title=None, sort=["drift", "no drift", "too few rows"]),
            color=alt.Color("verdict:N", scale=colours, legend=None),
            shape=alt.Shape("verdict:N", legend=None),
            tooltip=["time:T", "verdict:N", "alarms:N"],
        )
        .properties(height=150)
    )
    return chart
