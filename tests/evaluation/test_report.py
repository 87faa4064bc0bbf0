from typing import Any

import numpy as np
import pytest

from pigeonhole.evaluation import report
from pigeonhole.metrics import score_metrics

LABELS = ["billing", "account | access", "de`livery"]


@pytest.fixture
def result() -> dict[str, Any]:
    true_ids = np.array([0, 1, 2, 0, 1, 2])
    good, poor = np.eye(3)[[0, 1, 2, 0, 1, 0]], np.tile([0.4, 0.3, 0.3], (6, 1))
    baseline = score_metrics(true_ids, poor, LABELS)
    return {
        "model": "tickets",
        "version": "v1",
        "precision": "int8",
        "data": "rows.csv",
        "warnings": ["this is the training file"],
        "test": score_metrics(true_ids, good, LABELS),
        "slices": {"1-5 words": {"n": 6, "accuracy": 5 / 6, "interval": [0.4, 0.9]}},
        "baselines": {"majority": baseline, "tfidf": baseline, "fitted_on": "train.csv"},
    }


def test_the_table_puts_the_model_above_its_baselines_with_intervals(result: dict[str, Any]) -> None:
    header, model, tfidf, majority, *rest = report.table(result).splitlines()
    assert header.split() == ["accuracy", "macro-F1", "calibration", "error"]
    assert model.startswith("this model (int8)")
    assert "0.833 [0.436, 0.970]" in model
    assert "TF-IDF" in tfidf
    assert "most frequent label" in majority
    assert rest[0].startswith("on 6 rows of rows.csv")
    assert "train.csv" in rest[1]


def test_the_table_names_the_worst_labels_worst_first(result: dict[str, Any]) -> None:
    assert report.table(result).splitlines()[-1] == "worst labels: de`livery (F1 0.67 of 2), billing (F1 0.80 of 2)"


def test_the_table_of_a_faultless_model_names_no_label(result: dict[str, Any]) -> None:
    result["test"] = score_metrics(np.arange(3), np.eye(3), LABELS)
    assert "worst" not in report.table(result)


def test_the_page_holds_every_table_and_its_warnings(result: dict[str, Any]) -> None:
    page = report.markdown(result)
    assert page.startswith("# Evaluation of tickets v1 (int8)\n")
    assert "**Mind:** this is the training file" in page
    assert "| 1-5 words | 6 | 0.833 [0.400, 0.900] |" in page
    tables = [line for line in page.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in tables} == {4, 5, 6}


def test_labels_cannot_break_out_of_their_cell(result: dict[str, Any]) -> None:
    page = report.markdown(result)
    assert "| `account \\| access` |" in page
    assert "| `de'livery` |" in page
    one = {"n": 3, "accuracy": 1.0, "interval": [0.4, 1.0]}
    assert "| either \\| or | 3 |" in report.markdown({**result, "slices": {"either | or": one}})


def test_labels_without_rows_are_left_out(result: dict[str, Any]) -> None:
    result["test"] = score_metrics(np.array([0, 0]), np.eye(3)[[0, 1]], LABELS)
    assert "de'livery" not in report.markdown(result)
