"""One text: what the model makes of it, how sure it is, and what the visitor thinks of that."""

import json
import re
import urllib.parse
from typing import Any

import pandas as pd
import streamlit as st
from frontend import charts, view
from frontend.client import Down, Refused

EXAMPLES = 4
HISTORY = 50
SHARE = 0.2  # of what the strongest word does: where nearly all words are marked, none is
INDENT = re.compile(r"^[ \t]+", re.MULTILINE)  # which Markdown would take for a block of code
LINK_CHARS = 1500  # a longer text makes a link that mail programs and proxies cut


def page() -> None:
    st.title("Classify")
    about = view.model_or_stop()
    n = len(about["labels"])
    several = about["task"] == "multi_label"
    what = f"Says which of {n} labels a text has, any number of them" if several else f"Sorts a text into one of {n} labels"
    st.caption(f"{what}. Every answer is written to the prediction log.")
    limit = int(about["limits"]["characters"])
    linked = _text_of_link(limit)
    _examples(about["model_version"])
    with st.form("question", border=False):
        text = st.text_area("Text", key="text", height=120, max_chars=limit, placeholder="Write or paste a message")
        asked = st.form_submit_button("Classify", type="primary", icon=":material/label:")
    if asked and not text.strip():
        st.warning("There is no text yet: write one, or take an example.")
    elif (asked or linked) and text.strip():
        _ask(text)
    if "answer" in st.session_state:
        _answer(st.session_state.answer, about)
    _history()


def _text_of_link(limit: int) -> bool:
    """Whether this visit began with a link that carries a text, which then is the question."""
    linked = st.query_params.get("text", "")
    if not linked or st.session_state.get("linked") == linked:
        return False
    st.session_state.linked = linked
    st.session_state.text = linked[:limit]
    return True


def _examples(version: str) -> None:
    texts = _example_texts(version)
    if not texts:
        return
    st.caption("Try one:")
    with st.container(horizontal=True, gap="small"):
        for number, text in enumerate(texts):
            st.button(view.plain(text), key=f"example-{number}", on_click=_take, args=(text,))


def _take(text: str) -> None:
    st.session_state.text = text
    st.session_state.pop("answer", None)


@st.cache_data(ttl=60, show_spinner=False)
def _example_texts(version: str) -> list[str]:
    """Texts of the version's own test split, where they are kept; else the examples of the service's OpenAPI document."""
    found = view.examples(version)
    if found:
        return found[:EXAMPLES]
    try:
        document = view.api().get("/openapi.json")
        body = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]
    except (Down, Refused, KeyError):
        return []
    for example in body.get("examples", {}).values():
        value = example.get("value", {})
        found += [value["text"]] if "text" in value else value.get("texts", [])
    return list(dict.fromkeys(found))[:EXAMPLES]


def _ask(text: str) -> None:
    try:
        with st.spinner("Asking the model"):
            timed = view.api().predict(text)
    except (Down, Refused) as error:
        st.session_state.pop("answer", None)
        view.show_error(error)
        return
    st.session_state.answer = {"text": text, "seconds": timed.seconds, **timed.body}
    history = st.session_state.setdefault("history", [])
    history.insert(0, st.session_state.answer)
    del history[HISTORY:]


def _answer(answer: dict[str, Any], about: dict[str, Any]) -> None:
    words, colour, icon = view.DECISIONS.get(answer["decision"], (answer["decision"], "gray", ""))
    with st.container(border=True):
        st.subheader(view.plain(view.joined(view.labels_of(answer))), anchor=False)
        with st.container(horizontal=True, vertical_alignment="center"):
            st.badge(words, icon=icon, color=colour)
            st.markdown(f"**{view.percent(answer['score'])}** sure", width="content")
        if answer["truncated"]:
            st.warning(f"The text is longer than the model reads: it read the first {answer['n_tokens']} tokens.")
        shown = answer["probabilities"]
        st.altair_chart(charts.probability_bars(shown), width="stretch", alt=_in_words(shown))
        if len(shown) > 10:
            st.caption(f"The 10 likeliest of {len(shown)} labels.")
        st.caption(
            f"Calibrated: of answers that are 80 % sure, about 80 % are right. Answered in {answer['seconds'] * 1000:.0f} ms by "
            f"{view.plain(answer['model'])}, version {answer['model_version']}."
        )
        with st.container(horizontal=True):
            _link(answer["text"])
            if view.offers("POST /feedback"):
                _feedback(answer, about["labels"])
            why = view.offers("POST /explain") and st.button("Which words decided?", icon=":material/lightbulb:")
        if why:
            _explain(answer["text"], answer["label"])


