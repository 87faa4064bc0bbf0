"""What answers here and how good it is, where it errs and on which texts; every version beside every other; who moved what."""

from typing import Any
from urllib.parse import quote

import pandas as pd
import streamlit as st
from frontend import charts, view
from frontend.client import Down, Refused

NAMES = {
    "test": "this model",
    "test_fp32": "the same in fp32",
    "majority": "always the commonest label",
    "tfidf": "TF-IDF, logistic regression",
}
MEASURES = {"accuracy": "Accuracy", "macro_f1": "Macro-F1", "ece": "Calibration error"}
DRAWN = 20  # labels; a larger matrix has cells too small to hit
SHOWN = 100
TOLD = 20  # changes in full; the earlier ones are folded up
TEXT_ROW_PX = 76  # three lines of a text

PLACES = {"missed": (True, False), "extra": (False, True), "both": (True, True), "neither": (False, False)}
"""Of one label of several: whether a text has it, and whether it was given it."""
CELLS = {"missed": "missed", "extra": "given wrongly", "both": "rightly given", "neither": "rightly not given"}
ROW_COLUMNS = {
    "sure": st.column_config.NumberColumn(format="%.1f %%"),
    "text": st.column_config.TextColumn(width="large"),
}
FLIPS = "Texts that have the label or were given it: missed, and given wrongly"
HAS = {True: "has it", False: "has it not"}
GIVEN = {True: "gives it", False: "does not"}


def page() -> None:
    st.title("Model")
    about = view.model_or_stop()
    listed = view.versions()
    if listed is None:
        _caption(about["model"], about["model_version"], about["created_at"])
        quality, card = st.tabs(["Quality", "Card"])
        with quality:
            _quality(about, None)
        with card:
            _facts(about)
        st.info(
            "Without the drift service there are no single errors, no other versions and no comparison.", icon=":material/info:"
        )
        return
    quality, errors, versions, compare, card = st.tabs(["Quality", "Errors", "Versions", "Compare", "Card"])
    with quality:
        found = _chosen(listed, about)
        if found is None:
            st.info("The drift service does not tell about this version; what the service itself says:")
            _quality(about, None)
        else:
            _caption(found["name"], found["version"], found["created_at"])
            _quality(found, found["held_out"])
    with errors:
        if found is None or found["held_out"] is None:
            st.info("No rows of a test split were kept with this version, so its errors cannot be shown.")
        else:
            _errors(found)
    with versions:
        _versions(listed)
    with compare:
        _compare(listed)
    with card:
        if found and found["card"]:
            st.markdown(_tamed(found["card"]))
        _facts(about)


def _tamed(card: str) -> str:
    """Smaller headings, and no picture, which would be fetched from somewhere else."""
    return "\n".join(f"##{line}" if line.startswith("#") else line for line in card.replace("![", "!\\[").splitlines())


def _caption(model: str, version: str, created_at: str) -> None:
    st.caption(f"{view.plain(model)}, version {view.plain(version)}, made {created_at[:16].replace('T', ' ')} UTC")


def _names(listed: dict[str, Any]) -> list[str]:
    return [each["version"] for each in listed["versions"]]


def _with_aliases(listed: dict[str, Any]) -> dict[str, str]:
    return {
        each["version"]: each["version"] + (f" ({', '.join(each['aliases'])})" if each["aliases"] else "")
        for each in listed["versions"]
    }


def _chosen(listed: dict[str, Any], about: dict[str, Any]) -> dict[str, Any] | None:
    names, words = _names(listed), _with_aliases(listed)
    index = names.index(about["model_version"]) if about["model_version"] in names else 0
    if len(names) < 2:
        return view.version(names[0]) if names else None
    return view.version(st.selectbox("Version", names, index=index, format_func=words.__getitem__, key="version"))


