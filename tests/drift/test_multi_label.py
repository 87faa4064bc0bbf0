"""Drift and feedback of a version whose texts may have several labels."""

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tests.drift.conftest import NOON
from tests.keyword_bundle import QUEUES, keyword_bundle

from pigeonhole.bundle import REFERENCE, Bundle, open_bundle, seal
from pigeonhole.classifier import Classifier
from pigeonhole.drift.detectors import Deals, g_statistic, total_variation
from pigeonhole.drift.feedback import live_accuracy
from pigeonhole.drift.report import compare
from pigeonhole.drift.window import read_reference, read_sample
from pigeonhole.loop.harvest import harvest
from pigeonhole.prediction_log import Features, Feedback, LogWriter, Record, new_id, sketch
from pigeonhole.training.reference import write_reference

HOUR = timedelta(hours=1)
WORDS = list(QUEUES)
SPAN = (NOON, NOON + HOUR)


def texts_of(n: int, seed: int, words: Sequence[str] = WORDS) -> list[str]:
    """One or two of the words a text."""
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(words, random.integers(1, 3), replace=False)) for _ in range(n)]


def truth_of(text: str) -> str:
    return "|".join(sorted({QUEUES[word] for word in text.split()}))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("several") / "bundle"
    manifest = keyword_bundle(folder, "v1").manifest
    thresholds = dict.fromkeys(manifest.labels, 0.6)
    manifest = msgspec.structs.replace(manifest, task="multi_label", accept_score=0.1, thresholds=thresholds)
    seal(folder, manifest)
    texts = texts_of(300, seed=0)
    found = Classifier.open(open_bundle(str(folder))).predict(texts)
    write_reference(folder / REFERENCE, texts, [truth_of(text) for text in texts], found, "multi_label")
    seal(folder, manifest)
    return open_bundle(str(folder))


def write_log(log: Path, bundle: Bundle, texts: Sequence[str]) -> list[Record]:
    found = Classifier.open(bundle).predict(texts)
    records = [
        Record(
            prediction_id=new_id(),
            at=NOON + timedelta(seconds=number),
            request_id="r",
            model=bundle.manifest.name,
            version=bundle.manifest.version,
            text=text,
            text_policy="full",
            features=Features(
                n_chars=len(text),
                n_words=len(text.split()),
                n_tokens=said.n_tokens,
                unknown_tokens=said.unknown_tokens,
                truncated=False,
                max_logit=float(said.logits.max()),
                sketch=sketch(said.embedding[None, :])[0].tolist(),
            ),
            label=said.label,
            labels=list(said.labels),
            score=said.score,
            probabilities=dict(zip(bundle.manifest.labels, said.probabilities.tolist(), strict=True)),
            decision=said.decision,
            latency_ms=1.0,
        )
        for number, (text, said) in enumerate(zip(texts, found, strict=True))
    ]
    with LogWriter(str(log)) as writer:
        writer.append(records)
    return records


def test_the_reference_and_the_window_have_a_flag_a_label(bundle: Bundle, tmp_path: Path) -> None:
    reference = read_reference(bundle.url)
    assert reference.accuracy == 1.0
    assert reference.rows.label_ids.shape == (300, 3)
    write_log(tmp_path, bundle, ["invoice parcel", "login"])
    sample = read_sample(str(tmp_path), *SPAN, reference)
    assert sample.rows.label_ids.tolist() == [[0, 1, 1], [1, 0, 0]]


def test_the_same_world_is_no_drift_and_one_label_that_goes_is(bundle: Bundle, tmp_path: Path) -> None:
    reference = read_reference(bundle.url)
    verdicts = {}
    for name, words in (("same", WORDS), ("no parcels", [word for word in WORDS if QUEUES[word] != "delivery"])):
        write_log(tmp_path / name, bundle, texts_of(200, seed=1, words=words))
        sample = read_sample(str(tmp_path / name), *SPAN, reference)
        report = compare(reference, sample, SPAN, budget=0.01, min_rows=25)
        verdicts[name] = report["verdict"], "predicted_classes" in report["alarms"]
    assert verdicts == {"same": ("no_drift", False), "no parcels": ("drift", True)}


def test_the_statistic_is_the_sum_of_what_each_label_says_and_the_effect_the_largest_change(bundle: Bundle) -> None:
    rows = read_reference(bundle.url).rows
    deals = Deals(np.random.default_rng(0).permuted(np.arange(300)[None, :] < 200, axis=1), 200, 100)
    assert g_statistic(rows.label_ids, deals) == pytest.approx(sum(g_statistic(given, deals) for given in rows.label_ids.T))
    first, second = rows.take(np.arange(150)), rows.take(np.arange(150, 300))
    change = np.abs(first.label_ids.mean(axis=0) - second.label_ids.mean(axis=0))
    assert total_variation(first, second) == pytest.approx(change.max())


def test_an_answer_is_right_where_all_of_its_labels_are(bundle: Bundle, tmp_path: Path) -> None:
    reference = read_reference(bundle.url)
    records = write_log(tmp_path, bundle, ["invoice parcel", "login", "courier", "password invoice"])
    said = [["delivery", "billing"], [], ["delivery"], ["account"]]
    with LogWriter(str(tmp_path), "feedback") as writer:
        writer.append(
            [
                Feedback(
                    feedback_id=new_id(),
                    at=NOON + 2 * HOUR,
                    prediction_id=record.prediction_id,
                    label="",
                    labels=labels,
                    source="agent",
                )
                for record, labels in zip(records, said, strict=True)
            ]
        )
    found = live_accuracy(str(tmp_path), *SPAN, reference, NOON + 24 * HOUR)
    assert (found["n"], found["accuracy"]) == (4, 0.5)
    assert {label: (each["n"], each["accuracy"]) for label, each in found["by_label"].items()} == {
        "account": (1, 0.0),
        "billing": (1, 1.0),
        "delivery": (2, 1.0),
    }
    harvested = harvest(str(tmp_path), NOON, NOON + 24 * HOUR, "keywords", "v1", reference.labels)
    assert (harvested.judged, harvested.right) == (4, 2)
    assert [row.label for row in harvested.rows] == ["billing|delivery", "", "delivery", "account"]
