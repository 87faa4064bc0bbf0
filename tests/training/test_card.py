from pathlib import Path
from typing import Any

import msgspec
import pytest

from pigeonhole.bundle import Manifest, OutOfScope, ThresholdTarget, VectorScaling, Windowing, open_bundle
from pigeonhole.training.card import _label_line, write_card


@pytest.fixture
def manifest(sealed_bundle: Path) -> Manifest:
    return open_bundle(str(sealed_bundle)).manifest


def card(manifest: Manifest, **changes: Any) -> str:
    """Where a line breaks is no matter."""
    return " ".join(write_card(msgspec.structs.replace(manifest, **changes)).split())


def test_a_label_of_one_test_row_has_one_row() -> None:
    found: dict[str, object] = {"precision": 1.0, "recall": 0.5, "support": 1}
    assert _label_line("praise", found) == "- `praise`: precision 1.00, recall 0.50 over 1 row"
    assert _label_line("praise", found | {"support": 2}).endswith("over 2 rows")


def test_each_row_of_the_table_holds_the_figures_of_its_own_model(manifest: Manifest) -> None:
    lines = {line.split(" | ")[0]: line for line in write_card(manifest).splitlines() if line.startswith("| ")}
    for name, found in (
        (f"this model (served: {manifest.served})", manifest.metrics["test"]),
        ("TF-IDF + logistic regression", manifest.metrics["baselines"]["tfidf"]),
        ("majority label", manifest.metrics["baselines"]["majority"]),
    ):
        assert f"| {found['accuracy']:.3f} [" in lines[f"| {name}"]
    assert f"Measured on {manifest.metrics['test']['n']} test rows" in write_card(manifest)


def test_the_card_says_how_long_texts_are_read(manifest: Manifest) -> None:
    assert f"of any length and keeps its first {manifest.max_length} tokens." in card(manifest)
    largest = card(manifest, windowing=Windowing("max", 8, 5))
    assert f"in up to 5 windows of {manifest.max_length} tokens; two share 8 tokens; logits are merged by the largest" in largest
    assert "logits are averaged." in card(manifest, windowing=Windowing("mean", 8, 5))


def test_the_card_says_what_is_accepted_and_what_is_out_of_scope(manifest: Manifest) -> None:
    plain = card(manifest, temperature=1.25, vector_scaling=None, threshold_target=None, out_of_scope=None)
    assert "calibrated with temperature 1.250 on" in plain
    assert "the label's threshold; else `review`. It always names one of its labels" in plain
    decisions = {"out_of_scope": {"test": {"recall": {"share": 0.831}, "n": 40}}}
    fitted = card(
        manifest,
        vector_scaling=VectorScaling((1.0, 1.0, 1.0), (0.0, 0.0, 0.0)),
        threshold_target=ThresholdTarget("precision", 0.95),
        out_of_scope=OutOfScope("max_logit", 0.5),
        metrics=manifest.metrics | {"decisions": decisions},
    )
    assert "calibrated with a scale and a bias for each label on" in fitted
    assert "fitted so that at least 95 % of the accepted answers are right; else `review`." in fitted
    assert "`out_of_scope`, by max logit: it recognises 83 % of 40 texts that belong to no label." in fitted
    several = card(manifest, task="multi_label", accept_score=0.4)
    assert "Answers with any number of labels" in several
    assert "below 0.4 the decision is `review`" in several


def test_the_card_says_what_became_of_int8_and_what_the_model_was_made_from(manifest: Manifest) -> None:
    parity = manifest.parity | {"int8_agreement_with_fp32": 0.9834}
    assert "; int8 agrees with fp32 on 98.3 %" in card(manifest, parity=parity)
    assert "; int8 (left out) agrees with fp32 on 98.3 %" in card(manifest, parity=parity, models={"fp32": "model.onnx"})
    assert "labels differ; int8" not in card(manifest, parity=manifest.parity | {"int8_agreement_with_fp32": None})
    origin = manifest.provenance | {"git_commit": None, "seed": 3, "threads": 7}
    assert "commit: `unknown`, seed 3, 7 threads" in card(manifest, provenance=origin)
    assert "encoder: `scratch`" in card(manifest)