def _quality(about: dict[str, Any], held_out: dict[str, Any] | None) -> None:
    metrics = about.get("metrics", {})
    test = metrics.get("test")
    if not test:
        st.info("This bundle says nothing about its quality: it has no metrics of a test split.")
        return
    _headline(test)
    _comparison(metrics)
    _per_class(test, about)
    if held_out:
        _reliability(held_out)
    _slices(metrics, held_out)
    _behaviour(metrics)


def _headline(test: dict[str, Any]) -> None:
    with st.container(horizontal=True):
        for key, name in MEASURES.items():
            if key in test:
                st.metric(name, f"{test[key]:.3f}", border=True)
    st.caption(f"On {test.get('n', 0):,} texts of the test split, which training never saw.")


def _comparison(metrics: dict[str, Any]) -> None:
    scored = {key: metrics[key] for key in ("test", "test_fp32") if key in metrics} | metrics.get("baselines", {})
    rows = [
        {"model": NAMES.get(key, key), **{name: _interval(scores, measure) for measure, name in MEASURES.items()}}
        for key, scores in scored.items()
    ]
    st.subheader("Beside simpler answers", anchor=False)
    st.dataframe(pd.DataFrame(rows), hide_index=True)
    st.caption("In brackets: where the true value lies with 95 % confidence, as far as the size of the test split can tell.")


def _interval(scores: dict[str, Any], measure: str) -> str:
    if measure not in scores:
        return ""
    found = scores.get("intervals", {}).get(measure)
    return f"{scores[measure]:.3f}" + (f" [{found[0]:.3f}, {found[1]:.3f}]" if found else "")


def _per_class(test: dict[str, Any], about: dict[str, Any]) -> None:
    rows = [
        {
            "label": label,
            "precision": scores["precision"],
            "recall": scores["recall"],
            "F1": scores["f1"],
            "F1, low": scores.get("intervals", {}).get("f1", [None, None])[0],
            "F1, high": scores.get("intervals", {}).get("f1", [None, None])[1],
            "test texts": scores["support"],
            "threshold": about["thresholds"].get(label),
        }
        for label, scores in test.get("per_class", {}).items()
    ]
    if not rows:
        return
    st.subheader("Label by label", anchor=False)
    several = about["task"] == "multi_label"
    threshold = (
        "A text is given a label from its threshold on." if several else "Below its threshold a label is for a person to look at."
    )
    st.caption(f"The weakest first. {threshold}")
    frame = pd.DataFrame(rows).sort_values("F1", kind="stable")
    decimals = {
        name: st.column_config.NumberColumn(format="%.2f") for name in frame.columns if name not in ("label", "test texts")
    }
    bar = st.column_config.ProgressColumn("F1", min_value=0, max_value=1, format="%.2f")
    st.dataframe(frame, hide_index=True, column_config={**decimals, "F1": bar})


def _reliability(held_out: dict[str, Any]) -> None:
    st.subheader("Can its confidence be believed?", anchor=False)
    bins = pd.DataFrame([{**each, "low": each["interval"][0], "high": each["interval"][1]} for each in held_out["reliability"]])
    words = "; ".join(f"{row.confidence:.0%} sure: {row.accuracy:.0%} right of {row.n}" for row in bins.itertuples())
    st.altair_chart(charts.calibration(bins), width="stretch", alt=f"Reliability diagram. {words}")
    st.caption("On the dashed line, answers that are 80 % sure are right in 80 of 100 cases. Lines hold 95 % intervals.")


def _slices(metrics: dict[str, Any], held_out: dict[str, Any] | None) -> None:
    """As the bundle's own metrics have them; those of earlier releases have none, and their rows are cut by length."""
    own = [{"slice": name, **each} for name, each in metrics.get("slices", {}).items()]
    slices = own or (held_out["slices"] if held_out else [])
    if not slices:
        return
    st.subheader("Part by part", anchor=False)
    rows = [
        {"texts of": each["slice"], "test texts": each["n"], "accuracy": _share(each["accuracy"], each["interval"])}
        for each in slices
    ]
    st.dataframe(pd.DataFrame(rows), hide_index=True)


