"""The service at work: how much, how fast, how sure; and whether its texts still look like those that it learned from."""

import datetime as dt
import html
import itertools
from dataclasses import dataclass
from typing import Any

import pandas as pd
import streamlit as st
from frontend import charts, view
from frontend.client import Down, Refused
from frontend.exposition import Exposition

POINTS = 240
PREDICT = "/predict"


SPANS = {"hour": 1, "day": 24, "week": 168, "30 days": 720}
STEPS = {"hour": 30, "day": 48, "week": 84, "30 days": 60}
FEW = 20  # answers of people, from which on a share of right ones is shown
REMEMBERED = 168  # hours, by the service

TROUBLES = {
    "failed": ("Failed", "Answers 500 to 599, but for those turned away"),
    "turned_away": ("Turned away", "503, because too many texts were waiting"),
    "refused": ("Refused", "Answers 400 to 499: not a question as it should be, no key, or above its rate"),
}
KINDS = ("answered", *TROUBLES)

DETECTORS = {
    "confidence": "How sure the model is",
    "predicted_classes": "Which labels it gives",
    "n_chars": "Characters a text",
    "n_words": "Words a text",
    "unknown_token_rate": "Words that it does not know",
    "max_logit": "How strongly it reacts",
    "estimated_accuracy": "Estimated share of right answers",
    "embedding": "What the texts are about",
}
"""In words; the drift service's name is the key."""


def page() -> None:
    st.title("Traffic and drift")
    now, log, drift = st.tabs(["Now", "Over time", "Drift"])
    with now:
        live = st.toggle("Look again every 5 seconds", key="live")
        st.fragment(_traffic, run_every=5 if live else None)()
    with log:
        _over_time()
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
    texts = now.total("pigeonhole_answered_total")
    codes = now.by("pigeonhole_requests_total", "code")
    requests = sum(codes.values())
    failed = sum(count for code, count in codes.items() if code.startswith("5"))
    _remember(now, failed)
    with st.container(horizontal=True):
        st.metric("Texts classified", f"{texts:,.0f}", border=True)
        st.metric("Requests", f"{requests:,.0f}", border=True)
        st.metric("Failed", view.percent(failed / requests) if requests else "0", border=True, help="Answers 500 to 599")
        st.metric("Turned away", f"{now.total('pigeonhole_shed_total'):,.0f}", border=True, help="Too many texts were waiting")
    st.caption("Since the service was started.")
    if not texts:
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
    _while_watching()
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


@dataclass(frozen=True)
class Point:
    """One look of this visit."""

    at: dt.datetime
    texts: float
    failed: float
    shed: float


def _remember(now: Exposition, failed: float) -> None:
    points = st.session_state.setdefault("points", [])
    texts, shed = now.total("pigeonhole_answered_total"), now.total("pigeonhole_shed_total")
    points.append(Point(dt.datetime.now(dt.UTC), texts, failed, shed))
    del points[:-POINTS]


def _while_watching() -> None:
    points = st.session_state.points
    if len(points) < 2:
        return
    st.subheader("While you watch", anchor=False)
    pairs = [(before, after) for before, after in itertools.pairwise(points) if after.at > before.at]
    rows = [
        {"time": after.at, "value": max(0.0, value) / (after.at - before.at).total_seconds(), "series": series}
        for before, after in pairs
        for series, value in (
            ("texts", after.texts - before.texts),
            ("failed", after.failed - before.failed),
            ("turned away", after.shed - before.shed),
        )
    ]
    st.altair_chart(
        charts.lines(pd.DataFrame(rows), "a second"),
        width="stretch",
        alt="Texts, failed and turned away requests a second, in this visit",
    )


def _log(now: Exposition) -> None:
    size, age = now.total("pigeonhole_log_spool_bytes"), now.total("pigeonhole_log_oldest_seconds")
    failures = now.total("pigeonhole_log_failures")
    waiting = f"{size / 1000:,.1f} kB not yet shipped, the oldest {age:,.0f} s old" if size else "all of it is shipped"
    words = f"Prediction log: {waiting}."
    if failures:
        st.warning(f"{words} {failures:.0f} attempts to ship have failed.", icon=":material/warning:")
    else:
        st.caption(words)


