import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification, ElectraConfig

from pigeonhole.bundle import Bundle, Precision, Windowing, open_bundle
from pigeonhole.classifier import Classifier, Encoder
from pigeonhole.errors import ParityError
from pigeonhole.training.export import Parity, compare, compare_logits, draft, given_by, require_parity, why_not_int8
from pigeonhole.training.model import load_model, load_tokenizer, take_apart
from pigeonhole.training.pretrained import SCRATCH, Pretrained


def parity(**changes: float) -> Parity:
    good = Parity(
        rows=10,
        fp32_max_logit_difference=1e-6,
        fp32_label_flips=0,
        fp32_company_difference=0.0,
        int8_max_logit_difference=0.1,
        int8_label_flips=0,
        int8_agreement_with_fp32=1.0,
        int8_company_difference=0.0,
    )
    return Parity(**{**good.__dict__, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fp32_max_logit_difference": 2e-4}, "logits are up to 0.0002 off .* at most 0.0001"),
        ({"fp32_max_logit_difference": math.nan}, "logits are up to nan off"),
        ({"fp32_company_difference": 2e-5}, "differ by up to 2e-05 between a text alone and among others, at most 1e-05"),
    ],
)
def test_an_fp32_export_that_disagrees_fails_the_run_with_the_numbers(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ParityError, match=message):
        require_parity(parity(**changes), 1e-4)


@pytest.mark.parametrize(
    ("changes", "objection"),
    [
        ({"int8_agreement_with_fp32": 0.7}, "int8 and fp32 agree on 0.7000 of 10 texts, export.min_agreement is 0.99"),
        ({"int8_company_difference": 0.01}, "int8 logits differ by up to 0.01 between a text alone and among others"),
    ],
)
def test_an_int8_that_disagrees_is_not_to_be_served(changes: dict[str, float], objection: str) -> None:
    require_parity(parity(**changes), 1e-4)
    assert why_not_int8(parity(**changes), 0.99) == objection


def test_an_export_within_its_bounds_passes() -> None:
    good = parity(fp32_max_logit_difference=1e-4, fp32_company_difference=1e-5, int8_agreement_with_fp32=0.99)
    require_parity(good, 1e-4)
    assert why_not_int8(good, 0.99) is None


def test_the_comparison_counts_flips_and_differences() -> None:
    trained = np.array([[1, 0], [0, 1], [1, 0]], np.float32)
    fp32 = np.array([[1.25, 0], [1, 0.5], [1.5, 0]], np.float32)
    int8 = np.array([[1, 0], [0, 1], [-1, 2]], np.float32)
    found = compare_logits(trained, {"fp32": fp32, "int8": int8}, {"fp32": 0.0, "int8": 0.5})
    assert (found.rows, found.fp32_label_flips, found.int8_label_flips) == (3, 1, 1)
    assert (found.fp32_max_logit_difference, found.int8_max_logit_difference) == (1, 2)
    assert found.int8_agreement_with_fp32 == pytest.approx(1 / 3)
    assert found.int8_company_difference == 0.5
    assert compare_logits(trained, {"fp32": fp32}, {"fp32": 0.0}).int8_agreement_with_fp32 is None


def test_a_body_of_another_family_is_traced_and_its_int8_stays_near_in_any_company(tmp_path: Path) -> None:
    texts = ["ok", "the parcel is late", "the card was charged twice", "the parcel is late and " * 20, "the card is late"]
    tokenizer = load_tokenizer(Pretrained(SCRATCH, local=True), texts)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 64, "intermediate_size": 96}
    sizes["num_labels"] = 3
    config = ElectraConfig(vocab_size=tokenizer.vocab_size, embedding_size=32, **sizes)
    body = AutoModelForSequenceClassification.from_config(config)
    for parameter in body.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    model = take_apart(body).train()
    manifest = draft(
        tmp_path / "bundle",
        model,
        tokenizer.backend_tokenizer.to_str(),
        name="electra",
        labels=["a", "b", "c"],
        task="single_label",
        max_length=100,
        windowing=Windowing(),
        threshold=0.5,
        served="int8",
        int8=True,
    )
    bundle = Bundle("electra", tmp_path / "bundle", manifest)
    encoder = Encoder(tokenizer.backend_tokenizer, 100)
    with torch.no_grad():
        ids = [torch.tensor([found.input_ids]) for found in encoder.encode(texts)]
        expected = np.concatenate([model.eval()(row, torch.ones_like(row))[0].numpy() for row in ids])
    precisions: tuple[Precision, ...] = "fp32", "int8"
    classifiers = {precision: Classifier.load(bundle, precision) for precision in precisions}
    predictions = {precision: classifier.predict(texts) for precision, classifier in classifiers.items()}
    parity = compare(expected, classifiers, predictions, texts)
    require_parity(parity, 1e-4)
    assert parity.int8_max_logit_difference is not None
    assert 0 < parity.int8_max_logit_difference < 0.1 * np.abs(expected).max()
    assert why_not_int8(parity, 0.0) is None