def _behaviour(metrics: dict[str, Any]) -> None:
    found = metrics.get("behaviour")
    if not found:
        return
    st.subheader("Does the answer hang on trifles?", anchor=False)
    rows = [
        {"changed by": name, "texts": each["n"], "passed": _share(each["passed"], each["interval"])}
        for name, each in found.items()
    ]
    st.dataframe(pd.DataFrame(rows), hide_index=True)
    st.caption("Test texts that are changed a little: how many keep their label; and short texts that every version has to know.")


def _share(share: float, interval: list[float]) -> str:
    return f"{share:.1%} [{interval[0]:.1%}, {interval[1]:.1%}]".replace("%", " %")


def _errors(found: dict[str, Any]) -> None:
    held_out = found["held_out"]
    _caption(found["name"], found["version"], found["created_at"])
    st.caption(f"{held_out['wrong']:,} of {held_out['n']:,} test texts got {_otherwise(found)} than their own.")
    query = _cell_of_label(held_out) if found["task"] == "multi_label" else _cell_of_matrix(held_out, found["labels"])
    try:
        rows = view.drift().get(f"/versions/{quote(found['version'], safe='')}/rows", n=SHOWN, **query)
    except (Down, Refused) as error:
        view.no_drift_service(error, "there are no rows")
        return
    _rows(rows, bool(query))


def _otherwise(found: dict[str, Any]) -> str:
    return "other labels" if found["task"] == "multi_label" else "another label"


def _cell_of_matrix(held_out: dict[str, Any], labels: list[str]) -> dict[str, str]:
    """Who is taken for whom; the query for the rows of what is chosen."""
    cells = pd.DataFrame(held_out["confusion"])
    wrong = cells[cells["true_label"] != cells["label"]].sort_values("n", ascending=False)
    if len(labels) <= DRAWN:
        cells["share"] = cells["n"] / cells.groupby("true_label")["n"].transform("sum")
        words = "; ".join(f"{row.true_label} taken for {row.label}: {row.n}" for row in wrong.head(10).itertuples())
        st.altair_chart(
            charts.confusion(cells, labels),
            width="stretch",
            key="matrix",
            on_select=_cell_chosen,
            alt=f"Confusion matrix. {words}",
        )
        st.caption("Choose a cell to see its texts, or:")
    else:
        st.dataframe(wrong.rename(columns={"true_label": "true label", "label": "taken for", "n": "texts"}), hide_index=True)
    left, right = st.columns(2)
    true_label = left.selectbox("True label", labels, index=None, placeholder="any", key="drill-true")
    label = right.selectbox("Taken for", labels, index=None, placeholder="any", key="drill-label")
    return {name: value for name, value in (("true_label", true_label), ("label", label)) if value}


def _cell_of_label(held_out: dict[str, Any]) -> dict[str, str]:
    """Where each label of several is missed or given too often; the query for the rows of what is chosen."""
    rows = pd.DataFrame(held_out["by_label"])
    st.dataframe(rows.rename(columns=CELLS), hide_index=True)
    label = st.selectbox("Label", sorted(rows["label"]), index=None, placeholder="any", key="drill-label")
    if label is None:
        return {}
    counts = rows.set_index("label").loc[label]
    cells = pd.DataFrame(
        [{"true_label": HAS[true], "label": GIVEN[said], "n": int(counts[cell])} for cell, (true, said) in PLACES.items()]
    )
    cells["share"] = cells["n"] / cells.groupby("true_label")["n"].transform("sum").clip(lower=1)
    words = "; ".join(f"{CELLS[cell]}: {counts[cell]}" for cell in PLACES)
    chart = charts.confusion(cells, list(GIVEN.values()), list(HAS.values()), across="the model", down="the text")
    st.altair_chart(chart, width="stretch", alt=f"{label}: {words}")
    cell = st.segmented_control("Texts", list(PLACES), default="missed", format_func=CELLS.__getitem__, key="drill-cell")
    return {"label": label, "cell": cell or "missed"}


