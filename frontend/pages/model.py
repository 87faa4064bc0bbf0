"""What answers here, how good it is, and next to what: as far as GET /model tells."""

from typing import Any

import pandas as pd
import streamlit as st
from frontend import view

NAMES = {
    "test": "this model",
    "test_fp32": "the same in fp32",
    "majority": "always the commonest label",
    "tfidf": "TF-IDF, logistic regression",
}
MEASURES = {"accuracy": "Accuracy", "macro_f1": "Macro-F1", "ece": "Calibration error"}


def page() -> None:
    st.title("Model")
    about = view.model_or_stop()
    st.caption(
        f"{view.plain(about['model'])}, version {about['model_version']}, made {about['created_at'][:16].replace('T', ' ')} UTC"
    )
    metrics = about.get("metrics", {})
    test = metrics.get("test")
    if test:
        _headline(test)
        _comparison(metrics)
        _per_class(test, about)
        _confusion(test, about)
    else:
        st.info("This bundle says nothing about its quality: it has no metrics of a test split.")
    _card(about)


def _headline(test: dict[str, Any]) -> None:
    with st.container(horizontal=True):
        for key, name in MEASURES.items():
            if key in test:
                st.metric(name, f"{test[key]:.3f}", border=True)
    st.caption(f"On {test.get('n', 0):,} texts of the test split, which training never saw.")


def _comparison(metrics: dict[str, Any]) -> None:
    scored = {key: metrics[key] for key in ("test", "test_fp32") if key in metrics} | metrics.get("baselines", {})
    rows = [
        {"": NAMES.get(key, key), **{name: _with_interval(scores, measure) for measure, name in MEASURES.items()}}
        for key, scores in scored.items()
    ]
    st.subheader("Beside simpler answers", anchor=False)
    st.dataframe(pd.DataFrame(rows), hide_index=True)
    st.caption("In brackets: where the true value lies with 95 % confidence, by resampling the test split.")


def _with_interval(scores: dict[str, Any], measure: str) -> str:
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
    st.caption("The weakest first. Below its threshold a label is for a person to look at.")
    frame = pd.DataFrame(rows).sort_values("F1", kind="stable")
    decimals = {
        name: st.column_config.NumberColumn(format="%.2f") for name in frame.columns if name not in ("label", "test texts")
    }
    bar = st.column_config.ProgressColumn("F1", min_value=0, max_value=1, format="%.2f")
    st.dataframe(frame, hide_index=True, column_config={**decimals, "F1": bar})


def _confusion(test: dict[str, Any], about: dict[str, Any]) -> None:
    matrix = test.get("confusion_matrix")
    if not matrix:
        return
    labels = about["labels"]
    mixed = [
        {"true label": labels[true], "taken for": labels[given], "texts": count}
        for true, row in enumerate(matrix)
        for given, count in enumerate(row)
        if true != given and count
    ]
    st.subheader("What is taken for what", anchor=False)
    st.dataframe(
        pd.DataFrame(mixed, columns=["true label", "taken for", "texts"]).sort_values("texts", ascending=False), hide_index=True
    )


def _card(about: dict[str, Any]) -> None:
    st.subheader("Card", anchor=False)
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
    st.table(pd.DataFrame({"": rows.keys(), "value": rows.values()}).set_index(""))
    with st.expander(f"All {len(about['labels'])} labels"):
        st.dataframe(pd.DataFrame({"label": about["labels"]}), hide_index=True)


def _reads(about: dict[str, Any]) -> str:
    rule = about["windowing"]
    if rule["rule"] == "truncate":
        return f"{about['max_length']} tokens"
    return f"{rule['most']} windows of {about['max_length']} tokens ({rule['rule']})"


page()