def _over_time() -> None:
    span = st.segmented_control("The last", list(SPANS), default=_first_span(), key="span") or "day"
    logged = _logged(span)
    if logged:
        st.caption(f"{logged['texts']:,} texts, as the prediction log has them. Times are in UTC.")
        _draw_volume(logged)
    _draw_troubles(span)
    if logged:
        steps, drawn = [step for step in logged["steps"] if step["texts"]], _drawn(logged)
        _draw_speed(steps, drawn)
        _draw_labels(logged, steps)
        _draw_accuracy(steps, drawn)


def _first_span() -> str:
    """A service that was started just now has an hour to show, not a day."""
    try:
        since = dt.datetime.fromisoformat(view.api().get("/history", hours=1, steps=1)["since"])
    except (Down, Refused):
        return "day"
    return "hour" if dt.datetime.now(dt.UTC) - since < dt.timedelta(hours=1) else "day"


def _logged(span: str) -> dict[str, Any] | None:
    """What the log has of this span; None, and said, where that is nothing."""
    try:
        with st.spinner("Reading the log"):
            found = _read_log(SPANS[span], STEPS[span])
    except (Down, Refused) as error:
        view.no_drift_service(error, "the log cannot be read")
        return None
    if not found["texts"]:
        st.info("The log holds no text of this span.", icon=":material/hourglass_empty:")
        return None
    return found


def _draw_troubles(span: str) -> None:
    """Of this span as far as the service remembers it: the log knows only what was answered."""
    st.subheader("Questions without an answer", anchor=False)
    try:
        found = view.api().get("/history", hours=min(SPANS[span], REMEMBERED), steps=STEPS[span])
    except (Down, Refused) as error:
        view.show_error(error)
        return
    sums = {kind: sum(step[kind] for step in found["steps"]) for kind in KINDS}
    questions = sum(sums.values())
    since = max(found["start"], found["since"])[:16].replace("T", " ")
    if not questions:
        st.caption(f"Nobody has asked anything since {since} UTC.")
        return
    with st.container(horizontal=True):
        st.metric("Questions", f"{questions:,}", border=True, help="Texts to classify or to explain, and feedback")
        for kind, (words, what) in TROUBLES.items():
            st.metric(words, view.percent(sums[kind] / questions), border=True, help=what)
    rows = [
        {"time": step["at"], "series": words, "value": step[kind] / asked}
        for step in found["steps"]
        if (asked := sum(step[kind] for kind in KINDS))
        for kind, (words, _) in TROUBLES.items()
    ]
    st.altair_chart(
        charts.lines(pd.DataFrame(rows), "of the questions", (found["start"], found["end"]), share_of=0.01),
        width="stretch",
        alt="Shares of failed, turned away and refused questions over time",
    )
    st.caption(f"Counted by the service itself since {since} UTC; it remembers a week, and nothing from before its own start.")


@st.cache_data(ttl=20, show_spinner=False)
def _read_log(hours: int, steps: int) -> dict[str, Any]:
    return view.drift().get("/traffic", hours=hours, steps=steps)


def _draw_volume(found: dict[str, Any]) -> None:
    st.subheader("Volume", anchor=False)
    rows = [
        {"time": start, "until": end, "series": words, "texts": step["decisions"].get(decision, 0)}
        for start, end, step in _spans(found)
        for decision, (words, _, _) in view.DECISIONS.items()
        if step["decisions"].get(decision)
    ]
    colours = dict(zip((words for words, _, _ in view.DECISIONS.values()), ("#2e8b57", "#d9822b", "#8a8a8a"), strict=True))
    st.altair_chart(
        charts.stacked(pd.DataFrame(rows), "texts", _drawn(found), colours), width="stretch", alt="Texts over time, by decision"
    )