def _cell_chosen() -> None:
    """A click in the matrix sets the two boxes below it."""
    chosen = st.session_state.matrix["selection"].get("cell", [])
    if chosen:
        st.session_state["drill-true"], st.session_state["drill-label"] = chosen[0]["true_label"], chosen[0]["label"]


def _rows(found: dict[str, Any], narrowed: bool) -> None:
    if not found["rows"]:
        st.caption("There is no such text." if narrowed else "No text has a wrong label.")
        return
    more = f" The first {SHOWN} of them:" if found["found"] > SHOWN else ""
    order = ", the wrong ones first." if narrowed else " with a wrong label, the surest first."
    st.caption(f"{view.count(found['found'], 'text')}{order}{more}")
    if not found["has_texts"]:
        st.info("Their texts are not kept in the registry (`export.test_texts`), so only labels and lengths are here.")
    beside = "text" if found["has_texts"] else "n_words"
    rows = [
        {
            "text" if found["has_texts"] else "words": each[beside],
            "true label": view.joined(each["true_labels"]),
            "model said": view.joined(each["labels"]),
            "sure": each["score"] * 100,
        }
        for each in found["rows"]
    ]
    st.dataframe(
        pd.DataFrame(rows), hide_index=True, row_height=TEXT_ROW_PX if found["has_texts"] else None, column_config=ROW_COLUMNS
    )


def _versions(listed: dict[str, Any]) -> None:
    rows = [
        {
            "version": each["version"],
            "is": ", ".join(each["aliases"]),
            "made": each["created_at"][:16].replace("T", " "),
            "labels": each["labels"],
            "accuracy": each["accuracy"],
            "macro-F1": each["macro_f1"],
            "test texts": each["n"],
        }
        for each in listed["versions"]
    ]
    decimals = {name: st.column_config.NumberColumn(format="%.3f") for name in ("accuracy", "macro-F1")}
    st.dataframe(pd.DataFrame(rows), hide_index=True, column_config=decimals)
    for name, problem in listed.get("unreadable", {}).items():
        st.warning(f"Version {view.plain(name)} cannot be read: {view.plain(problem)}", icon=":material/warning:")
    st.subheader("What was decided", anchor=False)
    if not listed["history"]:
        st.caption("Nothing yet: this page looks at one bundle, not at a registry.")
        return
    for change in listed["history"][:TOLD]:
        _tell(change)
    older = listed["history"][TOLD:]
    if older:
        with st.expander(f"{len(older):,} earlier"):
            for change in older:
                _tell(change)


def _tell(change: dict[str, Any]) -> None:
    """What happened in the first line, why below it: the reasons of the gate are longer than a cell of a table."""
    to = change["refused"] or change["version"] or "nothing"
    way = f"{change['before']} → {to}" if change["before"] else to
    when = change["at"][:16].replace("T", " ")
    with st.container(border=True, gap="xxsmall"):
        st.markdown(f"**{view.plain(_decided(change))}** {view.plain(way)}")
        if change["reason"]:
            st.markdown(view.plain(change["reason"]))
        st.caption(f"{when} UTC, by {view.plain(change['by'])}")


def _decided(change: dict[str, Any]) -> str:
    words = {
        "set": "set",
        "promote": "promoted",
        "force": "promoted by force",
        "rollback": "rolled back",
        "hold": "held by the gate",
        "reject": "refused by the gate",
    }
    return f"{change['alias']}: {words.get(change['action'], change['action'])}"


