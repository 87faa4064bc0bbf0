from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from scipy.special import softmax
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from tests.conftest import train_arguments

from pigeonhole.bundle import open_bundle
from pigeonhole.classifier import Classifier, Encoder
from pigeonhole.dataset.config import DataConfig
from pigeonhole.dataset.load import Dataset, load_dataset
from pigeonhole.errors import ConfigError, DataError
from pigeonhole.evaluation.baselines import tfidf_probabilities
from pigeonhole.training import tfidf
from pigeonhole.training.batches import TokenizedRows
from pigeonhole.training.train import run

OTHERS = ("model=", "model.", "trainer.", "export.")


@pytest.fixture(scope="module")
def tickets() -> Dataset:
    return load_dataset(DataConfig())


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> dict[str, Any]:
    given = train_arguments(tmp_path_factory.mktemp("tfidf"), tiny_data)
    return run(["model=tfidf", *(argument for argument in given if not argument.startswith(OTHERS))])


def test_on_real_texts_it_is_scikit_learns_own_pipeline_to_the_label(tickets: Dataset) -> None:
    """The baseline reads texts with scikit-learn's own words and lower-casing; this one counts the tokenizer's ids."""
    split = tickets.split
    texts = [row.text for row in split.train], [row.text for row in split.test]
    ids = [np.array([tickets.labels.index(row.label) for row in rows], np.int64) for rows in (split.train, split.test)]
    encoder = Encoder(tfidf.make_tokenizer(texts[0]), 8192)
    rows = [TokenizedRows([f.input_ids for f in encoder.encode(some)], of) for some, of in zip(texts, ids, strict=True)]
    model = tfidf.fit(rows[0], inverse_regularisation=10, pairs=True, max_features=50_000, seed=0)
    expected = tfidf_probabilities(texts[0], ids[0], texts[1], len(tickets.labels))
    assert (model.predict_logits(rows[1]).argmax(axis=1) == expected.argmax(axis=1)).all()


def test_texts_with_one_word_among_them_all_are_refused() -> None:
    rows = TokenizedRows([[0, 2], [0], [0, 2], [0]], np.array([0, 1, 0, 1]))
    with pytest.raises(DataError, match="one word of two letters among them all: model=tfidf needs two"):
        tfidf.fit(rows, inverse_regularisation=10, pairs=True, max_features=2, seed=0)


def test_the_bundle_is_what_was_trained_and_no_company_changes_a_bit(bundle: dict[str, Any]) -> None:
    assert bundle["served"] == "fp32"
    assert bundle["parity"]["fp32_label_flips"] == 0
    assert bundle["parity"]["fp32_max_logit_difference"] < 1e-5
    assert bundle["parity"]["fp32_company_difference"] == 0.0
    assert bundle["parity"]["int8_label_flips"] is None


def test_the_servers_door_opens_it_and_reads_capitals_and_wide_letters_as_small_ones(bundle: dict[str, Any]) -> None:
    classifier = Classifier.open(open_bundle(bundle["bundle"]))
    same = ["my invoice looks wrong", "MY INVOICE LOOKS WRONG", "\uff4d\uff59 invoice looks wrong"]
    small, large, wide, nothing = classifier.predict([*same, "… ?"])
    assert small.label == "billing"
    assert (small.logits == large.logits).all()
    assert (small.logits == wide.logits).all()
    assert nothing.n_tokens == 1
    assert np.isfinite(nothing.logits).all()
    (unknown,) = classifier.predict(["zebra xylophone invoice"])
    assert unknown.unknown_tokens == 2