def _in_words(probabilities: dict[str, float]) -> str:
    return "Probabilities: " + ", ".join(f"{label} {view.percent(share)}" for label, share in list(probabilities.items())[:10])


def _explain(text: str, label: str) -> None:
    try:
        with st.spinner("Asking again without each word"):
            found = view.api().post("/explain", {"text": text, "label": label}).body
    except (Down, Refused) as error:
        view.show_error(error)
        return
    st.markdown(_marked(text, found["words"]))
    left = f" {found['words_left']} more words were not looked at." if found["words_left"] else ""
    name = view.plain(label)
    st.caption(f"Blue words speak for {name}: without them it would be less probable. Red ones speak against it.{left}")


def _marked(text: str, words: list[dict[str, Any]]) -> str:
    """The text with the words on a coloured ground that move the probability by a point, and by a fifth of the strongest."""
    least = max([0.01, *(SHARE * abs(word["weight"]) for word in words)])
    parts, after = [], 0
    for word in sorted(words, key=lambda each: each["start"]):
        parts.append(view.plain(text[after : word["start"]]))
        shown, after = view.plain(text[word["start"] : word["end"]]), word["end"]
        colour = "blue" if word["weight"] > 0 else "red"
        parts.append(f":{colour}-background[{shown}]" if abs(word["weight"]) >= least else shown)
    marked = "".join([*parts, view.plain(text[after:])])
    return INDENT.sub(lambda found: "\u00a0" * len(found[0].expandtabs(4)), marked).replace("\n", "  \n")


def _link(text: str) -> None:
    with st.popover("Link to this question", icon=":material/link:"):
        if len(text) > LINK_CHARS:
            st.write(f"The text is too long for a link (at most {LINK_CHARS} characters).")
            return
        st.write("Whoever opens it asks the same text. The text is part of the link.")
        base = (st.context.url or "").split("?")[0]
        st.code(f"{base}?{urllib.parse.urlencode({'text': text})}", language=None, wrap_lines=True)


def _feedback(answer: dict[str, Any], labels: list[str]) -> None:
    told = st.session_state.setdefault("told", {})
    identity = answer["prediction_id"]
    if identity in told:
        st.success(f"Noted: {view.plain(told[identity])}. Thank you.", icon=":material/check:")
        return
    with st.popover("Wrong? Tell us", icon=":material/flag:"):
        if isinstance(answer.get("labels"), list):
            chosen = st.multiselect("The right labels", sorted(labels), key=f"right-{identity}")
            said: dict[str, Any] = {"labels": chosen}
        else:
            label = st.selectbox("The right label", sorted(labels), index=None, key=f"right-{identity}")
            chosen, said = [label] if label else [], {"label": label}
        nothing = not chosen and "label" in said
        if st.button("Send", type="primary", disabled=nothing, key=f"send-{identity}"):
            try:
                view.api().post("/feedback", {"prediction_id": identity, "source": "page", **said})
            except (Down, Refused) as error:
                view.show_error(error)
            else:
                told[identity] = view.joined(chosen)
                st.rerun()


def _history() -> None:
    history = st.session_state.get("history", [])
    if not history:
        return
    with st.expander(f"This visit: {len(history)} asked", icon=":material/history:"):
        rows = [
            {
                "text": each["text"],
                "label": view.joined(view.labels_of(each)),
                "sure": each["score"] * 100,
                "decision": view.decision_in_words(each["decision"]),
            }
            for each in history
        ]
        st.dataframe(
            pd.DataFrame(rows),
            hide_index=True,
            column_config={
                "sure": st.column_config.NumberColumn(format="%.1f %%"),
                "text": st.column_config.TextColumn(width="medium"),
            },
        )
        st.download_button(
            "Download as JSON",
            json.dumps(history, ensure_ascii=False, indent=1),
            "classified.json",
            "application/json",
            on_click="ignore",
        )


page()