def _compare(listed: dict[str, Any]) -> None:
    names, words = _names(listed), _with_aliases(listed)
    if len(names) < 2:
        st.info("There is one version; a second one can be compared with it.")
        return
    production = listed["aliases"].get("production", names[1])
    first = names.index(production) if production in names else 1
    left, right = st.columns(2)
    before = left.selectbox("Before", names, index=first, format_func=words.__getitem__, key="before")
    rest = [name for name in names if name != before]
    after = right.selectbox("After", rest, format_func=words.__getitem__, key="after")
    label = st.session_state.get("flips-of")
    try:
        found = view.drift().get("/compare", before=before, after=after, n=SHOWN, **({"label": label} if label else {}))
    except (Down, Refused) as error:
        view.no_drift_service(error, "nothing can be compared")
        return
    labels = sorted(each["label"] for each in found["by_label"])
    st.selectbox("Flips of", labels, index=None, placeholder="all labels", key="flips-of")
    _flips("Was right, now wrong", found["now_wrong"])
    _flips("Was wrong, now right", found["now_right"])
    change = found["accuracy"]
    st.subheader("In all", anchor=False)
    with st.container(horizontal=True):
        st.metric("Accuracy before", f"{change['before']:.3f}", border=True, height="stretch")
        st.metric("Accuracy after", f"{change['after']:.3f}", f"{change['difference']:+.3f}", border=True)
    low, high = change["interval"]
    certain = "a difference" if low > 0 or high < 0 else "no difference for certain"
    st.caption(f"On {found['n']:,} common test texts: {certain}; the change lies between {low:+.3f} and {high:+.3f} (95 %).")
    left_out = found["only_before"] + found["only_after"]
    if left_out:
        st.caption(f"{left_out:,} test texts that only one of the two has were left out.")
    st.subheader("Label by label", anchor=False)
    columns = {
        "n": "test texts",
        "before": "recall before",
        "after": "recall after",
        "now_wrong": "now wrong",
        "now_right": "now right",
    }
    rows = pd.DataFrame(found["by_label"]).rename(columns=columns)
    numbers = {name: st.column_config.NumberColumn(format="%.2f") for name in ("recall before", "recall after")}
    flips = {name: st.column_config.NumberColumn(help=FLIPS) for name in ("now wrong", "now right")}
    st.dataframe(rows, hide_index=True, column_config=numbers | flips)


def _flips(title: str, found: dict[str, Any]) -> None:
    st.subheader(f"{title}: {found['n']:,}", anchor=False)
    if not found["n"]:
        return
    rows = [
        {
            "text": each["text"],
            "true label": view.joined(each["true_labels"]),
            "before": view.joined(each["before"]),
            "after": view.joined(each["after"]),
            "sure": each["after_score"] * 100,
        }
        for each in found["rows"]
    ]
    table = pd.DataFrame(rows)
    same = [side for side in ("before", "after") if (table[side] == table["true label"]).all()]  # the right one of the two
    st.dataframe(table.drop(columns=same), hide_index=True, row_height=TEXT_ROW_PX, column_config=ROW_COLUMNS)


def _facts(about: dict[str, Any]) -> None:
    st.subheader("What answers now", anchor=False)
    rows = {
        "model": about["model"],
        "version": about["model_version"],
        "made": about["created_at"],
        "task": about["task"].replace("_", " "),
        "labels": str(len(about["labels"])),
        "precision served": about["precision"],
        "reads at most": _reads(about),
        "temperature": f"{about['temperature']:.3f}",
        "limits": f"{about['limits']['characters']:,} characters a text, {about['limits']['texts']} texts a request",
    }
    st.table(pd.DataFrame({"what": rows.keys(), "value": rows.values()}).set_index("what"))
    with st.expander(f"All {len(about['labels'])} labels"):
        st.dataframe(pd.DataFrame({"label": about["labels"]}), hide_index=True)


def _reads(about: dict[str, Any]) -> str:
    rule = about["windowing"]
    if rule["rule"] == "truncate":
        return f"{about['max_length']} tokens"
    return f"{rule['most']} windows of {about['max_length']} tokens ({rule['rule']})"


page()
