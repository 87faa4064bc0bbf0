"""The service at work: how much, how fast, how sure; and whether its texts still look like those that it learned from."""

import datetime as dt
import html
import itertools
from typing import Any

import pandas as pd
import streamlit as st
from frontend import charts, view
from frontend.client import Down, Refused
from frontend.exposition import Exposition

POINTS = 240
PREDICT = "/predict"


def page() -> None:
    st.title("Traffic and drift")
    traffic, drift = st.tabs(["Traffic", "Drift"])
    with traffic:
        live = st.toggle("Look again every 5 seconds", key="live")
        st.fragment(_traffic, run_every=5 if live else None)()
    with drift:
        _drift()


def _traffic() -> None:
    try:
        now = Exposition.parse(view.api().text("/metrics"))
    except (Down, Refused) as error:
        view.show_error(error)
        st.button("Try again", icon=":material/refresh:", type="primary", key="again")
        return
    except ValueError as error:
        st.error(f"/metrics cannot be read: {view.plain(str(error))}")
        return
    _remember(now)
    predictions = now.total("pigeonhole_predictions_total")
    codes = now.by("pigeonhole_requests_total", "code")
    requests = sum(codes.values())
    failed = sum(count for code, count in codes.items() if code.startswith("5"))
    with st.container(horizontal=True):
        st.metric("Texts classified", f"{predictions:,.0f}", border=True)
        st.metric("Requests", f"{requests:,.0f}", border=True)
        st.metric("Failed", view.percent(failed / requests) if requests else "0", border=True, help="Answers 500 to 599")
        st.metric("Turned away", f"{now.total('pigeonhole_shed_total'):,.0f}", border=True, help="Too many texts were waiting")
    st.caption("Since the service was started.")
    if not predictions:
        st.info(
            "No text has been classified yet: ask one on the page Classify, and come back.", icon=":material/hourglass_empty:"
        )
        return
    _latency(now)
    st.subheader("Labels given", anchor=False)
    labels = now.by("pigeonhole_predictions_total", "label")
    st.altair_chart(charts.count_bars(labels), width="stretch", alt="How many texts each label was given")
    st.subheader("How sure the model was", anchor=False)
    st.altair_chart(charts.histogram(_bins(now), "calibrated score"), width="stretch", alt="Histogram of the calibrated scores")
    _over_time()
    _log(now)


def _latency(now: Exposition) -> None:
    st.subheader("Time to an answer", anchor=False)
    with st.container(horizontal=True):
        for name, share in (("Median", 0.5), ("95 of 100 within", 0.95), ("99 of 100 within", 0.99)):
            seconds = now.percentile("pigeonhole_request_seconds", share, route=PREDICT)
            st.metric(name, _duration(seconds), border=True)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "none yet"
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _bins(now: Exposition) -> pd.DataFrame:
    low, below, rows = 0.0, 0.0, []
    for high, count in now.counts("pigeonhole_score"):
        if high <= 1:
            rows.append({"low": low, "high": high, "texts": count - below})
            low, below = high, count
    return pd.DataFrame(rows)


def _remember(now: Exposition) -> None:
    """A point of this visit; the service itself keeps no history, Prometheus does."""
    points = st.session_state.setdefault("points", [])
    seconds = now.percentile("pigeonhole_request_seconds", 0.95, route=PREDICT)
    points.append((dt.datetime.now(dt.UTC), now.total("pigeonhole_predictions_total"), seconds))
    del points[:-POINTS]


def _over_time() -> None:
    points = st.session_state.points
    if len(points) < 2:
        return
    st.subheader("While you watch", anchor=False)
    rows = [
        {
            "time": after[0],
            "value": max(0.0, after[1] - before[1]) / (after[0] - before[0]).total_seconds(),
            "series": "texts a second",
        }
        for before, after in itertools.pairwise(points)
        if after[0] > before[0]
    ]
    st.altair_chart(charts.lines(pd.DataFrame(rows), "texts a second"), width="stretch", alt="Texts a second during this visit")


def _log(now: Exposition) -> None:
    size, age = now.total("pigeonhole_log_spool_bytes"), now.total("pigeonhole_log_oldest_seconds")
    failures = now.total("pigeonhole_log_failures")
    words = f"Prediction log: {size / 1000:,.0f} kB not yet shipped, the oldest {age:,.0f} s old."
    if failures:
        st.warning(f"{words} {failures:.0f} attempts to ship have failed.", icon=":material/warning:")
    else:
        st.caption(words)


def _drift() -> None:
    try:
        stats = view.drift().get("/stats")
    except (Down, Refused) as error:
        st.info("The drift service is not reachable, so there is nothing to show here.", icon=":material/cloud_off:")
        st.caption(f"{view.plain(str(error))}. `PIGEONHOLE_DRIFT_URL` says where this page looks for it.")
        return
    st.subheader("The log, as the drift service reads it", anchor=False)
    st.dataframe(_flat(stats), hide_index=True)
    if st.button("Compare now", type="primary", icon=":material/play_arrow:"):
        try:
            with st.spinner("Comparing the latest texts with those of training"):
                view.drift().post("/runs", {})
        except (Down, Refused) as error:
            view.show_error(error)
    _report()


def _report() -> None:
    try:
        latest = view.drift().get("/reports/latest.json")
    except (Down, Refused) as error:
        st.info(f"There is no report yet: {view.plain(str(error))}")
        return
    st.subheader("Latest comparison", anchor=False)
    st.dataframe(_flat(latest), hide_index=True)
    if st.toggle("Show the full report"):
        try:
            document = view.drift().text("/reports/latest")
        except (Down, Refused) as error:
            view.show_error(error)
        else:
            st.iframe(_caged(document), height=900)


def _caged(document: str) -> str:
    """A report shows texts of strangers: a frame without an origin, within the frame, reaches neither page nor network."""
    policy = (
        "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data:; font-src data:"
    )
    guarded = f'<meta http-equiv="Content-Security-Policy" content="{policy}">{document}'
    return (
        f'<iframe sandbox="allow-scripts" title="drift report" style="width:100%;height:880px;border:0;background:#fff" '
        f'srcdoc="{html.escape(guarded)}"></iframe>'
    )


def _flat(found: dict[str, Any], prefix: str = "") -> pd.DataFrame:
    """Nested JSON as rows of name and value."""
    rows: list[tuple[str, str]] = []

    def walk(value: Any, name: str) -> None:
        if isinstance(value, dict):
            for key, below in value.items():
                walk(below, f"{name}.{key}" if name else str(key))
        elif isinstance(value, list) and len(value) > 8:
            rows.append((name, f"{len(value)} entries"))
        else:
            rows.append((name, f"{value:.4g}" if isinstance(value, float) else str(value)))

    walk(found, prefix)
    return pd.DataFrame(rows, columns=["what", "value"])


page()