def test_what_is_compared_is_each_text_alone_with_the_same_one_among_others(sealed_bundle: Path) -> None:
    classifier, texts = Classifier.open(open_bundle(str(sealed_bundle)), "fp32"), ["my invoice looks wrong", "hello", "no parcel"]
    found = classifier.predict(texts)
    logits = np.stack([each.logits for each in found])
    assert compare(logits, {"fp32": classifier}, {"fp32": found}, texts).fp32_company_difference == 0
    found[1] = msgspec.structs.replace(found[1], logits=logits[1] + np.array([0, -0.25, 0], np.float32))
    assert compare(logits, {"fp32": classifier}, {"fp32": found}, texts).fp32_company_difference == pytest.approx(0.25)


def test_a_flip_is_of_what_a_bundle_gives_under_its_thresholds(sealed_bundle: Path) -> None:
    manifest = open_bundle(str(sealed_bundle)).manifest
    logits = np.log(np.array([[0.6, 0.3, 0.2], [0.1, 0.2, 0.9]]) / (1 - np.array([[0.6, 0.3, 0.2], [0.1, 0.2, 0.9]])))
    assert given_by(manifest, logits).tolist() == [0, 2]
    thresholds = dict(zip(manifest.labels, (0.5, 0.25, 0.95), strict=True))
    several = msgspec.structs.replace(manifest, task="multi_label", thresholds=thresholds, temperature=1.0, vector_scaling=None)
    assert given_by(several, logits).tolist() == [[1, 1, 0], [0, 0, 0]]
    low = msgspec.structs.replace(several, thresholds=dict.fromkeys(manifest.labels, 1e-9))
    classifier = Classifier.open(open_bundle(str(sealed_bundle)), "fp32").under(low, None)
    found = classifier.predict(["hello", "no parcel"])
    trained = np.stack([each.logits for each in found]) - np.float32(100)  # none is given, and the likeliest is the same
    assert compare(trained, {"fp32": classifier}, {"fp32": found}, ["hello", "no parcel"]).fp32_label_flips == 2


def test_int8_alone_answers_otherwise_for_what_is_usual(tmp_path: Path) -> None:
    texts = ["the parcel is late", "the card was charged twice"]
    tiny = Pretrained(SCRATCH, local=True)
    tokenizer = load_tokenizer(tiny, texts)
    torch.manual_seed(0)
    model = load_model(tiny, ["delivery", "billing"], tokenizer, averaging_layer=False, max_length=16)

    def answers(name: str, usual: list[list[int]]) -> list[NDArray[np.float32]]:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "left").touch()  # by a run that was killed while it exported
        manifest = draft(
            folder,
            model,
            tokenizer.backend_tokenizer.to_str(),
            name="tiny",
            labels=["delivery", "billing"],
            task="single_label",
            max_length=16,
            windowing=Windowing(),
            threshold=0.5,
            served="int8",
            int8=True,
            usual=usual,
        )
        assert manifest.int8_sums_fit
        assert not (folder / "left").exists()
        precisions: tuple[Precision, ...] = "fp32", "int8"
        classifiers = [Classifier.load(Bundle(name, folder, manifest), precision) for precision in precisions]
        return [np.stack([found.logits for found in classifier.predict(texts)]) for classifier in classifiers]

    usual = [tokenizer.backend_tokenizer.encode(text).ids for text in texts]
    (fp32, int8), (same, other) = answers("without", []), answers("with", usual)
    assert np.array_equal(fp32, same)
    assert not np.array_equal(int8, other)
