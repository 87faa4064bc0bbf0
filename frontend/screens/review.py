"""The review queue: the predictions that a person's look is worth most, one at a time, a key for each label.

What is said goes to the service as feedback of source `review`; the drift service estimates from it how often the model is right.
"""

import json
from typing import Any, Literal

import pandas as pd
import streamlit as st
from frontend import view
from frontend.client import Down, Refused
from frontend.table import safe_csv

TAKEN = 50
KEYS = "123456789"
WHY = {
    "uncertain": "asked because the model was not sure",
    "audit": "asked at random, to see how often the model is right where it has little doubt",
}


def page() -> None:
    st.title("Review")
    about = view.model_or_stop()
    st.caption(
        "You see a text and say what it is: click a label, or press its key. The model's own label comes first. "
        "What you say is kept as feedback: it measures the model, and the next version learns from it."
    )
    if "queue" not in st.session_state and not _take_queue():
        return
    queue: list[dict[str, Any]] = st.session_state.queue
    judged: dict[str, dict[str, Any]] = st.session_state.setdefault("judged", {})
    open_items = [item for item in queue if item["prediction_id"] not in judged]
    _so_far(judged)
    if open_items:
        st.caption(f"{len(open_items):,} in hand, {st.session_state.waiting:,} were waiting when they were taken.")
        _ask(open_items[0], about["labels"])
    else:
        st.success("Nothing is waiting for a person.", icon=":material/done_all:")
        if st.button("Look for more", icon=":material/refresh:", type="primary"):
            st.session_state.pop("queue")
            st.rerun()
    _export(judged)


def _take_queue() -> bool:
    try:
        with st.spinner("Looking through the log"):
            found = view.drift().get("/review", n=TAKEN)
    except (Down, Refused) as error:
        view.no_drift_service(error, "there is no queue")
        st.button("Try again", icon=":material/refresh:", type="primary")
        return False
    st.session_state.queue, st.session_state.waiting = found["items"], found["waiting"]
    return True


def _so_far(judged: dict[str, dict[str, Any]]) -> None:
    told = _told(judged)
    if not told:
        return
    same = sum(set(each["said"]) == set(view.labels_of(each)) for each in told)
    with st.container(horizontal=True):
        st.metric("Judged in this visit", f"{len(told):,}", border=True)
        st.metric("You agree with the model", view.percent(same / len(told)), border=True)
    _estimate()


def _told(judged: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Without those that were skipped."""
    return [each for each in judged.values() if each["said"] is not None]


@st.cache_data(ttl=30, show_spinner=False)
def _reviewed() -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = view.drift().get("/stats")["live_accuracy"]["reviewed"]
    except (Down, Refused, KeyError):
        return None
    return found


def _estimate() -> None:
    found = _reviewed()
    if found and found["accuracy"] is not None:
        low, high = found["interval"]
        st.caption(
            f"From {view.count(found['n'], 'answer')} to this queue so far: the model is right in "
            f"{view.percent(found['accuracy'])} of its traffic (95 % interval {view.percent(low)} to {view.percent(high)})."
        )


def _ask(item: dict[str, Any], labels: list[str]) -> None:
    with st.container(border=True):
        if item["text"] is None:
            st.info("The log keeps no text of this prediction (PIGEONHOLE_TEXT), so only its labels can be seen.")
        else:
            st.text(item["text"])
        words = WHY.get(item["reason"], item["reason"])
        given = view.plain(view.joined(view.labels_of(item)))  # isolated below: an Arabic label would draw the number to itself
        st.caption(f"Model: \u2068{given}\u2069, {view.percent(item['score'])} sure; {words}.")
        ranked = sorted(item["probabilities"], key=lambda label: -item["probabilities"][label])
        likely = [label for label in dict.fromkeys([item["label"], *ranked]) if label in labels]
        if "labels" in item:
            _ask_for_several(item, labels)
        else:
            _ask_for_one(item, likely, sorted(set(labels) - set(likely[: len(KEYS)])))
        if st.button("Skip", shortcut="s", icon=":material/skip_next:", key=f"skip-{item['prediction_id']}"):
            _keep(item, None)


def _ask_for_one(item: dict[str, Any], likely: list[str], others: list[str]) -> None:
    with st.container(horizontal=True, gap="small"):
        for key, label in zip(KEYS, likely, strict=False):
            _button(item, label, key)
    if others:
        with st.container(horizontal=True, gap="small", vertical_alignment="bottom"):
            chosen = st.selectbox("Another label", others, index=None, key=f"other-{item['prediction_id']}")
            if st.button("Take it", disabled=chosen is None, key=f"take-{item['prediction_id']}") and chosen:
                _judge(item, [chosen])


def _ask_for_several(item: dict[str, Any], labels: list[str]) -> None:
    """All labels of a text, any number of them; the model's own are chosen already."""
    identity = item["prediction_id"]
    chosen = st.multiselect("Labels", labels, default=view.labels_of(item), key=f"several-{identity}")
    if st.button("These are right", type="primary", shortcut="1", key=f"is-{identity}-1"):
        _judge(item, chosen)


def _button(item: dict[str, Any], label: str, key: str) -> None:
    kind: Literal["primary", "secondary"] = "primary" if key == KEYS[0] else "secondary"
    if st.button(view.plain(label), shortcut=key, type=kind, key=f"is-{item['prediction_id']}-{key}"):
        _judge(item, [label])


def _judge(item: dict[str, Any], said: list[str]) -> None:
    what = {"labels": said} if "labels" in item else {"label": said[0]}
    try:
        view.api().post("/feedback", {"prediction_id": item["prediction_id"], "source": item["source"], **what})
    except (Down, Refused) as error:
        view.show_error(error)
    else:
        _keep(item, said)


def _keep(item: dict[str, Any], said: list[str] | None) -> None:
    st.session_state.judged[item["prediction_id"]] = {**item, "said": said}
    st.rerun()


def _export(judged: dict[str, dict[str, Any]]) -> None:
    told = _told(judged)
    if not told:
        return
    st.subheader("What you said", anchor=False)
    rows = pd.DataFrame(
        {
            "text": [each["text"] or "" for each in told],
            "label": [_cell(each) for each in told],
            "model said": [view.joined(view.labels_of(each)) for each in told],
            "prediction_id": [each["prediction_id"] for each in told],
        }
    )
    st.dataframe(rows[["text", "label", "model said"]].iloc[::-1], hide_index=True)
    with st.container(horizontal=True):
        st.download_button(
            "Download as CSV", safe_csv(rows), "reviewed.csv", "text/csv", icon=":material/download:", on_click="ignore",
            help="Columns text and label are as training reads them.",
        )  # fmt: skip
        lines = "".join(
            json.dumps({"text": each["text"], "label": _cell(each), "prediction_id": each["prediction_id"]}, ensure_ascii=False)
            + "\n"
            for each in told
        )
        st.download_button("Download as JSONL", lines, "reviewed.jsonl", "application/jsonl", on_click="ignore")


def _cell(judged: dict[str, Any]) -> str:
    """As training reads it: several labels stand in one cell, with | between them."""
    return "|".join(judged["said"])


page()
