"""A whole file: upload, choose the column, watch it run, look through the answers, take them home."""

from collections.abc import Callable
from typing import Any

import pandas as pd
import streamlit as st
from frontend import charts, view
from frontend.batch import BatchJob
from frontend.table import KINDS, MAX_ROWS, Unreadable, beside, likely_text_column, read_table, safe_csv
from streamlit import runtime
from streamlit.runtime.scriptrunner import get_script_run_ctx

SHOWN = 1000  # rows that go to the browser; the download has them all


def page() -> None:
    st.title("Batch")
    about = view.model_or_stop()
    st.caption(f"Up to {MAX_ROWS:,} texts at a time, in CSV, TSV, Excel or JSON Lines.")
    file = st.file_uploader("File", type=list(KINDS), on_change=_forget)
    if file is not None and "table" not in st.session_state:
        try:
            with st.spinner("Reading the file"):
                st.session_state.table = read_table(file.name, file.getvalue())
        except Unreadable as error:
            st.error(view.plain(str(error)), icon=":material/error:")
            return
        st.session_state.file_name = file.name
    if "table" not in st.session_state:
        return
    if file is None:  # the field above forgets its file when another page is looked at
        st.caption(f"Still {view.plain(st.session_state.file_name)}; another file takes its place.")
    _classify(st.session_state.table, about)


def _forget() -> None:
    """One file at a time: its rows, its job and its download go with it."""
    job = st.session_state.pop("job", None)
    if job is not None:
        job.cancel()
    for key in ("table", "file_name", "column", "asked_column", "download"):
        st.session_state.pop(key, None)


def _classify(table: pd.DataFrame, about: dict[str, Any]) -> None:
    columns = [str(column) for column in table.columns]
    job: BatchJob | None = st.session_state.get("job")
    running = job is not None and not job.finished
    likely = st.session_state.get("asked_column") or likely_text_column(table)
    column = st.selectbox("Column with the texts", columns, index=columns.index(likely), disabled=running, key="column")
    if job is None:
        st.write(f"{view.count(len(table), 'row')}; the first of them:")
        st.dataframe(table.head(5), hide_index=True)
    label = f"Classify {view.count(len(table), 'text')}" if job is None else "Classify again"
    if st.button(label, type="primary", icon=":material/play_arrow:", disabled=running):
        st.session_state.pop("download", None)
        limit = int(about["limits"]["characters"])
        st.session_state.job = BatchJob(view.api(), table[column].tolist(), limit, is_watched=_visit())
        st.session_state.asked_column = column
        st.rerun()
    if running and job is not None:
        _progress()
    elif job is not None:
        _results(job, table)


def _visit() -> Callable[[], bool]:
    """Whether the browser that asks now is still connected, asked later and from any thread."""
    context = get_script_run_ctx()
    if context is None or not runtime.exists():
        return lambda: True  # a page without a server: nobody can leave it
    server, session = runtime.get_instance(), context.session_id
    return lambda: bool(server.is_active_session(session))


@st.fragment(run_every=0.5)
def _progress() -> None:
    job: BatchJob = st.session_state.job
    if job.finished:
        st.rerun()
    left = job.seconds_left
    eta = "" if left is None else f", {_duration(left)} left"
    st.progress(job.done / job.total, f"{job.done:,} of {job.total:,} texts{eta}")
    if st.button("Cancel", icon=":material/stop:", disabled=job.cancelled):
        job.cancel()


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


def _results(job: BatchJob, table: pd.DataFrame) -> None:
    results = job.results()
    if job.error:
        st.error(f"Stopped after {job.done:,} of {job.total:,} texts: {view.plain(job.error)}", icon=":material/cloud_off:")
    elif job.cancelled and job.done < job.total:
        st.warning(f"Cancelled after {job.done:,} of {job.total:,} texts; what is done stays here.")
    else:
        version = f", model version {view.plain(job.model_version)}" if job.model_version else ""  # nobody is asked about blanks
        st.success(f"{view.count(job.done, 'text')} in {_duration(job.seconds)}{version}")
    if results.empty:
        return
    _summary(results)
    _look_through(results, table)
    _download(results, table)


def _summary(results: pd.DataFrame) -> None:
    answered = results[results["label"] != ""]
    decisions = answered["decision"].value_counts()
    with st.container(horizontal=True):
        for decision, (words, _, _) in view.DECISIONS.items():
            if decision in decisions:
                st.metric(words, f"{decisions[decision]:,}", border=True)
        passed = len(results) - len(answered)
        if passed:
            st.metric("Passed over (blank)", f"{passed:,}", border=True)
    if answered.empty:
        return
    counts = {str(label): float(count) for label, count in answered["label"].value_counts().items()}
    st.subheader("Labels given", anchor=False)
    st.altair_chart(charts.count_bars(counts), width="stretch", alt="How many texts each label was given")
    st.subheader("How sure the model was", anchor=False)
    bins = (answered["score"] * 20).clip(upper=19.999).astype(int).value_counts().reindex(range(20), fill_value=0)
    frame = pd.DataFrame(
        {"low": [n / 20 for n in range(20)], "high": [(n + 1) / 20 for n in range(20)], "texts": bins.to_numpy()}
    )
    st.altair_chart(charts.histogram(frame, "calibrated score"), width="stretch", alt="Histogram of the calibrated scores")


def _look_through(results: pd.DataFrame, table: pd.DataFrame) -> None:
    st.subheader("Look through", anchor=False)
    texts = table[st.session_state.asked_column].iloc[: len(results)].reset_index(drop=True)
    left, middle = st.columns(2)
    labels = left.multiselect("Labels", sorted(set(results["label"]) - {""}), placeholder="all")
    decisions = middle.multiselect(
        "Decisions", sorted(set(results["decision"]) - {""}), format_func=view.decision_in_words, placeholder="all"
    )
    needle = st.text_input("Text contains", placeholder="any text")
    keep = pd.Series(True, index=results.index)
    if labels:
        keep &= results["label"].isin(labels)
    if decisions:
        keep &= results["decision"].isin(decisions)
    if needle:
        keep &= texts.str.contains(needle, case=False, regex=False)
    shown = results[keep].head(SHOWN)
    st.caption(view.count(int(keep.sum()), "row") + (f", the first {SHOWN:,} shown" if keep.sum() > SHOWN else ""))
    frame = pd.DataFrame({"text": texts[shown.index].str.slice(0, 500), **shown.to_dict("series")})
    frame["decision"] = frame["decision"].map(view.decision_in_words)
    frame["score"] = frame["score"].astype(float) * 100
    if not frame["note"].any():
        frame = frame.drop(columns="note")
    st.dataframe(
        frame,
        hide_index=True,
        column_config={
            "score": st.column_config.NumberColumn("sure", format="%.1f %%"),
            "text": st.column_config.TextColumn(width="large"),
        },
    )


def _download(results: pd.DataFrame, table: pd.DataFrame) -> None:
    if "download" not in st.session_state:
        st.session_state.download = safe_csv(beside(table, results))
    st.download_button(
        f"Download {view.count(len(results), 'row')} as CSV",
        st.session_state.download,
        "classified.csv",
        "text/csv",
        icon=":material/download:",
        help="Your columns and the answers. An apostrophe stands before what a spreadsheet would take for a formula.",
        on_click="ignore",
    )


page()