def test_the_graphs_embedding_is_scikit_learns_latent_semantic_analysis(tickets: Dataset, tmp_path: Path) -> None:
    texts = [row.text for row in tickets.split.train[:30]]
    found = Encoder(tfidf.make_tokenizer(texts), 8192).encode([*texts, "zebra xylophone"])
    label_ids = np.array([row.label == "billing" for row in tickets.split.train[:31]], np.int64)
    rows = TokenizedRows([each.input_ids for each in found], label_ids)
    model = tfidf.fit(rows, inverse_regularisation=1.0, pairs=True, max_features=500, seed=0)
    model.write(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    expected = model.vectorizer.transform(rows.input_ids) @ model.latent.T
    for input_ids, embedding, logits in zip(rows.input_ids, expected, model.predict_logits(rows), strict=True):
        asked = np.array([input_ids], np.int64)
        answer = session.run(["text_embedding", "logits"], {"input_ids": asked, "attention_mask": np.ones_like(asked)})
        assert answer[0][0] == pytest.approx(embedding, abs=1e-5)
        assert answer[1][0] == pytest.approx(logits, abs=1e-5)


def test_it_has_a_history_of_one_epoch_and_no_twin(bundle: dict[str, Any]) -> None:
    assert len((Path(bundle["run"]) / "history.jsonl").read_text().splitlines()) == 1
    assert not (Path(bundle["run"]) / "model").exists()


def test_pairs_and_features_change_what_is_counted(tickets: Dataset) -> None:
    texts = [row.text for row in tickets.split.train[:200]]
    label_ids = np.arange(200) % 2
    encoder = Encoder(tfidf.make_tokenizer(texts), 8192)
    rows = TokenizedRows([found.input_ids for found in encoder.encode(texts)], label_ids)
    keys: dict[str, Any] = {"inverse_regularisation": 1.0, "seed": 0}
    words = tfidf.fit(rows, pairs=False, max_features=50_000, **keys)
    again, other = (tfidf.fit(rows, pairs=False, max_features=50_000, **{**keys, "seed": seed}) for seed in (0, 1))
    assert words.latent.shape == (128, len(words.grams))
    assert np.array_equal(words.latent, again.latent)
    assert not np.array_equal(words.latent, other.latent)
    assert {len(gram) for gram in words.grams} == {1}
    assert {len(gram) for gram in tfidf.fit(rows, pairs=True, max_features=50_000, **keys).grams} == {1, 2}
    assert len(tfidf.fit(rows, pairs=True, max_features=100, **keys).grams) == 100
    assert words.predict_logits(rows).shape == (200, 2)


@pytest.mark.parametrize("balanced", [False, True])
def test_of_two_labels_the_logits_give_scikit_learns_probabilities(tickets: Dataset, balanced: bool) -> None:
    texts = [row.text for row in tickets.split.train[:120]]
    label_ids = np.array([row.label == "billing" for row in tickets.split.train[:120]], np.int64)
    assert 0 < label_ids.sum() < 60  # weighing makes a difference
    encoder = Encoder(tfidf.make_tokenizer(texts), 8192)
    rows = TokenizedRows([found.input_ids for found in encoder.encode(texts)], label_ids)
    model = tfidf.fit(rows, inverse_regularisation=3.0, pairs=True, max_features=9_000, seed=0, balanced=balanced)
    features = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit_transform(texts)
    weighed = LogisticRegression(C=3.0, max_iter=2_000, class_weight="balanced" if balanced else None).fit(features, label_ids)
    assert softmax(model.predict_logits(rows), axis=1) == pytest.approx(weighed.predict_proba(features), abs=2e-3)


def test_texts_without_a_word_and_int8_are_refused(tiny_data: Path) -> None:
    rows = TokenizedRows([[0], [0, 1]], np.array([0, 1]))
    with pytest.raises(DataError, match="no text has a word of two letters"):
        tfidf.fit(rows, inverse_regularisation=1.0, pairs=True, max_features=10, seed=0)
    with pytest.raises(ConfigError, match="has fp32 only and reads a text as a whole"):
        run(["model=tfidf", "export.int8=true", f"data.path={tiny_data}"])


@pytest.mark.parametrize(
    "key",
    [
        *("trainer.teacher=bundle", "trainer.lora_rank=8", "trainer.frozen_layers=1", "trainer.refit_head=true"),
        *("trainer.loss=focal", "trainer.label_smoothing=0.1", "trainer.sampling=balanced"),
        *("model.keep_head=true", "model.layers=2"),
    ],
)
def test_what_is_of_encoders_alone_is_refused_and_not_passed_over(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{key.partition('=')[0]}=.*: is for encoders; with model=tfidf leave it out$"):
        run(["model=tfidf", key])