def _spans(found: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Each step with its beginning and its end."""
    ends = [step["at"] for step in found["steps"][1:]] + [found["end"]]
    return [(step["at"], end, step) for step, end in zip(found["steps"], ends, strict=True)]


def _drawn(found: dict[str, Any]) -> charts.Span:
    """From when to when the pictures reach."""
    return found["steps"][0]["at"], found["end"]


def _draw_speed(steps: list[dict[str, Any]], span: charts.Span) -> None:
    st.subheader("Time to an answer", anchor=False)
    names = {"p50": "median", "p95": "95 of 100 within", "p99": "99 of 100 within"}
    rows = [
        {"time": step["at"], "series": words, "value": step["latency_ms"][name]}
        for step in steps
        for name, words in names.items()
    ]
    st.altair_chart(charts.lines(pd.DataFrame(rows), "ms", span), width="stretch", alt="Latency percentiles over time")


def _draw_labels(found: dict[str, Any], steps: list[dict[str, Any]]) -> None:
    st.subheader("Labels given", anchor=False)
    rows = [
        {"time": start, "until": end, "series": label, "texts": count}
        for start, end, step in _spans(found)
        for label, count in [*step["labels"].items(), ("other labels", step["other_labels"])]
        if count
    ]
    st.altair_chart(
        charts.stacked(pd.DataFrame(rows), "share", _drawn(found), share=True),
        width="stretch",
        alt="Share of each label over time",
    )
    st.subheader("How sure the model was", anchor=False)
    sure = [{"time": step["at"], "series": "mean score", "value": step["mean_score"]} for step in steps]
    st.altair_chart(
        charts.lines(pd.DataFrame(sure), "on average", _drawn(found), share_of=1),
        width="stretch",
        alt="How sure the model was on average, over time",
    )


def _draw_accuracy(steps: list[dict[str, Any]], span: charts.Span) -> None:
    st.subheader("How often it was right, by what people said", anchor=False)
    judged = [step for step in steps if step["judged"]]
    if not judged:
        st.caption("Nobody has said anything about these texts yet: the page Review asks.")
        return
    points = [
        {
            "time": step["at"],
            "value": step["accuracy"],
            "low": step["interval"][0],
            "high": step["interval"][1],
            "n": step["judged"],
        }
        for step in judged
    ]
    st.altair_chart(
        charts.with_interval(pd.DataFrame(points), "right", span), width="stretch", alt="Share of right answers over time"
    )
    st.caption("Estimated from the texts that somebody judged, answers to the review queue weighed; lines hold 95 % intervals.")


def _drift() -> None:
    try:
        stats = view.drift().get("/stats")
    except (Down, Refused) as error:
        view.no_drift_service(error, "there is nothing to show here")
        return
    if st.button("Compare now", type="primary", icon=":material/play_arrow:"):
        try:
            with st.spinner("Comparing the latest texts with those of training; drawing takes up to half a minute"):
                view.drift().post("/runs", {})
                stats = view.drift().get("/stats")
        except (Down, Refused) as error:
            view.show_error(error)
    reports = stats["reports"]
    if not reports:
        st.info("There is no report yet: compare now, or let a schedule do it.", icon=":material/hourglass_empty:")
        return
    _accuracy(stats["live_accuracy"], reports)
    try:
        _report()
    except (Down, Refused) as error:
        view.no_drift_service(error, "the latest report cannot be shown")
    _verdicts(reports)


def _accuracy(live: dict[str, Any], reports: list[dict[str, Any]]) -> None:
    found, measured = reports[0]["accuracy"], live["reviewed"]
    with st.container(horizontal=True):
        st.metric("Right on the test split", view.percent(found["reference"]), border=True, height="stretch")
        if found["estimated"] is not None:
            words = "From how sure the model is; no truth"
            st.metric("Estimated now", view.percent(found["estimated"]), border=True, height="stretch", help=words)
        if measured["accuracy"] is not None:
            _measured("Measured by review", measured, f"{view.count(measured['n'], 'reviewed text')}, weighed back to all")
        elif live["accuracy"] is not None:
            _measured("Right by feedback", live, f"{view.count(live['n'], 'text')} that people chose")


def _measured(name: str, found: dict[str, Any], of: str) -> None:
    """A share with its interval in sight; from a handful of answers the share alone would mislead."""
    low, high = (view.percent(end) for end in found["interval"])
    few = found["n"] < FEW
    value = "too few yet" if few else view.percent(found["accuracy"])
    between = f"{found['n']} of {FEW} answers" if few else f"{low} to {high}"
    words = f"{of}; the line below: 95 % interval" if not few else of
    st.metric(name, value, between, delta_color="off", delta_arrow="off", border=True, height="stretch", help=words)


def _verdicts(reports: list[dict[str, Any]]) -> None:
    if len(reports) < 2:
        return
    st.subheader("Verdicts", anchor=False)
    rows = pd.DataFrame(
        [
            {"time": each["at"], "verdict": each["verdict"].replace("_", " "), "alarms": ", ".join(each["alarms"])}
            for each in reports
        ]
    )
    st.altair_chart(
        charts.verdicts(rows), width="stretch", alt="; ".join(f"{row.time[:16]} {row.verdict}" for row in rows.itertuples())
    )
    estimated = [
        {"time": each["at"], "series": name, "value": each["accuracy"][key]}
        for each in reports
        for name, key in (("estimated accuracy", "estimated"), ("on the test split", "reference"))
        if each["accuracy"][key] is not None
    ]
    if estimated:
        st.altair_chart(
            charts.lines(pd.DataFrame(estimated), "right", share_of=1), width="stretch", alt="Estimated accuracy, run by run"
        )


def _report() -> None:
    latest = view.drift().get("/reports/latest.json")
    st.subheader(f"Latest comparison: {latest['verdict'].replace('_', ' ')}", anchor=False)
    seen = latest["rows"]
    _what_to_do(latest)
    when, version = latest["at"][:16].replace("T", " "), view.plain(latest["version"])
    st.caption(
        f"{when} UTC, version {version}: {seen['window']:,} predictions against {seen['reference']:,} held-out rows. "
        f"Where nothing has changed, a run alarms with a chance of {view.percent(latest['budget'])} at most."
    )
    rows = [
        {
            "compared": DETECTORS.get(each["detector"], each["detector"].replace("_", " ")),
            "verdict": each["verdict"].replace("_", " "),
            "held out": each["reference"],
            "now": each["window"],
            "effect": None if each["effect"] is None else round(each["effect"], 3) + 0.0,  # never -0.000
            "counts from": each["least_effect"],
            "by chance": each["p"],
        }
        for each in latest["findings"]
    ]
    numbers = {name: st.column_config.NumberColumn(format="%.3f") for name in ("held out", "now")}
    helped = {
        "effect": st.column_config.NumberColumn(format="%.3f", help="The size of the change, in the detector's own measure"),
        "counts from": st.column_config.NumberColumn(format="%.3f", help="A smaller effect is no alarm, however certain it is"),
        "by chance": st.column_config.NumberColumn(
            format="%.4f", help="How probable so large an effect would be if nothing had changed (p value)"
        ),
    }
    st.dataframe(pd.DataFrame(rows), hide_index=True, column_config={**numbers, **helped})
    st.caption(view.plain(latest["blind_spot"]))
    if latest["drawing"] != "drawn":
        st.caption(f"Evidently drew nothing: {view.plain(str(latest['drawing']))}.")
    elif st.toggle("Show Evidently's report"):
        document = view.drift().text(f"/reports/{latest['number']}/evidently")
        st.iframe(_caged(document), height=900)


def _what_to_do(latest: dict[str, Any]) -> None:
    """What a verdict means to somebody who has never heard of drift, and the next step."""
    if latest["verdict"] == "drift":
        changed = ", ".join(DETECTORS.get(name, name.replace("_", " ")).lower() for name in latest["alarms"])
        st.warning(
            f"Texts or answers differ from those that the model was tested on: {view.plain(changed)}. That is no proof of wrong "
            "answers: judge some texts on the page Review, and see here how often the model is still right.",
            icon=":material/notification_important:",
        )
    elif latest["verdict"] == "no_drift":
        st.success("Texts and answers look like those that the model was tested on.", icon=":material/check:")
    else:
        st.info("There were too few texts to compare. Ask some, or wait for them.", icon=":material/hourglass_empty:")


FRAME = "width:150%;height:1320px;transform:scale(.667);transform-origin:0 0;border:0;background:#fff"
"""Evidently draws for a whole window: two thirds of its size fit beside the sidebar."""


def _caged(document: str) -> str:
    """A report shows texts of strangers: a frame without an origin, within the frame, reaches neither page nor network."""
    policy = (
        "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data:; font-src data:"
    )
    guarded = f'<meta http-equiv="Content-Security-Policy" content="{policy}">{document}'
    return f'<iframe sandbox="allow-scripts" title="drift report" style="{FRAME}" srcdoc="{html.escape(guarded)}"></iframe>'


page()
